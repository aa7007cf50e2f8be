"""How sure a comparison of trainings is: resampling over seeds and examples together. Needs no torch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from .errors import UserError
from .scores import Array

Cell: TypeAlias = tuple[str, str, str]  # which training, which of its weights, under what
Outcome = Literal["supported", "not supported", "undecided"]

REPLICAS = 4000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Cells:
    """Accuracies, 0 to 1, each `[R]`: as observed (R = 1), or in R replicas that resampling gave."""

    values: Mapping[Cell, Array]

    def __call__(self, arm: str, under: str, which: str = "last") -> Array:
        return self.values[arm, which, under]


def observed(flags: Mapping[Cell, Array]) -> Cells:
    """The accuracies themselves. `flags` are `[S, N]`: right or not, by seed and example."""
    return Cells({cell: np.array([each.mean()]) for cell, each in flags.items()})


def resampled(flags: Mapping[Cell, Array], replicas: int = REPLICAS, seed: int = 0) -> Cells:
    """The accuracies in so many draws of seeds and examples, the same in all cells: differences are paired.

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
    return Cells({cell: (weights @ each.T.astype(np.float32))[rows, chosen].mean(1) for cell, each in flags.items()})


def interval(values: Array) -> tuple[float, float]:
    """The middle 95 % of the replicas."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a paper says, and a number that would have to be above `more_than` if it holds.

    `sentence` is the claim, `rule` says the number in words, `statistic` computes it from accuracies.
    """

    sentence: str
    rule: str
    statistic: Callable[[Cells], Array]
    more_than: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a claim came to: supported if the whole interval is above the bound, not supported if none of it is.

    One seed decides nothing.
    """

    claim: str
    rule: str
    value: float
    low: float
    high: float
    outcome: Outcome

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def judge(claim: Claim, flags: Mapping[Cell, Array], replicas: Cells) -> Verdict:
    value = float(claim.statistic(observed(flags))[0])
    low, high = interval(claim.statistic(replicas))
    if math.isnan(value):
        raise UserError(f"the number of {claim.sentence!r} is not defined")
    seeds = next(iter(flags.values())).shape[0]
    outcome: Outcome = "undecided"
    if seeds > 1 and low > claim.more_than:
        outcome = "supported"
    elif seeds > 1 and high <= claim.more_than:
        outcome = "not supported"
    return Verdict(claim.sentence, claim.rule, value, low, high, outcome)
