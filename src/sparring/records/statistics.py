"""Confidence intervals for comparisons of trainings, resampled over seeds and examples together. Needs no torch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from ..core.errors import UserError
from .results import Array

Cell: TypeAlias = tuple[str, str, str]  # training, which of its weights, adversary or name of a number
Outcome = Literal["supported", "not supported", "undecided"]

REPLICAS = 4000
LEVEL = 0.95
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Cells:
    """Accuracies, 0 to 1, and other numbers of trainings, each `[R]`.

    They are observed (R = 1), or R replicas from resampling.
    """

    values: Mapping[Cell, Array]

    def __call__(self, arm: str, under: str, which: str = "last") -> Array:
        return self.values[arm, which, under]


Statistic: TypeAlias = Callable[[Cells], Array]


def observed(flags: Mapping[Cell, Array], numbers: Mapping[Cell, Array] | None = None) -> Cells:
    """Observed accuracies: means of `flags` `[S, N]` (right or not, by seed and example), and of `numbers` `[S]`."""
    return Cells({cell: np.array([each.mean()]) for cell, each in {**flags, **(numbers or {})}.items()})


@dataclass(frozen=True, slots=True)
class Resampled:
    """Replicas of the accuracies of `seeds` trainings: with seeds and examples drawn, and with only the seeds drawn."""

    both: Cells
    seeds_alone: Cells
    seeds: int

    def interval(self, statistic: Statistic, value: float) -> tuple[float, float]:
        """95 % interval around the observed `value`: Student's t, with the standard error of the replicas.

        Its degrees of freedom are Satterthwaite's (https://doi.org/10.2307/3002019): S - 1 if all variance is between
        seeds, many if it is between examples. A percentile interval of a few seeds would never reach beyond them.
        """
        from scipy.stats import t

        total = float(statistic(self.both).var())
        between = min(float(statistic(self.seeds_alone).var()), total)
        real = self.seeds > 1 and between > _ROUNDING * total
        freedom = (self.seeds - 1) * (total / between) ** 2 if real else math.inf
        half = float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(total)
        return value - half, value + half


def resampled(
    flags: Mapping[Cell, Array],
    replicas: int = REPLICAS,
    seed: int = 0,
    numbers: Mapping[Cell, Array] | None = None,
) -> Resampled:
    """Accuracies in `replicas` draws of seeds and examples.

    The draws are the same in all cells, so that differences are paired; `numbers` `[S]` vary with the seeds alone. Only
    S - 1 of S seeds are drawn, which makes the variance between seeds unbiased for few seeds (the rescaling bootstrap
    of Rao and Wu, https://doi.org/10.1080/01621459.1988.10478591, with m = n - 1). With one seed, the intervals cover
    the variation between examples alone.
    """
    shapes = {each.shape for each in flags.values()}
    if len(shapes) != 1:
        raise UserError(f"a paired comparison needs the same seeds and examples everywhere, not {sorted(shapes)}")
    ((seeds, examples),) = shapes
    rng = np.random.default_rng(seed)
    chosen = rng.integers(seeds, size=(replicas, max(1, seeds - 1)))
    weights = rng.multinomial(examples, np.full(examples, 1 / examples), size=replicas).astype(np.float32) / examples
    rows = np.arange(replicas)[:, None]
    both = {cell: (weights @ each.T.astype(np.float32))[rows, chosen].mean(1) for cell, each in flags.items()}
    alone = {cell: each.mean(1)[chosen].mean(1) for cell, each in flags.items()}
    others = {cell: each[chosen].mean(1) for cell, each in (numbers or {}).items()}
    return Resampled(Cells({**both, **others}), Cells({**alone, **others}), seeds)


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of a paper, with a number that has to be above `more_than` if the claim holds.

    Args:
        sentence: The claim.
        rule: The number in words.
        statistic: Function that computes the number from accuracies and other numbers of the trainings.
        more_than: Bound that the number has to exceed.
        unit: Unit of a number that is no accuracy; the unit of an accuracy is points.
    """

    sentence: str
    rule: str
    statistic: Statistic
    more_than: float = 0.0
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a claim: supported if its whole interval is above the bound, not supported if no part of it is.

    One seed decides nothing, nor do numbers of trainings that are equal for all seeds, since they do not show their
    spread.
    """

    claim: str
    rule: str
    value: float
    low: float
    high: float
    outcome: Outcome
    unit: str | None = None

    def found(self) -> str:
        """The number with its interval."""
        if self.unit is None:
            value, low, high = (100 * number for number in (self.value, self.low, self.high))
            return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
        return f"{self.value:+.3g} [{self.low:+.3g}, {self.high:+.3g}] {self.unit}"

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def judge(claim: Claim, seen: Cells, replicas: Resampled) -> Verdict:
    """Decide a claim from the observed numbers `seen` and their replicas."""
    value = float(claim.statistic(seen)[0])
    if math.isnan(value):
        raise UserError(f"the number of the claim {claim.sentence!r} is not defined: it is NaN")
    low, high = replicas.interval(claim.statistic, value)
    outcome: Outcome = "undecided"
    telling = replicas.seeds > 1 and (claim.unit is None or low < high)
    if telling and low > claim.more_than:
        outcome = "supported"
    elif telling and high <= claim.more_than:
        outcome = "not supported"
    return Verdict(claim.sentence, claim.rule, value, low, high, outcome, claim.unit)


def interval(
    values: Array, statistic: Callable[..., Array], replicas: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a statistic (`np.mean`, `np.median`) of `values` `[N]`: percentiles of bootstrap draws."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(replicas, len(values)))
    low, high = np.quantile(statistic(values[drawn], axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
