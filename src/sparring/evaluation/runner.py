"""The run of an evaluation: adversaries as stages, batch by batch, and the results of each example."""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from ..attacks.losses import misclassified
from ..attacks.pgd import PGD
from ..attacks.threats import Linf
from ..core.errors import UserError
from ..core.rng import PerExample, Rng, mixed_seed
from ..core.types import AttackBackend, SearchCall, Threat, pixels, recordable
from ..core.walk import walk
from ..records.gallery import gallery_size
from ..records.results import PICTURES, Array
from .adversaries import (
    Adversary,
    Divides,
    SurrogateGradient,
    as_adversary,
    check_adversary_name,
    the_one,
    threat_of,
    threats_of,
)
from .adversaries import bound as bound_of
from .cost import BACKWARD, passes
from .examples import EvaluationData
from .journal import Part, PartStore
from .minimum_norm import MinimumNorm
from .verifier import MutationCheck, Verdict, Verifier

SAMPLE, BEYOND_CHANCE = 16, 2
"""The sample that is attacked on the model itself, and the number of broken examples that is beyond chance.

Where attacks on the copy are as good as on the model, rounding lets one example in a hundred break on only one of them:
two of sixteen then break with a chance of 1 %.
"""
UNKNOWN_PASSES = 1 + BACKWARD
"""The weight of a stage that does not state its passes: one step of a gradient attack."""
ROBUST, CLEAN = -1, 0


@runtime_checkable
class Cascade(Protocol):
    """Several adversaries in turn, each on the examples that are robust under all before it, such as AutoAttack."""

    @property
    def draws(self) -> int:
        """Number of passes that decide whether the model is right: 1, or more if it is randomised."""
        ...

    def stages(self, num_classes: int) -> Mapping[str, Adversary]: ...
    def notes(self, num_classes: int) -> tuple[str, ...]:
        """Notes that a reader of the result has to know."""
        ...


