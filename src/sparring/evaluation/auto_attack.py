"""AutoAttack: attacks that need no tuning, each on what those before it have left (https://arxiv.org/abs/2003.01690)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor, nn

from ..attacks import APGD, FAB, CleanStart, Restarts, SphereStart, Square, Worst
from ..attacks.losses import DLR, Margin, TargetedDLR
from ..attacks.threats import L1, L2, Linf
from ..core.errors import UserError
from ..core.gate import FEW, alone, as_taken, check_taken
from ..core.types import Attack, AttackBackend, TensorData, Threat
from ..core.validation import check_images, check_logits
from ..records.results import EvaluationResult
from .accuracy import evaluate
from .adversaries import Adversary, MultiTargeted, WhiteBox
from .runner import OnProgress


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Several adversaries, each on what those before it have left: what stands at the end, stands under all of them."""

    parts: Mapping[str, Adversary]

    def __post_init__(self) -> None:
        if not self.parts:
            raise UserError("in turn, there is at least one adversary")

    @property
    def draws(self) -> int:
        return 1

    def stages(self, num_classes: int) -> Mapping[str, Adversary]:
        del num_classes
        return self.parts

    def notes(self, num_classes: int) -> tuple[str, ...]:
        del num_classes
        return ()


Version = Literal["standard", "plus", "rand"]
EOT = 20


@dataclass(frozen=True, slots=True)
class AutoAttack:
    """The published ensembles, in the published order and with the settings of the released code.

    - `standard`: APGD on cross-entropy, targeted APGD on DLR, targeted FAB, Square. For L1, five restarts and five
      targets in APGD.
    - `plus`: APGD on cross-entropy and on DLR, FAB (five restarts each), Square, targeted APGD, targeted FAB.
    - `rand`, for randomised models: APGD on cross-entropy and on DLR with gradients averaged over 20 passes; a model is
      right if it is so in more than half of 20 passes.

    Towards targets, there are nine or as many as there are other classes. Where DLR is not defined (two classes, and
    three for targeted DLR), the margin takes its place, and the notes of the result say so.
    """

    threat: Threat
    version: Version = "standard"

    def __post_init__(self) -> None:
        if self.version not in get_args(Version):
            raise UserError(f"AutoAttack has no version {self.version!r}: there is standard, plus and rand")
        if not isinstance(self.threat, Linf | L2 | L1):
            raise UserError(f"AutoAttack is defined for Linf, L2 and L1, not for {self.threat!r}")

    @property
    def draws(self) -> int:
        return EOT if self.version == "rand" else 1

    def stages(self, num_classes: int) -> dict[str, Adversary]:
        """The attacks by their published names, in order."""
        sparse, plus = isinstance(self.threat, L1), self.version == "plus"
        times = 5 if plus or (sparse and self.version == "standard") else 1
        apgd = self._apgd()
        climb: Attack = Restarts(apgd, times) if times > 1 else apgd
        dlr = DLR if num_classes > 2 else Margin
        targeted = MultiTargeted(apgd, TargetedDLR if num_classes > 3 else Margin, 5 if sparse and not plus else 9)
        parts: dict[str, Adversary] = {
            "apgd-ce": WhiteBox(climb, draws=self.draws),
            "apgd-dlr": WhiteBox(climb, dlr, self.draws),
            "apgd-t": targeted,
            "fab": WhiteBox(Worst((self._fab(), Restarts(self._fab(again=True), 4))), Margin),
            "fab-t": MultiTargeted(self._fab(), Margin),
            "square": WhiteBox(Square(self.threat, rescale=False, last_place=False), Margin),
        }
        return {name: parts[name] for name in ORDER[self.version]}

    def _apgd(self) -> APGD:
        return APGD(self.threat, ties_halve=True, first_from_zero=True, first_no_stall=True)

    def _fab(self, again: bool = False) -> FAB:
        return FAB(self.threat, final_search=0, bring_back=False, start=SphereStart(0.5) if again else CleanStart())

    def notes(self, num_classes: int) -> tuple[str, ...]:
        names = ORDER[self.version]
        lost = [n for n, least in (("apgd-dlr", 3), ("apgd-t", 4)) if n in names and num_classes < least]
        return tuple(
            f"{name} raises the margin: with {num_classes} classes, its DLR loss is not defined" for name in lost
        )


ORDER: Mapping[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    version: Version = "standard",
    *,
    batch_size: int = 256,
    seed: int = 0,
    index: Tensor | None = None,
    keep_images: bool = False,
    state: Path | str | None = None,
    backend: AttackBackend | None = None,
    on_progress: OnProgress = lambda news: None,
) -> EvaluationResult:
    """Robust accuracy under AutoAttack of any model that gives logits: `autoattack(model, x, y, Linf("8/255"))`.

    `x` `[N, C, H, W]` in [0, 1], `y` `[N]`. In the result, `robust["autoattack"]` says who stands at the end and
    `broken_by("autoattack")` what broke the others. The other arguments are those of `evaluate`.
    """
    check_images(x, bytes_too=True)
    with alone(model):
        out = check_taken(model, as_taken(model, x[:FEW].detach()))
    check_logits(out, min(FEW, len(x)), later=True)
    data = TensorData(x, y, tuple(str(k) for k in range(out.shape[1])))
    attack = {"autoattack": AutoAttack(threat, version)}
    return evaluate(
        model,
        data,
        attack,
        batch_size=batch_size,
        seed=seed,
        index=index,
        keep_images=keep_images,
        state=state,
        backend=backend,
        on_progress=on_progress,
    )
