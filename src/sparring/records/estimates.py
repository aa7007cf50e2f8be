"""Estimates from trainings with different seeds: intervals and the smallest detectable effect. Needs no torch."""

import math
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from .results import Array

POWER = 0.8
_TRIALS = 20_000
_ROUNDING = 1e-9


class Estimate(Protocol):
    """Estimate of a number from some seeds. A `tail` is the probability that one bound of an interval is wrong.

    `within` is the margin of a claim that there is no difference, None for another claim.
    """

    @property
    def value(self) -> float: ...
    @property
    def deviation(self) -> float: ...
    @property
    def seeds(self) -> int: ...
    def interval(self, tail: float) -> tuple[float, float]: ...
    def detectable(self, tail: float, within: float | None) -> float | None: ...
    def hopeless(self, tail: float, within: float | None) -> str: ...


class Mean(NamedTuple):
    """The mean of a number over seeds.

    Args:
        values: The number of each seed, `[S]`.
        shared: Variance of the mean that all seeds share, because they have the same test images.
    """

    values: Array
    shared: float = 0.0

    @property
    def value(self) -> float:
        return float(self.values.mean())

    @property
    def deviation(self) -> float:
        """Standard deviation between seeds; 0 for a single one."""
        return float(self.values.std(ddof=1)) if self.seeds > 1 else 0.0

    @property
    def seeds(self) -> int:
        return len(self.values)

    @property
    def alike(self) -> bool:
        """Return True if there are several seeds, and the number is the same for all."""
        return self.seeds > 1 and self.deviation <= _ROUNDING * max(1.0, abs(self.value))

    def interval(self, tail: float) -> tuple[float, float]:
        """Return the interval of `half_width`; a single seed shows only the variance of the test images."""
        half = float(half_width(self.deviation**2 / self.seeds, self.shared, self.seeds, tail))
        return self.value - half, self.value + half

    def detectable(self, tail: float, within: float | None) -> float | None:
        """Return the smallest effect beyond a bound (or the smallest margin) that such a study supports, mostly."""
        if self.seeds < 2 or self.alike:
            return None
        return detectable(self.deviation, self.shared, self.seeds, tail, equivalence=within is not None)

    def by_signs(self, tail: float) -> bool:
        """Return True if the sign test decides where seeds are alike; Student's t needs seeds that differ.

        If every other training was beyond a bound, all seeds would lie on this side of it with a probability of
        2^-seeds. Shares of examples are alike if they differ by less than an example; what other numbers differ by
        less than is not known.
        """
        return self.shared > 0 and 0.5**self.seeds <= tail

    def hopeless(self, tail: float, within: float | None) -> str:
        """Return why no result of such a study supports a claim, "" if some does."""
        if self.seeds < 2:
            return "one seed does not show how much trainings differ"
        images = float(half_width(0.0, self.shared, self.seeds, tail))
        if within is not None and images >= within:
            return f"the choice of the test images alone moves the number by {images / within:.1f} times the margin"
        return ""


class Share(NamedTuple):
    """The share of trainings with a property.

    Args:
        having: Which seeds have it, `[S]`.
    """

    having: Array

    @property
    def value(self) -> float:
        return float(self.having.mean())

    @property
    def deviation(self) -> float:
        return math.sqrt(self.value * (1 - self.value))

    @property
    def seeds(self) -> int:
        return len(self.having)

    def interval(self, tail: float) -> tuple[float, float]:
        """Return the interval of Clopper and Pearson (https://doi.org/10.1093/biomet/26.4.404)."""
        from scipy.stats import beta

        count = int(self.having.sum())
        low = float(beta.ppf(tail, count, self.seeds - count + 1)) if count else 0.0
        return low, float(beta.isf(tail, count + 1, self.seeds - count)) if count < self.seeds else 1.0

    def detectable(self, tail: float, within: float | None) -> float | None:
        """Return the smallest share that such a study mostly shows to be more than a half."""
        from scipy.stats import binom

        needed = int(binom.isf(tail, self.seeds, 0.5)) + 1
        if needed > self.seeds:
            return None
        drawn = np.random.default_rng(0).random((_TRIALS, self.seeds))
        return float(np.quantile(np.sort(drawn)[:, needed - 1], POWER))

    def hopeless(self, tail: float, within: float | None) -> str:
        """Return why no result of such a study shows more than a half, "" if some does."""
        needed = math.ceil(math.log2(1 / tail))
        return "" if self.seeds >= needed else f"it needs at least {needed} seeds, and there are {self.seeds}"


def half_width(between: float | Array, shared: float, seeds: int, tail: float) -> Array:
    """Return the distance of the bounds of an interval from the mean.

    It is that of Student's t over the seeds, and that of the normal distribution for what all seeds share, added as the
    legs of a right triangle. This errs at most as often as `tail` says; Satterthwaite's degrees of freedom, the usual
    approximation, do not: with three seeds, up to 1.4 times as often.

    Args:
        between: Variance of the mean that differs between seeds.
        shared: Variance of the mean that all seeds share.
        seeds: Number of seeds.
        tail: Probability that a bound is wrong.

    Returns:
        The distance, in the shape of `between`; 0 where nothing varies.
    """
    from scipy.special import ndtri, stdtrit

    student = stdtrit(seeds - 1, 1 - tail) if seeds > 1 else 0.0
    return np.hypot(student * np.sqrt(between), ndtri(1 - tail) * math.sqrt(shared))


@lru_cache(maxsize=4)
def _trials(seeds: int) -> tuple[Array, Array, Array]:
    """Return the mean and variance of normal numbers of seeds in each trial, and a number that the seeds share."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((_TRIALS, seeds))
    return drawn.mean(1), drawn.var(1, ddof=1), rng.standard_normal(_TRIALS)


def detectable(deviation: float, shared: float, seeds: int, tail: float, *, equivalence: bool = False) -> float:
    """Return the smallest effect that a study of this size supports in 80 % of all cases, by simulation.

    Args:
        deviation: Standard deviation of the number between seeds.
        shared: Variance of the mean that all seeds share.
        seeds: Number of seeds.
        tail: Probability that a bound of the interval is wrong.
        equivalence: True for the smallest margin that is supported where there is no difference at all.

    Returns:
        The distance of the mean from the bound, or the margin.
    """
    mean, variance, images = _trials(seeds)
    mean = deviation * mean + math.sqrt(shared) * images
    half = half_width(deviation**2 * variance / seeds, shared, seeds, tail)
    return float(np.quantile(np.abs(mean) + half if equivalence else half - mean, POWER))
