"""An evaluation under way: adversaries as stages, a batch at a time, and what is known of each example."""

import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from ..attacks.losses import misclassified
from ..attacks.threats import Linf
from ..core.errors import UserError
from ..core.rng import PerExample, mixed_seed
from ..core.types import AttackBackend, TensorData, Threat, pixels
from ..records.results import Array
from .adversaries import Adversary, Divides, SurrogateGradient, as_adversary, check_name, the_one, threat_of, threats_of
from .adversaries import bound as bound_of
from .cost import BACKWARD, passes
from .journal import Part, PartStore
from .minimum_norm import MinimumNorm
from .verifier import MutationCheck, Verdict, Verifier

PICTURES = 8
SAMPLE, BEYOND_CHANCE = 16, 2
"""Where the copy is as good as the model, rounding lets one example in a hundred fall on one of them alone: two of
sixteen then fall with a chance of 1 %."""
UNKNOWN_PASSES = 1 + BACKWARD
"""The weight of a stage that does not state its passes: one step of a gradient attack."""
ROBUST, CLEAN = -1, 0


@runtime_checkable
class Cascade(Protocol):
    """Several adversaries, each on what those before it have left standing, as AutoAttack is."""

    @property
    def draws(self) -> int:
        """How often the model is asked before it counts as right: 1, or more if it is randomised."""
        ...

    def stages(self, num_classes: int) -> Mapping[str, Adversary]: ...
    def notes(self, num_classes: int) -> tuple[str, ...]:
        """What a reader of the result has to know."""
        ...


@dataclass(frozen=True, slots=True)
class EvaluationProgress:
    """How far an evaluation is: `flags` `[N]` of robust examples; `seconds_left` is estimated for the whole rest.

    It is NaN if an adversary does not state how many forward passes it takes (an attribute `passes`).
    """

    adversary: str
    stage: str
    done: int
    todo: int
    flags: Array
    seconds_left: float
    stage_done: bool = False


OnProgress: TypeAlias = Callable[[EvaluationProgress], None]


@dataclass(frozen=True, slots=True)
class AttackPlan:
    """An adversary by its name in the result, as the stages that it consists of."""

    name: str
    stages: Mapping[str, Adversary]
    draws: int
    notes: tuple[str, ...]
    costs: tuple[float, ...]
    known: bool
    """Whether all stages state how many passes they take; without that, the time left is not estimated."""
    nearest: MinimumNorm | None = None

    @classmethod
    def of(cls, name: str, adversary: Adversary | Cascade, classes: int) -> "AttackPlan":
        check_name(name)
        nearest = adversary if isinstance(adversary, MinimumNorm) else None
        stages: Mapping[str, Adversary]
        if isinstance(adversary, Cascade):
            stages = {f"{name}/{part}": as_adversary(each) for part, each in adversary.stages(classes).items()}
            draws, notes = adversary.draws, adversary.notes(classes)
        else:
            stages, draws, notes = {name: adversary}, 1, ()
        if nearest is None:
            free = [stage for stage, each in stages.items() if bound(each) is None]
            notes += tuple(f"nothing bounds {stage}: it names no threat, or several" for stage in free)
        costs = [passes(each, classes) for each in stages.values()]
        weights = tuple(UNKNOWN_PASSES if cost is None else cost for cost in costs)
        return cls(name, stages, draws, notes, weights, None not in costs, nearest)

    @property
    def work(self) -> float:
        return sum(self.costs)

    @property
    def cheapest(self) -> int:
        """The number of the stage that takes the fewest passes; the first is 1."""
        return 1 + self.costs.index(min(self.costs))

    def threat(self) -> Threat | None:
        """The ball that all stages stay in, if it is one."""
        return the_one([bound(stage) for stage in self.stages.values()])


def bound(adversary: Adversary) -> Threat | None:
    """The set that points must lie in to count; None for a search that nothing bounds."""
    return None if isinstance(adversary, MinimumNorm) else bound_of(adversary)


def needs_fine(adversary: Adversary) -> bool:
    """Whether bf16 may hide what it looks for: a smallest distance, and all but Linf, for in L2 FAB found less so."""
    threats = threats_of(adversary)
    return isinstance(adversary, MinimumNorm) or not threats or any(not isinstance(threat, Linf) for threat in threats)


