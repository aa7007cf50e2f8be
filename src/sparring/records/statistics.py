"""Verdicts on claims about trainings: numbers of each seed, and Student's t over the seeds. Needs no torch."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ..core.errors import UserError
from .estimates import Estimate, Mean, Share
from .outcomes import Outcomes, Statistic
from .results import Array
from .sequential import levels

Outcome = Literal["supported", "not supported", "undecided", "not testable here"]

DECIDED: tuple[Outcome, ...] = ("supported", "not supported")
LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
"""Probability of an error in each direction, for a claim or for a family of claims together."""
_ALIKE = "it is the same for all seeds, which does not show their spread"
_BY_SIGNS = "it is the same for all seeds: by the sign test, of most trainings"


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of a paper, with a number of each seed whose mean has to be above `more_than` if the claim holds.

    Args:
        sentence: The claim.
        rule: The number and its bound in words.
        statistic: Function that computes the number of each seed from accuracies and other numbers of that seed.
        more_than: The bound.
        unit: Unit of a number that is no accuracy; that of an accuracy is points.
        within: For a claim of no difference, the margin: the mean has to be between -within and within.
        most: True to count seeds instead: of more than half of all trainings the number has to be above the bound.
        family: Claims of a family are parts of one claim of the paper, and are corrected for their number.
        untestable: Reason why the setting cannot decide the claim, "" if it can.
        headline: What the abstract of the paper says of it, in our words; "" for a claim that is not in the abstract.

    Raises:
        UserError: If the bound is not finite, or the margin is not positive or is given with another bound.
    """

    sentence: str
    rule: str
    statistic: Statistic
    more_than: float = 0.0
    unit: str | None = None
    within: float | None = None
    most: bool = False
    family: str = ""
    untestable: str = ""
    headline: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.more_than):
            raise UserError(f"{self.sentence!r}: the bound of a claim is a finite number, not {self.more_than:g}")
        if self.within is not None and not (self.within > 0 and self.more_than == 0 and not self.most):
            raise UserError(
                f"{self.sentence!r}: the margin of a claim of no difference is a number above 0 without another bound, "
                f"not within = {self.within:g}, more_than = {self.more_than:g}, most = {self.most}"
            )

    def outcome(self, low: float, high: float) -> Outcome:
        """Return what bounds for the mean, or for the share of trainings, say of the claim."""
        if self.within is not None:
            inside, outside = -self.within < low and high < self.within, low >= self.within or high <= -self.within
        else:
            bound = 0.5 if self.most else self.more_than
            inside, outside = low > bound, high <= bound
        return "supported" if inside else "not supported" if outside else "undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a claim: supported if its whole interval agrees with it, not supported if no part of it does.

    Args:
        claim: The claim.
        rule: The number and its bound in words.
        value: Mean over the seeds, or the share of them.
        low: Lower bound of the interval.
        high: Upper bound of the interval.
        outcome: The verdict.
        unit: Unit of the number; None for points of accuracy.
        level: Confidence of the interval: 0.95 for a claim alone, more in a family or at an interim look.
        seeds: Number of seeds.
        deviation: Standard deviation of the number between seeds.
        detectable: Smallest effect beyond the bound that would be supported in 80 % of such studies; for a claim of no
            difference the smallest margin, for a share of trainings the smallest share. None if seeds do not show it.
        reason: Why a claim is not testable here, or stays undecided in any case, or that it is of most trainings.
    """

    claim: str
    rule: str
    value: float
    low: float
    high: float
    outcome: Outcome
    unit: str | None
    level: float
    seeds: int
    deviation: float
    detectable: float | None
    reason: str = ""

    def found(self) -> str:
        """Return the number with its interval."""
        if self.unit is None:
            value, low, high = (100 * number for number in (self.value, self.low, self.high))
            return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
        return f"{self.value:+.3g} [{self.low:+.3g}, {self.high:+.3g}] {self.unit}"

    def power(self) -> str:
        """Return the smallest detectable effect in words."""
        if self.detectable is None:
            return "unknown"
        return f"{100 * self.detectable:.1f}" if self.unit is None else f"{self.detectable:.3g} {self.unit}"

    def plain(self) -> dict[str, Any]:
        """Return the verdict as JSON."""
        return asdict(self)


def judge(claims: Sequence[Claim], outcomes: Outcomes, looks: tuple[int, ...] = ()) -> tuple[Verdict, ...]:
    """Decide claims.

    Claims of a family are decided by Holm's procedure, once for "supported" and once for "not supported": in each
    direction, the probability of any error in a family is at most `TAIL`, however its claims depend on each other.

    Args:
        claims: The claims.
        outcomes: Results of the trainings.
        looks: Numbers of seeds at which claims are looked at, if seeds are added until claims are decided; each claim
            keeps the verdict of the look that decided it.

    Returns:
        A verdict on each.

    Raises:
        UserError: If the number of a claim is NaN or infinite.

    References:
        Holm, https://www.jstor.org/stable/4615733
    """
    tests = [_test(claim, outcomes, looks) for claim in claims]
    families: dict[str, list[_Test]] = {}
    for number, test in enumerate(tests):
        families.setdefault(test.claim.family or f"alone {number}", []).append(test)
    found = {id(test): verdict for family in families.values() for test, verdict in _of_family(family)}
    return tuple(found[id(test)] for test in tests)


def untestable(claims: Sequence[Claim], seeds: int) -> dict[str, str]:
    """Return the claims that no result could decide with so many seeds, or in this setting, each with the reason."""
    sizes = Counter(claim.family for claim in claims)
    found = {}
    for claim in claims:
        tail = TAIL / (sizes[claim.family] if claim.family else 1)
        nothing: Estimate = Share(np.zeros(seeds, dtype=bool)) if claim.most else Mean(np.zeros(seeds))
        if reason := claim.untestable or nothing.hopeless(tail, None):
            found[claim.sentence] = reason
    return found


def _of_family(tests: list["_Test"]) -> list[tuple["_Test", Verdict]]:
    up, down = _step_down(tests, "supported"), _step_down(tests, "not supported")
    return [(test, test.verdict(more, less)) for test, more, less in zip(tests, up, down, strict=True)]


def _step_down(tests: list["_Test"], outcome: Outcome) -> list[float]:
    """Return the probability of an error at which Holm's procedure comes to test each claim for an outcome."""
    left, tails = list(range(len(tests))), [TAIL / len(tests)] * len(tests)
    while left:
        tail = TAIL / len(left)
        for number in left:
            tails[number] = tail
        kept = [number for number in left if tests[number].at(tail).outcome != outcome]
        if len(kept) == len(left):
            break
        left = kept
    return tails


