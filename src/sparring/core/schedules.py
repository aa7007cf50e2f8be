"""Values that change during training, as data: they print, compare and serialise.

Each is a function of `Progress` alone, so a resumed run follows the same values.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Generic

from .errors import UserError
from .types import Attack, Progress, Schedule, T_co, at


@dataclass(frozen=True, slots=True)
class MultiStep:
    """`peak`, times `factor` at each milestone (in epochs)."""

    peak: float
    milestones: tuple[float, ...] = ()
    factor: float = 0.1

    def at(self, progress: Progress) -> float:
        return self.peak * self.factor ** sum(progress.epoch >= m for m in self.milestones)


@dataclass(frozen=True, slots=True)
class Cyclic:
    """Linear from 0 up to `peak` at the share `top` of training, and linear back to 0.

    `top` is 0.5 in fast adversarial training (https://arxiv.org/abs/2001.03994) and 0.4 in the code of
    https://arxiv.org/abs/2002.11569. The step rises half a step early, so that no step has rate 0.
    """

    peak: float
    top: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.top < 1:
            raise UserError(f"the top of a cycle lies within training, 0 < top < 1, not at {self.top:g}")

    def at(self, progress: Progress) -> float:
        done = progress.done + 0.5 / (progress.steps_per_epoch * progress.epochs)
        return self.peak * min(done / self.top, (1 - done) / (1 - self.top))


@dataclass(frozen=True, slots=True)
class Cosine:
    """Half a cosine from `peak` to `final` (https://arxiv.org/abs/1608.03983, without restarts)."""

    peak: float
    final: float = 0.0

    def at(self, progress: Progress) -> float:
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * progress.done))


@dataclass(frozen=True, slots=True)
class Linear:
    """Straight lines between `points`, pairs of an epoch and a value; before the first and after the last, its value.

    From 0.1 at epoch 100 to 0 at epoch 105 is `Linear(((100, 0.1), (105, 0.0)))`, the linear decay of the code of
    https://arxiv.org/abs/2010.00467 is `PiecewiseConstant(((0, 0.1), (100, Linear(((100, 0.01), (105, 0.0))))))`. A
    step counts at its end, as in that code: the last step before a point has its value.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        epochs = [epoch for epoch, _ in self.points]
        if not epochs or epochs != sorted(set(epochs)):
            raise UserError(
                f"the points of a line are at least one, each at a later epoch than the last, not at {epochs}"
            )

    def at(self, progress: Progress) -> float:
        now = _ended(progress)
        if now >= self.points[-1][0]:
            return self.points[-1][1]
        after = next(i for i, (epoch, _) in enumerate(self.points) if epoch > now)
        (begin, low), (end, high) = self.points[max(0, after - 1)], self.points[after]
        return high if begin == end else low + (high - low) * (now - begin) / (end - begin)


@dataclass(frozen=True, slots=True)
class Triangle:
    """Up from `low` to `peak` in `half` epochs and down again in as many, for ever, whatever the length of training.

    The triangular policy of https://arxiv.org/abs/1506.01186; 18 epochs and 1e-5 are of the code of
    https://arxiv.org/abs/2010.00467, there with Adam. `Cyclic` rises and falls once in a training. A step counts at its
    end.
    """

    peak: float
    half: float = 18.0
    low: float = 1e-5

    def __post_init__(self) -> None:
        if not self.half > 0:
            raise UserError(f"half = {self.half:g} of a triangle is no number of epochs above 0")

    def at(self, progress: Progress) -> float:
        way = _ended(progress) / self.half % 2  # 0 to 1 up, 1 to 2 down
        return self.low + (self.peak - self.low) * min(way, 2 - way)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Rises linearly over the first `epochs` from `start` to what `then` prescribes, and follows it from there.

    The rate is that at the end of a step, so that the first is not lost. `ahead` epochs count as done at the beginning:
    the code of https://arxiv.org/abs/2010.00467 has (t + 1) / 15 of the rate after t epochs, which is `ahead=1`, and
    `capped=False`, as (t + 1) / 15 is above 1 in the last of the 15. Smooth AT warms from 0.1: `start=0.1`.
    """

    then: MultiStep | Cyclic | Cosine | Linear | Triangle
    epochs: float = 5.0
    start: float = 0.0
    ahead: float = 0.0
    capped: bool = True

    def at(self, progress: Progress) -> float:
        then = self.then.at(progress)
        return self.start + _risen(progress, self.epochs, self.ahead, self.capped) * (then - self.start)