@dataclass(slots=True)
class AttackRecord:
    """What is known of each example under one adversary. All on the CPU, `[N]`."""

    broken_by: Tensor
    margin: Tensor
    norm: Tensor
    predicted: Tensor
    images: dict[int, Tensor] = field(default_factory=dict)
    all_images: bool = False

    @classmethod
    def open(cls, clean: Verdict, all_images: bool) -> "AttackRecord":
        broken = torch.full_like(clean.predicted, ROBUST).masked_fill(~clean.right, CLEAN)
        nothing = torch.full_like(clean.margin, math.nan)
        return cls(broken, clean.margin.clone(), nothing, clean.predicted.clone(), all_images=all_images)

    def enter(self, stage: int, part: Part) -> None:
        rows = torch.from_numpy(part.rows)
        self.margin[rows] = torch.minimum(self.margin[rows], torch.from_numpy(part.margin))
        broken = torch.from_numpy(part.broken)
        lost = rows[broken]
        self.broken_by[lost] = stage
        self.norm[lost] = torch.from_numpy(part.norm)[broken]
        self.predicted[lost] = torch.from_numpy(part.predicted)[broken]
        self.images.update(zip(lost.tolist(), torch.from_numpy(part.images), strict=True))
        if not self.all_images:
            self.images = {row: self.images[row] for row in sorted(self.images)[:PICTURES]}

    def robust(self, stage: int | None = None) -> Tensor:
        """Who stands after a stage, or now."""
        robust = self.broken_by == ROBUST
        return robust if stage is None else robust | (self.broken_by > stage)