# -- one claim


class _Look(NamedTuple):
    """Result of one look at a claim: outcome and reason, if errors have probability `tail` in each direction."""

    estimate: Estimate
    tail: float
    outcome: Outcome
    reason: str = ""


class _Test(NamedTuple):
    """A claim, and what is known of its number at each look."""

    claim: Claim
    found: tuple[Estimate, ...]
    looks: tuple[int, ...]

    def at(self, tail: float) -> _Look:
        """Return the first look that decides, or the last, if errors have this probability over all looks."""
        spent = levels(self.looks, tail) if self.looks else (tail,)
        # later looks are less strict, and so is Holm's procedure when others of the family are decided
        least = max(levels(self.looks, TAIL)) if self.looks else tail
        seen = [_look(self.claim, *each, least) for each in zip(self.found, spent, strict=False)]
        early = bool(self.looks) and seen[0].estimate.seeds < self.looks[0]  # a look that the levels do not know
        if early and seen[0].outcome != "not testable here":
            return seen[0]._replace(outcome="undecided", reason=f"it is looked at from {self.looks[0]} seeds on")
        return next((look for look in seen if look.outcome in DECIDED), seen[-1])

    def verdict(self, up: float, down: float) -> Verdict:
        """Return the verdict of the look that decided first, if each direction is tested with an error of its own."""
        ups, downs = self.at(up), self.at(down)
        decided = [look for look, outcome in ((ups, "supported"), (downs, "not supported")) if look.outcome == outcome]
        first = min(decided, key=lambda look: look.estimate.seeds, default=downs if down <= up else ups)
        return _verdict(self.claim, first)


def _test(claim: Claim, outcomes: Outcomes, looks: tuple[int, ...]) -> _Test:
    seeds = outcomes.seeds(claim.statistic)
    found: list[Estimate] = []
    for count in [look for look in looks if look <= seeds] or [seeds]:
        mean = outcomes.estimate(claim.statistic, count, cautious=True)
        if not math.isfinite(mean.value):
            raise UserError(f"the number of the claim {claim.sentence!r} is not defined: it is NaN or infinite")
        found.append(Share(mean.values > claim.more_than) if claim.most else mean)
    return _Test(claim, tuple(found), looks)


def _look(claim: Claim, estimate: Estimate, tail: float, least: float) -> _Look:
    """Test a claim at level `tail`; it is not testable only if it is not at `least`, the least strict level to come."""
    if claim.untestable:
        return _Look(estimate, tail, "not testable here", claim.untestable)
    same = estimate if isinstance(estimate, Mean) and estimate.alike else None
    tested = estimate.seeds > 1 and (same is None or same.by_signs(tail))
    outcome = claim.outcome(*estimate.interval(tail)) if tested else "undecided"
    if outcome == "undecided" and (reason := estimate.hopeless(least, claim.within)):
        return _Look(estimate, tail, "not testable here", reason)
    if same is None:
        return _Look(estimate, tail, outcome)
    return _Look(estimate, tail, outcome, _ALIKE if not tested else _BY_SIGNS if outcome in DECIDED else "")


def _verdict(claim: Claim, look: _Look) -> Verdict:
    estimate, tail, outcome, reason = look
    low, high = estimate.interval(tail)
    return Verdict(
        claim=claim.sentence,
        rule=claim.rule,
        value=estimate.value,
        low=low,
        high=high,
        outcome=outcome,
        unit="(share of trainings)" if claim.most else claim.unit,
        level=1 - 2 * tail,
        seeds=estimate.seeds,
        deviation=estimate.deviation,
        detectable=None if claim.untestable else estimate.detectable(tail, claim.within),
        reason=reason,
    )


def interval(
    values: Array, statistic: Callable[..., Array], replicas: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a statistic (`np.mean`, `np.median`) of `values` `[N]`: percentiles of bootstrap draws."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(replicas, len(values)))
    low, high = np.quantile(statistic(values[drawn], axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