def _ended(progress: Progress) -> float:
    """The epoch at the end of the step to come."""
    return (progress.step + 1) / progress.steps_per_epoch


def _risen(progress: Progress, epochs: float, ahead: float, capped: bool) -> float:
    """The share of a warm-up that is done, 1 after it; not `capped`, it may be above 1 before its end."""
    now = _ended(progress)
    if epochs <= 0 or now >= epochs:
        return 1.0
    share = (now + ahead) / epochs
    return min(1.0, share) if capped else share


@dataclass(frozen=True, slots=True)
class Ramp:
    """0 before epoch `start`, `peak` after epoch `end`, between them peak x exp(-5 (1 - t)²), t from 0 to 1.

    The ramp-up of https://arxiv.org/abs/1610.02242. Epochs are counted from 1, as in the papers that use it: the first
    has the number 1, and all steps of an epoch have the same value.
    """

    peak: float
    start: float = 90.0
    end: float = 150.0

    def __post_init__(self) -> None:
        if not self.start <= self.end:
            raise UserError(f"a ramp ends at epoch {self.end:g} and begins after that, at {self.start:g}")

    def at(self, progress: Progress) -> float:
        number = int(progress.epoch) + 1
        if number < self.start:
            return 0.0
        if number >= self.end:
            return self.peak
        share = (number - self.start) / (self.end - self.start)
        return self.peak * math.exp(-5 * (1 - share) ** 2)


@dataclass(frozen=True, slots=True)
class Cycle(Generic[T_co]):
    """Repeats a list of (number of steps, value) for ever. Steps are whole numbers, so no stage drifts.

    With `epochs` a period lasts so many epochs, however many steps that is, and the numbers are its shares. Training
    ends with a period, and so with the last stage; what is no whole number of periods is cut off at the beginning.
    """

    stages: tuple[tuple[int, T_co], ...]
    epochs: float | None = None

    def __post_init__(self) -> None:
        lengths = [length for length, _ in self.stages]
        if not lengths or any(not isinstance(length, int) or length < 1 for length in lengths):
            raise UserError(f"the stages of a cycle last whole steps, at least one each, not {lengths}")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise UserError(f"epochs = {self.epochs:g} of a period is not above 0")

    def at(self, progress: Progress) -> T_co:
        parts = sum(length for length, _ in self.stages)
        period, step = parts, progress.step
        if self.epochs is not None:
            period = max(len(self.stages), round(self.epochs * progress.steps_per_epoch))
            step -= progress.epochs * progress.steps_per_epoch
        where, done = step % period, 0
        for length, value in self.stages:
            done += length
            if where < round(done * period / parts):
                return value
        raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True)
class PiecewiseConstant(Generic[T_co]):
    """One value after the other, each from an epoch on: `PiecewiseConstant(((0, PGD(..)), (60, PGD(.., patience=1))))`.

    A value may be a schedule itself, which sees the epochs of the whole training.
    """

    phases: tuple[tuple[float, T_co | Schedule[T_co]], ...]

    def __post_init__(self) -> None:
        begins = [begin for begin, _ in self.phases]
        if not begins or begins[0] != 0 or begins != sorted(set(begins)):
            raise UserError(f"phases begin at epoch 0 and each later than the one before, not at {begins}")

    def at(self, progress: Progress) -> T_co:
        return at([value for begin, value in self.phases if begin <= progress.epoch][-1], progress)


@dataclass(frozen=True, slots=True)
class EpsWarmUp:
    """An attack whose eps rises linearly over the first `epochs` (https://arxiv.org/abs/2010.00467: 10 to 20).

    A step size that the attack was given stays as it is; one that it takes from eps rises too. `ahead` and `capped` are
    as in `WarmUp`.
    """

    attack: Attack
    epochs: float = 10.0
    ahead: float = 0.0
    capped: bool = True

    def __post_init__(self) -> None:
        if not hasattr(self.attack, "threat"):
            raise UserError(f"{type(self.attack).__name__} has no eps of its own that could rise")

    def at(self, progress: Progress) -> Attack:
        share = _risen(progress, self.epochs, self.ahead, self.capped)
        attack: Any = self.attack
        if share == 1:
            return attack
        return replace(attack, threat=replace(attack.threat, eps=share * attack.threat.eps))
