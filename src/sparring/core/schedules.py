"""Values that change during training, as data that can be printed, compared and serialised.

Each schedule is a function of `Progress` alone, so a resumed run follows the same values.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic

from .errors import UserError, need_whole
from .types import Attack, Progress, Schedule, T_co, at


@dataclass(frozen=True, slots=True)
class MultiStep:
    """A value that is multiplied by `factor` at each milestone.

    Args:
        peak: The value at the beginning.
        milestones: Epochs at which the value changes.
        factor: Factor of each change.
    """

    peak: float
    milestones: tuple[float, ...] = ()
    factor: float = 0.1

    def at(self, progress: Progress) -> float:
        return self.peak * self.factor ** sum(progress.epoch >= m for m in self.milestones)


@dataclass(frozen=True, slots=True)
class ExponentialDecay:
    """A value that is multiplied by `factor` every so many epochs, for the whole training.

    Args:
        peak: The value at the beginning.
        factor: Factor of each change: 0.97 for EfficientNet.
        every: Epochs between two changes: 2.4 for EfficientNet.

    Raises:
        UserError: If `every` is not above 0.

    References:
        EfficientNet: https://arxiv.org/abs/1905.11946.
    """

    peak: float
    factor: float = 0.97
    every: float = 2.4

    def __post_init__(self) -> None:
        if not self.every > 0:
            raise UserError(f"every = {self.every:g} of an exponential decay is no number of epochs above 0")

    def at(self, progress: Progress) -> float:
        # of epochs such as 1.1 x 3 rounding must not make a change come a step late
        return self.peak * self.factor ** math.floor(progress.epoch / self.every * (1 + 1e-9))


@dataclass(frozen=True, slots=True)
class Cyclic:
    """A value that rises linearly from 0 to `peak` and falls linearly back to 0, once per training.

    The value is taken at the middle of each step, so that no step has rate 0.

    Args:
        peak: The largest value.
        top: Share of training after which the peak is reached, in (0, 1): 0.5 in fast adversarial training, 0.4 in
            the code of the paper on robust overfitting.

    Raises:
        UserError: If `top` is not in (0, 1).

    References:
        Fast adversarial training: https://arxiv.org/abs/2001.03994.
        Robust overfitting: https://arxiv.org/abs/2002.11569.
    """

    peak: float
    top: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.top < 1:
            raise UserError(f"top = {self.top:g} is not in (0, 1): it is the share of training before the peak")

    def at(self, progress: Progress) -> float:
        done = progress.done + 0.5 / (progress.steps_per_epoch * progress.epochs)
        return self.peak * min(done / self.top, (1 - done) / (1 - self.top))


@dataclass(frozen=True, slots=True)
class Cosine:
    """A value that falls along half a cosine.

    Args:
        peak: The value at the beginning.
        final: The value at the end.

    References:
        SGDR, here without restarts: https://arxiv.org/abs/1608.03983.
    """

    peak: float
    final: float = 0.0

    def at(self, progress: Progress) -> float:
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * progress.done))


@dataclass(frozen=True, slots=True)
class Linear:
    """Linear interpolation between points.

    From 0.1 at epoch 100 to 0 at epoch 105 is `Linear(((100, 0.1), (105, 0.0)))`. The linear decay of the code of Pang
    et al. is `PiecewiseConstant(((0, 0.1), (100, Linear(((100, 0.01), (105, 0.0))))))`. A step counts at its end, as in
    that code: the last step before a point has the value of the point.

    Args:
        points: Pairs (epoch, value), at least one, in the order of the epochs. Before the first and after the last
            point, the value is that of the point.

    Raises:
        UserError: If there is no point, or the epochs do not increase.

    References:
        Pang et al.: https://arxiv.org/abs/2010.00467.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        epochs = [epoch for epoch, _ in self.points]
        if not epochs or epochs != sorted(set(epochs)):
            raise UserError(
                f"the points of a line are at epochs {epochs}: give at least one, each at a later epoch than the last"
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
    """A value that rises from `low` to `peak` and falls again, repeatedly for the whole training.

    The period does not depend on the length of training; `Cyclic` rises and falls once per training. A step counts at
    its end. The defaults, 18 epochs and 1e-5, are from the code of Pang et al., who use them with Adam.

    Args:
        peak: The largest value.
        half: Epochs of each rise and of each fall.
        low: The smallest value.

    Raises:
        UserError: If `half` is not above 0.

    References:
        Triangular policy: https://arxiv.org/abs/1506.01186.
        Pang et al.: https://arxiv.org/abs/2010.00467.
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
    """A linear warm-up before another schedule.

    The value rises from `start` to that of `then` over the first `epochs`, and follows `then` afterwards. It is taken
    at the end of each step, so that the first step is not lost. The code of Pang et al. uses (t + 1) / 15 of the rate
    after t epochs: that is `ahead=1`, and `capped=False`, as (t + 1) / 15 is above 1 in the last of the 15. Goyal et
    al. and smooth AT warm up from their rate for 256 images, `start=0.1`, to that of a larger batch (`scaled_lr`).

    Args:
        then: The schedule after the warm-up.
        epochs: Length of the warm-up.
        start: The value at the beginning.
        ahead: Epochs of the warm-up that count as done at the beginning.
        capped: Limit the share of the warm-up that is done to 1.

    References:
        Goyal et al.: https://arxiv.org/abs/1706.02677.
        Pang et al.: https://arxiv.org/abs/2010.00467.
    """

    then: MultiStep | ExponentialDecay | Cyclic | Cosine | Linear | Triangle
    epochs: float = 5.0
    start: float = 0.0
    ahead: float = 0.0
    capped: bool = True

    def at(self, progress: Progress) -> float:
        then = self.then.at(progress)
        return self.start + _risen(progress, self.epochs, self.ahead, self.capped) * (then - self.start)


def scaled_lr(lr: float, batch_size: int, reference: int = 256) -> float:
    """Scales a learning rate with the batch size, by the linear rule of large-batch training.

    A rate that is much larger than `lr` needs a warm-up from it: `WarmUp(MultiStep(scaled_lr(0.1, 2048)), 5, 0.1)`.

    Args:
        lr: The learning rate for batches of `reference` images.
        batch_size: Number of images in a batch, of all devices together.
        reference: Batch size for which `lr` was chosen.

    Returns:
        `lr` x `batch_size` / `reference`.

    Raises:
        UserError: If a batch size is no whole number from 1 on.

    References:
        Linear scaling and warm-up: https://arxiv.org/abs/1706.02677.
    """
    need_whole("batch_size", batch_size)
    need_whole("reference", reference)
    return lr * batch_size / reference


def _ended(progress: Progress) -> float:
    """Return the epoch at the end of the coming step."""
    return (progress.step + 1) / progress.steps_per_epoch


def _risen(progress: Progress, epochs: float, ahead: float, capped: bool) -> float:
    """Return the share of a warm-up that is done: 1 after its end; above 1 before its end only if not `capped`."""
    now = _ended(progress)
    if epochs <= 0 or now >= epochs:
        return 1.0
    share = (now + ahead) / epochs
    return min(1.0, share) if capped else share


@dataclass(frozen=True, slots=True)
class Ramp:
    """A weight that is 0 at first and rises exponentially to `peak`.

    It is 0 before epoch `start`, `peak` after epoch `end`, and peak x exp(-5 (1 - t)²) between them, with t from 0 to
    1. Epochs are counted from 1, as in the papers that use it: the first epoch has the number 1, and all steps of an
    epoch have the same value.

    Args:
        peak: The final value.
        start: Number of the epoch at which the value begins to rise.
        end: Number of the epoch from which the value is `peak`.

    Raises:
        UserError: If `start` is after `end`.

    References:
        Temporal ensembling: https://arxiv.org/abs/1610.02242.
    """

    peak: float
    start: float = 90.0
    end: float = 150.0

    def __post_init__(self) -> None:
        if not self.start <= self.end:
            raise UserError(f"a ramp ends at epoch {self.end:g}, before it begins at {self.start:g}: exchange the two")

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
    """A list of stages that is repeated for the whole training.

    Without `epochs`, each stage lasts the given number of steps. These are whole numbers, so no stage drifts. With
    `epochs`, a period lasts that many epochs, whatever the number of steps, and the numbers of the stages are their
    shares of it. Training then ends with a full period, and so with the last stage: an incomplete period comes first.

    Args:
        stages: Pairs (number of steps or shares, value).
        epochs: Length of a period in epochs; None for the sum of the numbers of steps.

    Raises:
        UserError: If a stage does not last at least one whole step, or `epochs` is not above 0.
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
        where, done, end = step % period, 0, 0
        for later, (length, value) in zip(reversed(range(len(self.stages))), self.stages, strict=True):
            done += length
            end = min(max(round(done * period / parts), end + 1), period - later)  # each stage has a step at least
            if where < end:
                return value
        raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True)
