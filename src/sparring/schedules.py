"""Values that change during training, as data: they print, compare and serialise.

Each is a function of `Progress` alone, so a resumed run follows the same values.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Generic

from .core import Attack, Progress, T_co
from .errors import UserError


@dataclass(frozen=True, slots=True)
class Piecewise:
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
class WarmUp:
    """Rises linearly over the first `epochs` to what `then` prescribes, and follows it from there."""

    then: Piecewise | Cyclic | Cosine
    epochs: float = 5.0

    def at(self, progress: Progress) -> float:
        # (step + 1) so that the first step is not lost; capped, for a fraction of an epoch may overshoot
        share = (progress.step + 1) / (self.epochs * progress.steps_per_epoch) if self.epochs > 0 else 1.0
        return min(1.0, share) * self.then.at(progress)


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
    """Repeats a list of (number of steps, value) for ever. Steps are whole numbers, so no stage drifts."""

    stages: tuple[tuple[int, T_co], ...]

    def __post_init__(self) -> None:
        lengths = [length for length, _ in self.stages]
        if not lengths or any(not isinstance(length, int) or length < 1 for length in lengths):
            raise UserError(f"the stages of a cycle last whole steps, at least one each, not {lengths}")

    @property
    def period(self) -> int:
        """After so many steps it begins again."""
        return sum(length for length, _ in self.stages)

    def at(self, progress: Progress) -> T_co:
        where = progress.step % self.period
        for length, value in self.stages:
            if where < length:
                return value
            where -= length
        raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True)
class Phases(Generic[T_co]):
    """One value after the other, each from an epoch on: `Phases(((0, PGD(..)), (60, PGD(.., patience=1))))`."""

    phases: tuple[tuple[float, T_co], ...]

    def __post_init__(self) -> None:
        begins = [begin for begin, _ in self.phases]
        if not begins or begins[0] != 0 or begins != sorted(set(begins)):
            raise UserError(f"phases begin at epoch 0 and each later than the one before, not at {begins}")

    def at(self, progress: Progress) -> T_co:
        return [value for begin, value in self.phases if begin <= progress.epoch][-1]


@dataclass(frozen=True, slots=True)
class EpsWarmUp:
    """An attack whose eps rises linearly over the first `epochs` (https://arxiv.org/abs/2010.00467: 10 to 20).

    A step size that the attack was given stays as it is; one that it takes from eps rises too.
    """

    attack: Attack
    epochs: float = 10.0

    def __post_init__(self) -> None:
        if not hasattr(self.attack, "threat"):
            raise UserError(f"{type(self.attack).__name__} has no eps of its own that could rise")

    def at(self, progress: Progress) -> Attack:
        share = (progress.step + 1) / (self.epochs * progress.steps_per_epoch) if self.epochs > 0 else 1.0
        attack: Any = self.attack
        if share >= 1:
            return attack
        return replace(attack, threat=replace(attack.threat, eps=share * attack.threat.eps))