@dataclass(frozen=True, slots=True)
class EvaluationContext:
    """What an evaluation is done with."""

    judge: Verifier
    attacked: nn.Module
    """What attacks search on; what they find counts on the model of the judge."""
    attacked_fp32: nn.Module
    """The same with the rounding of float32."""
    unaltered: MutationCheck
    data: TensorData
    index: Tensor
    like: Tensor
    """An empty tensor of the device and the type that the model takes."""
    batch_size: int
    seed: int
    journal: PartStore | None
    on_progress: OnProgress
    keep_images: bool
    backend: AttackBackend

    def on_copy(self, adversary: Adversary) -> bool:
        """Whether it searches on something else than the model."""
        attacked = self.attacked_fp32 if needs_fine(adversary) else self.attacked
        return isinstance(adversary, SurrogateGradient) or attacked is not self.judge.model

    def sample(self, rows: Tensor) -> Tensor:
        """Some of the rows, drawn by seed and index alone."""
        drawn = PerExample(mixed_seed(self.seed, 0), self.index.cpu()[rows]).uniform(1)[:, 0]
        return rows[drawn.argsort()[:SAMPLE].sort().values]

    @contextmanager
    def seen_by(self, adversary: Adversary, on_model: bool) -> Generator[tuple[Adversary, nn.Module]]:
        """The adversary, and what it searches on; the model itself may look otherwise meanwhile."""
        if on_model:
            yield adversary, self.judge.model
            return
        in_float32 = needs_fine(adversary)
        if not isinstance(adversary, SurrogateGradient):
            yield adversary, self.attacked_fp32 if in_float32 else self.attacked
            return
        backend = self.backend.in_float32() if in_float32 else self.backend
        with adversary.view(self.judge.model), backend(self.judge.model, self.batch(slice(8))[0]) as attacked:
            yield adversary.adversary, attacked

    def divided(self, adversary: Adversary) -> tuple[Adversary, int]:
        """The adversary, and how many examples it searches on at a time: of several batches, if that is of use."""
        batches_in_flight = self.backend.batches_in_flight(self.like.device)
        if batches_in_flight == 1 or not isinstance(adversary, Divides):
            return adversary, self.batch_size
        return adversary.dividing(self.batch_size), batches_in_flight * self.batch_size

    def batch(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Images and labels as the model takes them."""
        return pixels(self.data.x[rows]).to(self.like), self.data.y[rows].to(self.like.device)

    def confirmed(self, z: Tensor, x: Tensor, y: Tensor, threat: Threat | None) -> tuple[Tensor, Verdict]:
        """The points as they count, and the verdict on them (`Verifier.confirm`), batch by batch."""
        parts = zip(*(part.split(self.batch_size) for part in (z, x, y)), strict=True)
        found = [self.judge.confirm(points, images, labels, threat) for points, images, labels in parts]
        verdicts = zip(*(verdict for _, verdict in found), strict=True)
        return torch.cat([points for points, _ in found]), Verdict(*map(torch.cat, verdicts))

    @torch.no_grad()
    def unlike_model(self, attacked: nn.Module, z: Tensor, y: Tensor) -> Tensor:
        """At which points what is searched on is fooled, or lost, and the model is not: `[B]`."""
        if attacked is self.judge.model:
            return torch.zeros_like(y, dtype=torch.bool)
        unlike = ~_finite(z)
        rows = _rows(~unlike)
        with torch.autocast(z.device.type, enabled=False):
            for model, fooled in ((attacked, True), (self.judge.model, False)):
                if len(rows):  # a model need not take an empty batch
                    found = [misclassified(model(z[part]), y[part]) == fooled for part in rows.split(self.batch_size)]
                    rows = rows[torch.cat(found)]
        unlike[rows] = True
        return unlike


@dataclass(slots=True)
class Run:
    """An evaluation under way. `work` and `done` are in passes through the model."""

    setting: EvaluationContext
    clean: Verdict
    work: float
    known: bool = True
    done: float = 0.0
    started: float = field(default_factory=time.monotonic)
    notes: list[str] = field(default_factory=list)

    def through(self, chain: AttackPlan) -> AttackRecord:
        """One adversary on all examples, a stage after the other on what stands, and a second look at what is left."""
        book = AttackRecord.open(self.clean, self.setting.keep_images or chain.nearest is not None)
        self._stages(chain, book)
        if chain.nearest is None and chain.draws == 1 and any(map(self.setting.on_copy, chain.stages.values())):
            self._look_again(chain, book)
        return book

    def _look_again(self, chain: AttackPlan, book: AttackRecord) -> None:
        """Attacks a sample of what stands on the model itself, and all that stand if more fall than by chance."""
        sample = self.setting.sample(_rows(book.robust()))
        self._stage(chain, chain.cheapest, book, sample, " on the model, a sample")
        found = len(sample) - int(book.robust()[sample].sum())
        if not found:
            return
        if found >= BEYOND_CHANCE:
            self._stages(chain, book, " on the model")
        what = "so all that stand were attacked again there" if found >= BEYOND_CHANCE else "as chance may be"
        self.notes.append(
            f"of {len(sample)} examples that stand under {chain.name}, {found} fall when the attack runs on the model "
            f"itself and not on its copy: {what}"
        )

    def _stages(self, chain: AttackPlan, book: AttackRecord, where: str = "") -> None:
        for stage in range(1, 1 + len(chain.stages)):
            self._stage(chain, stage, book, _rows(book.robust()), where)

    def _stage(self, chain: AttackPlan, stage: int, book: AttackRecord, todo: Tensor, where: str = "") -> None:
        """One stage on the rows `todo`: on a copy of the model or, if `where` is said, on the model itself."""
        cost, setting = chain.costs[stage - 1], self.setting
        name, adversary = list(chain.stages.items())[stage - 1]
        name, count = name + where, len(todo)
        for part in setting.journal.parts(name) if setting.journal is not None else ():
            book.enter(stage, part)
            todo = todo[~torch.isin(todo, torch.from_numpy(part.rows))]
        expected = 0 if where else int(self.clean.right.sum())
        self.work += cost * (len(todo) - expected)
        done, seed = count - len(todo), mixed_seed(setting.seed, stage)
        adversary, size = setting.divided(adversary)
        for rows in todo.split(size) if len(todo) else ():
            part = self._attacked(name, adversary, rows, seed, on_model=bool(where))
            if setting.journal is not None:
                setting.journal.add(name, part)
            book.enter(stage, part)
            done, self.done = done + len(rows), self.done + cost * len(rows)
            self._tell(chain.name, name, done, count, book)
        self._tell(chain.name, name, count, count, book, stage_done=True)
        setting.unaltered.check()

    def _attacked(self, name: str, adversary: Adversary, rows: Tensor, seed: int, on_model: bool) -> Part:
        setting = self.setting
        x, y = setting.batch(rows.to(setting.data.x.device))
        index, threat = setting.index[rows].to(x.device), bound(adversary)
        with setting.seen_by(adversary, on_model) as (attack, attacked):
            z = attack(attacked, x, y, PerExample(seed, index)).detach()
            again = setting.unlike_model(attacked, z, y)
            if bool(again.any()):
                z[again] = attack(setting.judge.model, x[again], y[again], PerExample(seed, index[again])).detach()
        lost = ~_finite(z)
        if bool(lost.any()):
            first = int(index[lost][0])
            raise UserError(
                f"{name} gives NaN or infinite pixels for {int(lost.sum())} images, first for index {first}: the "
                "gradient of the model is NaN there, as that of sqrt is at 0. Mend that, for it is no robustness"
            )
        z, verdict = setting.confirmed(z, x, y, threat)
        measure = threat_of(adversary) if isinstance(adversary, MinimumNorm) else threat
        norm = measure.norm(z - x) if measure is not None else torch.full_like(verdict.margin, math.nan)
        broken = ~verdict.right
        tensors = (rows, broken, verdict.margin, norm.float(), verdict.predicted, z[broken].float().contiguous())
        return Part(*(tensor.cpu().numpy() for tensor in tensors))

    def _tell(self, name: str, stage: str, done: int, todo: int, book: AttackRecord, stage_done: bool = False) -> None:
        seconds = time.monotonic() - self.started
        left = max(0.0, seconds * (self.work / self.done - 1)) if self.done else seconds
        left = left if self.known else math.nan
        self.setting.on_progress(EvaluationProgress(name, stage, done, todo, book.robust().numpy(), left, stage_done))


def _finite(z: Tensor) -> Tensor:
    return z.isfinite().flatten(1).all(1)


def _rows(flags: Tensor) -> Tensor:
    return flags.nonzero()[:, 0]