class PiecewiseConstant(Generic[T_co]):
    """A sequence of values, each used from a given epoch on.

    For example `PiecewiseConstant(((0, PGD(..)), (60, PGD(.., patience=1))))`. A value may itself be a schedule, which
    is given the epochs of the whole training.

    Args:
        phases: Pairs (epoch, value); the first epoch is 0, and the epochs increase.

    Raises:
        UserError: If the first phase does not begin at epoch 0, or the epochs do not increase.
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
    """An attack whose eps rises linearly at the beginning of training.

    A step size that was given to the attack stays as it is; one that the attack derives from eps rises too. Pang et al.
    use 10 to 20 epochs.

    Args:
        attack: The attack, with its final eps.
        epochs: Length of the warm-up.
        ahead: Epochs of the warm-up that count as done at the beginning, as in `WarmUp`.
        capped: Limit the share of the warm-up that is done to 1, as in `WarmUp`.

    Raises:
        UserError: If the attack has no threat whose eps could rise.

    References:
        Pang et al.: https://arxiv.org/abs/2010.00467.
    """

    attack: Attack
    epochs: float = 10.0
    ahead: float = 0.0
    capped: bool = True

    def __post_init__(self) -> None:
        threat = getattr(self.attack, "threat", None)
        if not is_dataclass(threat) or "eps" not in [each.name for each in fields(threat)]:
            raise UserError(f"{type(self.attack).__name__} has no eps of its own that could rise")

    def at(self, progress: Progress) -> Attack:
        share = _risen(progress, self.epochs, self.ahead, self.capped)
        attack: Any = self.attack
        if share == 1:
            return attack
        # Not by `replace`, which would check the step size again: beside a small eps it is large, and means to be.
        smaller = copy.copy(attack)
        object.__setattr__(smaller, "threat", replace(attack.threat, eps=share * attack.threat.eps))
        return smaller


def scheduled(value: object) -> Iterator[Any]:
    """Yields the values that a schedule can give.

    Args:
        value: A schedule, or a value that does not change.

    Yields:
        The values of the schedules of this module, nested ones too; nothing for a schedule of another kind; and a value
        that does not change itself.
    """
    if isinstance(value, PiecewiseConstant):
        parts = [part for _, part in value.phases]
    elif isinstance(value, Cycle):
        parts = [part for _, part in value.stages]
    elif isinstance(value, EpsWarmUp):
        parts = [value.attack]
    elif isinstance(value, Schedule):
        parts = []
    else:
        yield value
        return
    for part in parts:
        yield from scheduled(part)
