"""How sure a comparison of trainings is: resampling over seeds and examples together. Needs no torch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from ..core.errors import UserError
from .results import Array

Cell: TypeAlias = tuple[str, str, str]  # which training, which of its weights, under what
Outcome = Literal["supported", "not supported", "undecided"]

REPLICAS = 4000
LEVEL = 0.95
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Cells:
    """Accuracies, 0 to 1, and other numbers of trainings, each `[R]`: as observed (R = 1), or in R replicas that
    resampling gave.
    """

    values: Mapping[Cell, Array]

    def __call__(self, arm: str, under: str, which: str = "last") -> Array:
        return self.values[arm, which, under]


Statistic: TypeAlias = Callable[[Cells], Array]


def observed(flags: Mapping[Cell, Array], numbers: Mapping[Cell, Array] | None = None) -> Cells:
    """The accuracies themselves. `flags` are `[S, N]`: right or not, by seed and example; `numbers` are `[S]`."""
    return Cells({cell: np.array([each.mean()]) for cell, each in {**flags, **(numbers or {})}.items()})


@dataclass(frozen=True, slots=True)
class Resampled:
    """Replicas of the accuracies of `seeds` trainings: with seeds and examples drawn, and with seeds alone."""

    both: Cells
    seeds_alone: Cells
    seeds: int

    def interval(self, statistic: Statistic, value: float) -> tuple[float, float]:
        """95 % around the observed `value`: Student's t, with the standard error that the replicas have.

        Its degrees of freedom are Satterthwaite's (https://doi.org/10.2307/3002019): S - 1 where seeds make all the
        difference, many where examples do. A percentile of a few seeds would never lie outside of them.
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
    """Accuracies in so many draws of seeds and examples, the same in all cells: differences are paired. `numbers` `[S]`
    vary with the seeds alone.

    S - 1 of S seeds are drawn, which makes the variance between seeds unbiased where few were trained (the rescaling
    bootstrap of Rao and Wu, https://doi.org/10.1080/01621459.1988.10478591, with m = n - 1). With one seed, the
    intervals are about the examples alone.
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
    """What a paper says, and a number that would have to be above `more_than` if it holds.

    `sentence` is the claim, `rule` says the number in words, `statistic` computes it from accuracies and other numbers.
    What is no accuracy has a `unit`, that of an accuracy is points.
    """

    sentence: str
    rule: str
    statistic: Statistic
    more_than: float = 0.0
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a claim came to: supported if the whole interval is above the bound, not supported if none of it is.

    One seed decides nothing, nor do numbers of trainings that are the same for all seeds: they say nothing of their
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
    value = float(claim.statistic(seen)[0])
    if math.isnan(value):
        raise UserError(f"the number of {claim.sentence!r} is not defined")
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
    """95 % around a statistic (`np.mean`, `np.median`) of `values` `[N]`: percentiles over draws with replacement."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(replicas, len(values)))
    low, high = np.quantile(statistic(values[drawn], axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
