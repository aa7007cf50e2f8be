"""AutoAttack: attacks without tuning, each on the examples that are still robust (https://arxiv.org/abs/2003.01690)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from ..attacks import APGD, FAB, CleanStart, Restarts, SphereStart, Square, Worst
from ..attacks.losses import DLR, Margin, TargetedDLR
from ..attacks.threats import L1, L2, Linf
from ..core.errors import UserError
from ..core.types import Attack, Threat
from .adversaries import Adversary, MultiTargeted, WhiteBox


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Several adversaries in turn, each on the examples that are robust under all before it.

    An example that is robust at the end is robust under all of them.

    Args:
        parts: The adversaries by their names, in the order in which they run; at least one.

    Raises:
        UserError: If `parts` is empty.
    """

    parts: Mapping[str, Adversary]

    def __post_init__(self) -> None:
        if not self.parts:
            raise UserError("an Ensemble has no adversaries: give it at least one")

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
    """AutoAttack: the published ensembles, in the published order and with the settings of the released code.

    - `standard`: APGD on cross-entropy, targeted APGD on DLR, targeted FAB, Square. For L1, five restarts and five
      targets in APGD.
    - `plus`: APGD on cross-entropy and on DLR, FAB (five restarts each), Square, targeted APGD, targeted FAB.
    - `rand`, for randomised models: APGD on cross-entropy and on DLR with gradients averaged over 20 passes; an example
      counts as correct if the model is right in more than half of 20 passes.

    Targeted attacks use nine target classes, or all other classes if there are fewer. Where DLR is not defined (two
    classes, and three for targeted DLR), the margin takes its place, and the notes of the result state it.

    Args:
        threat: The set that adversarial examples must lie in: `Linf`, `L2` or `L1`.
        version: The ensemble: `standard`, `plus` or `rand`.

    Raises:
        UserError: For another version or another set.

    References:
        AutoAttack: https://arxiv.org/abs/2003.01690.
    """

    threat: Threat
    version: Version = "standard"

    def __post_init__(self) -> None:
        if self.version not in get_args(Version):
            raise UserError(f"AutoAttack has no version {self.version!r}: choose standard, plus or rand")
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
            f"{name} maximises the margin: with {num_classes} classes, its DLR loss is not defined" for name in lost
        )


ORDER: Mapping[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
