"""Resampling: intervals that cover what they should, differences that are paired, verdicts by a stated rule."""

import numpy as np
import pytest

from sparring.core.errors import UserError
from sparring.records.statistics import Claim, judge, observed, resampled


def cells(seed, rate, seeds=4, examples=200, between=0.0, extra=0.0):
    """Two trainings that differ by `extra`; seeds differ by a normal of size `between`."""
    rng = np.random.default_rng(seed)
    own = rate + between * rng.standard_normal((2, seeds, 1))
    hard = rng.random((1, 1, examples))  # the same examples are hard for both
    a, b = (hard[0] < own[0]), (hard[0] < own[1] + extra)
    return {("a", "last", "pgd"): a, ("b", "last", "pgd"): b}


def difference(c):
    return c("b", "pgd") - c("a", "pgd")


def test_what_is_observed_is_the_mean():
    flags = cells(0, 0.6)
    assert observed(flags)("a", "pgd")[0] == pytest.approx(flags["a", "last", "pgd"].mean())


def interval(flags, statistic, **how):
    value = float(statistic(observed(flags))[0])
    return resampled(flags, **how).interval(statistic, value)


def test_one_seed_gives_the_binomial_interval():
    flags = {("a", "last", "pgd"): np.arange(500)[None] < 300}
    half = 1.96 * np.sqrt(0.6 * 0.4 / 500)
    assert interval(flags, lambda c: c("a", "pgd")) == pytest.approx((0.6 - half, 0.6 + half), abs=0.002)


@pytest.mark.slow
@pytest.mark.parametrize(("between", "examples"), [(0.05, 1000), (0.03, 100), (0.0, 100)])
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_of_a_difference_covers_the_truth_as_often_as_it_says(seeds, between, examples):
    covered = 0
    for seed in range(100):
        flags = cells(seed, 0.6, seeds=seeds, between=between, examples=examples)
        low, high = interval(flags, difference, replicas=300, seed=seed)
        covered += low <= 0.0 <= high
    assert covered / 100 >= 0.89  # 0.95, less what 100 trials can miss it by


@pytest.mark.slow
def test_few_seeds_that_differ_give_the_interval_of_student():
    rates = np.array([0.5, 0.6, 0.7])
    flags = {("a", "last", "pgd"): np.arange(10_000)[None] < 10_000 * rates[:, None]}
    low, high = interval(flags, lambda c: c("a", "pgd"))
    half = 4.303 * rates.std(ddof=1) / np.sqrt(3)  # t with two degrees of freedom
    assert (low, high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.01)


def test_differences_are_paired():
    flags = cells(1, 0.6)  # the same examples, no difference between seeds: a and b agree everywhere
    assert interval(flags, difference) == (0.0, 0.0)
    low, high = interval(flags, lambda c: c("a", "pgd"))
    assert high - low > 0.05


@pytest.mark.parametrize(("extra", "outcome"), [(0.2, "supported"), (-0.2, "not supported"), (0.004, "undecided")])
def test_a_verdict_follows_its_interval(extra, outcome):
    flags = cells(2, 0.5, between=0.01, extra=extra)
    found = judge(Claim("b is better", "b - a", difference), observed(flags), resampled(flags))
    assert found.outcome == outcome
    assert found.found() == f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    assert found.low <= found.value <= found.high


def test_one_seed_decides_nothing():
    flags = cells(2, 0.5, seeds=1, extra=0.3)
    assert judge(Claim("b is better", "b - a", difference), observed(flags), resampled(flags)).outcome == "undecided"


def test_the_bound_of_a_claim_counts():
    flags = cells(2, 0.5, extra=0.2)
    replicas = resampled(flags)
    assert judge(Claim("much", "b - a", difference, more_than=0.1), observed(flags), replicas).outcome == "supported"
    assert (
        judge(Claim("more", "b - a", difference, more_than=0.4), observed(flags), replicas).outcome == "not supported"
    )


def test_other_examples_cannot_be_paired():
    flags = {("a", "last", "pgd"): np.ones((2, 5)), ("b", "last", "pgd"): np.ones((2, 6))}
    with pytest.raises(UserError, match="the same seeds and examples everywhere"):
        resampled(flags)


def test_numbers_of_trainings_vary_with_their_seeds_alone():
    """Three numbers: the mean, and Student's interval with two degrees of freedom."""
    values = np.array([1.0, 4.0, 2.5])
    flags = {("a", "last", "pgd"): np.ones((3, 50), dtype=bool)}
    numbers = {("a", "run", "length"): values, ("b", "run", "length"): values + 1}
    seen, replicas = observed(flags, numbers), resampled(flags, numbers=numbers)

    def statistic(c):
        return c("a", "length", "run")

    low, high = replicas.interval(statistic, float(statistic(seen)[0]))
    half = 4.303 * values.std(ddof=1) / np.sqrt(3)
    assert (low, high) == pytest.approx((2.5 - half, 2.5 + half), rel=0.06)
    steady = Claim("b is longer", "b - a", lambda c: c("b", "length", "run") - c("a", "length", "run"), 0.5, "(length)")
    found = judge(steady, seen, replicas)
    assert found.value == found.low == found.high == 1.0
    assert found.outcome == "undecided"  # three equal numbers say nothing of their spread
    assert found.plain()["unit"] == "(length)"
    assert found.found() == "+1 [+1, +1] (length)"
    longer = Claim("a is above -9", "a + 9", lambda c: c("a", "length", "run") + 9, unit="(length)")
    assert judge(longer, seen, replicas).outcome == "supported"
