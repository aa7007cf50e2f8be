"""Values that change during training, as data: they print, compare and serialise.

Each is a function of `Progress` alone, so a resumed run follows the same values.
"""

import math
from dataclasses import dataclass
from typing import Generic

from .core import Progress, T_co
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
class Cycle(Generic[T_co]):
    """Repeats a list of (number of steps, value) for ever. Steps are whole numbers, so no stage drifts."""

    stages: tuple[tuple[int, T_co], ...]

    def __post_init__(self) -> None:
        if not self.stages or any(length < 1 for length, _ in self.stages):
            raise UserError(f"a cycle needs stages of at least one step each, not {[s for s, _ in self.stages]}")

    def at(self, progress: Progress) -> T_co:
        where = progress.step % sum(length for length, _ in self.stages)
        for length, value in self.stages:
            if where < length:
                return value
            where -= length
        raise AssertionError("unreachable")