@dataclass(frozen=True, slots=True)
class EvaluationProgress:
    """The progress of an evaluation, as `evaluate` reports it after each batch and each stage.

    Args:
        adversary: Name of the adversary.
        stage: Name of its stage.
        done: Number of examples that are finished in this stage.
        todo: Number of examples of this stage.
        flags: Bools `[N]`, which examples are robust so far.
        seconds_left: Estimated seconds to the end of the evaluation; NaN if an adversary does not state how many
            forward passes it takes (an attribute `passes`).
        stage_done: Whether the stage is finished.
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
    """An adversary with its name in the result, as the stages that it consists of."""

    name: str
    stages: Mapping[str, Adversary]
    draws: int
    notes: tuple[str, ...]
    costs: tuple[float, ...]
    known: bool
    """True if all stages state how many passes they take; otherwise the time left is not estimated."""
    nearest: MinimumNorm | None = None

    @classmethod
    def of(cls, name: str, adversary: Adversary | Cascade, classes: int) -> "AttackPlan":
        check_adversary_name(name)
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
            notes += tuple(note for stage, each in stages.items() for note in _short_steps(stage, each))
        costs = [passes(each, classes) for each in stages.values()]
        weights = tuple(UNKNOWN_PASSES if cost is None else cost for cost in costs)
        return cls(name, stages, draws, notes, weights, None not in costs, nearest)

    @property
    def work(self) -> float:
        """Cost of all stages for one example, in forward passes."""
        return sum(self.costs)

    @property
    def cheapest(self) -> int:
        """Number of the stage that takes the fewest passes; the first stage is 1."""
        return 1 + self.costs.index(min(self.costs))

    def threat(self) -> Threat | None:
        """The set that all stages stay in, if it is the same for all."""
        return the_one([bound(stage) for stage in self.stages.values()])


def _short_steps(stage: str, adversary: Adversary) -> list[str]:
    """Notes on attacks whose steps together are shorter than eps, such as a step of another eps."""
    found = []
    for each in walk(adversary):
        if not isinstance(each, PGD) or each.step_size is None:
            continue
        eps = getattr(each.threat, "eps", 0.0)
        if each.steps * each.step_size < 0.999 * eps:
            far = f"{each.steps} steps of {each.step_size:.3g}"
            found.append(f"{stage} moves by at most {far} from its start, less than eps = {eps:.3g}")
    return found


def bound(adversary: Adversary) -> Threat | None:
    """The set that adversarial examples must lie in to count; None for an adversary without a bound."""
    return None if isinstance(adversary, MinimumNorm) else bound_of(adversary)


def needs_fine(adversary: Adversary) -> bool:
    """Return True if the copy that is attacked needs the rounding of float32.

    This holds for smallest distances, for all sets but Linf, and for adversaries without a threat: in L2, FAB broke
    fewer examples in bf16.
    """
    threats = threats_of(adversary)
    return isinstance(adversary, MinimumNorm) or not threats or any(not isinstance(threat, Linf) for threat in threats)


@dataclass(slots=True)
class AttackRecord:
    """The results of each example under one adversary; all tensors are `[N]`, on the CPU.

    `images` are the adversarial images of broken examples by their rows: all of them with `all_images`, else a few to
    be shown: the first of each stage, or with `hardest` those with the smallest norms.
    """

    broken_by: Tensor
    margin: Tensor
    norm: Tensor
    predicted: Tensor
    all_images: bool
    hardest: bool
    images: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def open(cls, clean: Verdict, all_images: bool, hardest: bool) -> "AttackRecord":
        """The record before the first attack: examples that are wrong on clean images count as broken."""
        broken = torch.full_like(clean.predicted, ROBUST).masked_fill(~clean.right, CLEAN)
        nothing = torch.full_like(clean.margin, math.nan)
        return cls(broken, clean.margin.clone(), nothing, clean.predicted.clone(), all_images, hardest)

    def holds(self, part: Part) -> bool:
        """Return True if a part has all images that the record needs."""
        return not self.all_images or len(part.images) == part.broken.sum()

    def enter(self, stage: int, part: Part) -> None:
        """Add the results of one batch under a stage."""
        rows = torch.from_numpy(part.rows)
        self.margin[rows] = torch.minimum(self.margin[rows], torch.from_numpy(part.margin))
        broken = torch.from_numpy(part.broken)
        lost = rows[broken]
        self.broken_by[lost] = stage
        self.norm[lost] = torch.from_numpy(part.norm)[broken]
        self.predicted[lost] = torch.from_numpy(part.predicted)[broken]
        self.images.update(zip(lost.tolist(), torch.from_numpy(part.images), strict=False))
        if not self.all_images:
            self.images = {row: self.images[row] for row in (self.shown() if self.hardest else self.of_each_stage())}

    def of_each_stage(self) -> list[int]:
        """The rows of the first images of each stage."""
        found: dict[int, list[int]] = {}
        for row in sorted(self.images):
            found.setdefault(int(self.broken_by[row]), []).append(row)
        return [row for rows in found.values() for row in rows[: gallery_size(self.images[rows[0]].shape)]]

    def shown(self) -> list[int]:
        """The rows of the images to be shown."""
        key = (lambda row: (float(self.norm[row]), row)) if self.hardest else None
        return sorted(self.images, key=key)[:PICTURES]

    def robust(self, stage: int | None = None) -> Tensor:
        """Examples that are robust after a stage, or after all results so far."""
        robust = self.broken_by == ROBUST
        return robust if stage is None else robust | (self.broken_by > stage)


@dataclass(frozen=True, slots=True)
class EvaluationContext:
    """The model, the data and the settings of an evaluation."""

    judge: Verifier
    attacked: nn.Module
    """The model or its copy, on which attacks run; their adversarial examples count on the model of the judge."""
    attacked_fp32: nn.Module
    """The model or its copy with the rounding of float32."""
    unaltered: MutationCheck
    data: EvaluationData
    like: Tensor
    """An empty tensor of the device and the type of the model's input."""
    batch_size: int
    seed: int
    journal: PartStore | None
    on_progress: OnProgress
    keep_images: bool
    backend: AttackBackend

    def on_copy(self, adversary: Adversary) -> bool:
        """Return True if the adversary does not run on the model itself."""
        attacked = self.attacked_fp32 if needs_fine(adversary) else self.attacked
        return isinstance(adversary, SurrogateGradient) or attacked is not self.judge.model

    def sample(self, rows: Tensor) -> Tensor:
        """A random sample of the rows, which depends on the seed and the index alone."""
        drawn = PerExample(mixed_seed(self.seed, 0), self.data.index[rows]).uniform(1)[:, 0]
        return rows[drawn.argsort()[:SAMPLE].sort().values]

    @contextmanager
    def seen_by(self, adversary: Adversary, on_model: bool) -> Generator[tuple[Adversary, nn.Module]]:
        """The adversary and the model or copy that it attacks.

        A `SurrogateGradient` is split into its view and its adversary: inside the context, the view changes the model.
        """
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

    def found(self, adversary: Adversary, attacked: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        """The points that the adversary finds; the backend may record the search and replay it for the next batch."""
        if not recordable(adversary):
            return adversary(attacked, x, y, rng)
        backend = self.backend.in_float32() if needs_fine(adversary) else self.backend

        def find(inputs: Sequence[Tensor], rng: Rng) -> Tensor:
            return adversary(attacked, inputs[0], inputs[1], rng)

        return backend.search(attacked, SearchCall(repr(adversary), find, (x, y), rng))

    def divided(self, adversary: Adversary) -> tuple[Adversary, int]:
        """The adversary and the number of examples that it holds at once: several batches if the backend wants that."""
        batches_in_flight = self.backend.batches_in_flight(self.like.device)
        if batches_in_flight == 1 or not isinstance(adversary, Divides):
            return adversary, self.batch_size
        return adversary.dividing(self.batch_size), batches_in_flight * self.batch_size

    def batch(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Images and labels as the model takes them."""
        found = self.data[rows]
        return pixels(found.x).to(self.like), found.y.to(self.like.device)

    def confirmed(self, z: Tensor, x: Tensor, y: Tensor, threat: Threat | None) -> tuple[Tensor, Verdict]:
        """The points inside the ball, and the verdict on them (`Verifier.confirm`), computed batch by batch."""
        parts = zip(*(part.split(self.batch_size) for part in (z, x, y)), strict=True)
        found = [self.judge.confirm(points, images, labels, threat) for points, images, labels in parts]
        verdicts = zip(*(verdict for _, verdict in found), strict=True)
        return torch.cat([points for points, _ in found]), Verdict(*map(torch.cat, verdicts))

    @torch.no_grad()
    def unlike_model(self, attacked: nn.Module, z: Tensor, y: Tensor) -> Tensor:
        """Rows where the copy is fooled (or the point is not finite) but the model is not, as bools `[B]`."""
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
    """The run of an evaluation. `work` and `done` are in forward passes of the model."""

    setting: EvaluationContext
    clean: Verdict
    work: float
    known: bool = True
    done: float = 0.0
    started: float = field(default_factory=time.monotonic)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of each stage in seconds; NaN if a part of its results was there before."""

    def through(self, chain: AttackPlan) -> AttackRecord:
        """Run one adversary on all examples, each stage on those that are still robust.

        If the stages ran on a copy, a sample of the robust examples is then attacked on the model itself.
        """
        hardest = chain.nearest is not None  # its images are only shown
        book = AttackRecord.open(self.clean, self.setting.keep_images and not hardest, hardest)
        self._stages(chain, book)
        if chain.nearest is None and chain.draws == 1 and any(map(self.setting.on_copy, chain.stages.values())):
            self._attack_sample_on_model(chain, book)
        return book

    def _attack_sample_on_model(self, chain: AttackPlan, book: AttackRecord) -> None:
        """Attack a sample of the robust examples on the model itself, and all of them if more break than by chance."""
        sample = self.setting.sample(_rows(book.robust()))
        self._stage(chain, chain.cheapest, book, sample, " on the model, a sample")
        found = len(sample) - int(book.robust()[sample].sum())
        if not found:
            return
        if found >= BEYOND_CHANCE:
            self._stages(chain, book, " on the model")
        what = "so all robust examples were attacked again there" if found >= BEYOND_CHANCE else "which may be chance"
        self.notes.append(
            f"of {len(sample)} examples that are robust under {chain.name}, {found} are broken when the attack runs on "
            f"the model itself and not on its copy: {what}"
        )

    def _stages(self, chain: AttackPlan, book: AttackRecord, where: str = "") -> None:
        for stage in range(1, 1 + len(chain.stages)):
            self._stage(chain, stage, book, _rows(book.robust()), where)

    def _stage(self, chain: AttackPlan, stage: int, book: AttackRecord, todo: Tensor, where: str = "") -> None:
        """Run one stage on the rows `todo`: on a copy of the model or, if `where` is given, on the model itself."""
        cost, setting = chain.costs[stage - 1], self.setting
        stage_name, adversary = list(chain.stages.items())[stage - 1]
        name, count, began = stage_name + where, len(todo), time.monotonic()
        for part in filter(book.holds, setting.journal.parts(name)) if setting.journal is not None else ():
            book.enter(stage, part)
            todo = todo[~torch.isin(todo, torch.from_numpy(part.rows))]
        expected = 0 if where else int(self.clean.right.sum())  # examples of this stage in `work`
        self.work += cost * (len(todo) - expected)
        done, seed, resumed = count - len(todo), mixed_seed(setting.seed, stage), len(todo) < count
        adversary, size = setting.divided(adversary)
        for rows in todo.split(size) if len(todo) else ():
            part = self._attacked(name, adversary, rows, seed, book, on_model=bool(where))
            if setting.journal is not None:
                setting.journal.add(name, part)
            book.enter(stage, part)
            done, self.done = done + len(rows), self.done + cost * len(rows)
            self._notify(chain.name, name, done, count, book)
        self._notify(chain.name, name, count, count, book, stage_done=True)
        setting.unaltered.check()
        ran = math.nan if resumed else time.monotonic() - began
        self.seconds[stage_name] = self.seconds.get(stage_name, 0.0) + ran

    def _attacked(
        self, name: str, adversary: Adversary, rows: Tensor, seed: int, book: AttackRecord, on_model: bool
    ) -> Part:
        """Attack one batch, again on the model where only the copy is fooled, and verify the points."""
        setting = self.setting
        x, y = setting.batch(rows)
        index, threat = setting.data.index[rows].to(x.device), bound(adversary)
        with setting.seen_by(adversary, on_model) as (attack, attacked):
            z = _images_like(x, setting.found(attack, attacked, x, y, PerExample(seed, index)), name)
            again = setting.unlike_model(attacked, z, y)
            if bool(again.any()):
                z[again] = attack(setting.judge.model, x[again], y[again], PerExample(seed, index[again])).detach()
        lost = ~_finite(z)
        if bool(lost.any()):
            first = int(index[lost][0])
            raise UserError(
                f"{name} gives NaN or infinite pixels for {int(lost.sum())} images, first for index {first}: the "
                "gradient of the model is NaN there, as that of sqrt is at 0, or the attack makes them itself. Correct "
                "that: it is no robustness"
            )
        low, high = torch.stack(z.aminmax()).tolist()
        if low < 0 or high > 1:
            raise UserError(
                f"{name} gives pixels in [{low:.9g}, {high:.9g}], outside [0, 1]: let the attack bring its points "
                "back, as threat.project(z, x) does"
            )
        z, verdict = setting.confirmed(z, x, y, threat)
        measure = threat_of(adversary) if isinstance(adversary, MinimumNorm) else threat
        norm = measure.norm(z - x) if measure is not None else torch.full_like(verdict.margin, math.nan)
        facts = (rows, ~verdict.right, verdict.margin, norm.float(), verdict.predicted)
        return _part(facts, z, book)

    def _notify(
        self, name: str, stage: str, done: int, todo: int, book: AttackRecord, stage_done: bool = False
    ) -> None:
        seconds = time.monotonic() - self.started
        left = max(0.0, seconds * (self.work / self.done - 1)) if self.done else seconds
        left = left if self.known else math.nan
        self.setting.on_progress(EvaluationProgress(name, stage, done, todo, book.robust().numpy(), left, stage_done))


def _part(facts: Sequence[Tensor], z: Tensor, book: AttackRecord) -> Part:
    """The results of a batch, with the images among the points `z` that the record needs.

    `facts` are the rows, whether they are broken, margins, norms and predictions.
    """
    rows, broken, margin, norm, predicted = (fact.cpu() for fact in facts)
    if book.hardest:  # the images of a part are those of its first broken examples
        order = norm.argsort(stable=True)
        rows, broken, margin, norm, predicted = (fact[order] for fact in (rows, broken, margin, norm, predicted))
        z = z[order.to(z.device)]
    few = PICTURES if book.hardest else gallery_size(z.shape[1:])
    shown = _rows(broken) if book.all_images else _rows(broken)[:few]
    images = z[shown.to(z.device)].float().contiguous()
    return Part(*(tensor.cpu().numpy() for tensor in (rows, broken, margin, norm, predicted, images)))


def _images_like(x: Tensor, z: object, name: str) -> Tensor:
    """Return what an attack gave, without its graph. Raises `UserError` unless it has the shape of `x`, in floats."""
    if not isinstance(z, Tensor) or z.shape != x.shape or not z.is_floating_point():
        given = f"{z.dtype} of shape {tuple(z.shape)}" if isinstance(z, Tensor) else f"a {type(z).__name__}"
        raise UserError(f"{name} gives {given}: an attack gives floats of the shape that it takes, {tuple(x.shape)}")
    return z.detach()


def _finite(z: Tensor) -> Tensor:
    return z.isfinite().flatten(1).all(1)


def _rows(flags: Tensor) -> Tensor:
    return flags.nonzero()[:, 0]
