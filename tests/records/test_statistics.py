"""Verdicts by a stated rule: intervals that cover what they should, families, claims of no difference, few seeds."""

import numpy as np
import pytest
from scipy import stats

from sparring.core.errors import UserError
from sparring.records.outcomes import Outcomes
from sparring.records.statistics import DECIDED, TAIL, Claim, judge, untestable


def cells(seed, rate, seeds=4, examples=200, between=0.0, extra=0.0):
    """Two trainings that differ by `extra`; seeds differ by a normal of size `between`."""
    rng = np.random.default_rng(seed)
    own = rate + between * rng.standard_normal((2, seeds, 1))
    hard = rng.random((1, 1, examples))  # the same examples are hard for both
    a, b = (hard[0] < own[0]), (hard[0] < own[1] + extra)
    return {("a", "last", "pgd"): a, ("b", "last", "pgd"): b}


def difference(c):
    return c("b", "pgd") - c("a", "pgd")


def numbers(**arms):
    """Numbers of trainings by seed."""
    return Outcomes({}, {(arm, "run", "n"): np.array(each, dtype=float) for arm, each in arms.items()})


def number(arm):
    return lambda c: c(arm, "n", "run")


def interval(flags, statistic):
    return Outcomes(flags).estimate(statistic).interval(TAIL)


def verdict(flags, **how):
    [found] = judge([Claim("b is better", "b - a", difference, **how)], Outcomes(flags))
    return found


# -- intervals


def test_what_is_observed_is_the_mean_over_seeds():
    flags = cells(0, 0.6)
    assert Outcomes(flags).estimate(difference).value == pytest.approx(
        flags["b", "last", "pgd"].mean() - flags["a", "last", "pgd"].mean()
    )


def test_one_seed_gives_the_binomial_interval():
    flags = {("a", "last", "pgd"): np.arange(500)[None] < 300}
    half = 1.96 * np.sqrt(0.6 * 0.4 / 500)
    assert interval(flags, lambda c: c("a", "pgd")) == pytest.approx((0.6 - half, 0.6 + half), abs=0.003)


@pytest.mark.slow
@pytest.mark.parametrize(("between", "examples"), [(0.05, 1000), (0.03, 100), (0.0, 100)])
@pytest.mark.parametrize("seeds", [3, 8])
def test_the_interval_of_a_difference_covers_the_truth_as_often_as_it_says(seeds, between, examples):
    covered = 0
    for seed in range(200):
        low, high = interval(cells(seed, 0.6, seeds=seeds, between=between, examples=examples), difference)
        covered += low <= 0.0 <= high
    assert covered / 200 >= 0.91  # 0.95, less what 200 trials can miss it by


def test_images_that_all_seeds_share_are_counted_once():
    """Seeds that agree on every image are no replications: the interval is that of the images."""
    one = np.random.default_rng(1).random((1, 400)) < 0.7
    low, high = interval({("a", "last", "pgd"): np.repeat(one, 10, axis=0)}, lambda c: c("a", "pgd"))
    assert (high - low) / 2 == pytest.approx(1.96 * one.std() / 20, rel=0.1)


def test_images_on_which_seeds_are_independent_are_counted_as_variance_between_seeds():
    flags = np.random.default_rng(0).random((8, 400)) < 0.7
    estimate = Outcomes({("a", "last", "pgd"): flags}).estimate(lambda c: c("a", "pgd"))
    assert estimate.shared < 0.2 * flags.mean(1).var(ddof=1) / 8


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


def test_other_examples_cannot_be_paired():
    outcomes = Outcomes({("a", "last", "pgd"): np.ones((2, 5)), ("b", "last", "pgd"): np.zeros((2, 6))})
    with pytest.raises(UserError, match=r"the same test images everywhere, not \[5, 6\]"):
        outcomes.estimate(difference)
    assert outcomes.estimate(lambda c: c("a", "pgd")).value == 1, "each alone may have images of its own"


def test_trainings_are_compared_on_the_seeds_that_both_have():
    outcomes = numbers(a=[1, 2, 3, 40, 50], b=[2, 4, 6])
    estimate = outcomes.estimate(lambda c: c("b", "n", "run") - c("a", "n", "run"))
    assert estimate.values.tolist() == [1, 2, 3]
    assert outcomes.estimate(number("a")).seeds == 5


def test_the_interval_of_numbers_is_that_of_scipy():
    values = [1.0, 4.0, 2.5, 3.0]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert numbers(a=values).estimate(number("a")).interval(TAIL) == pytest.approx(tuple(expected))


# -- verdicts


@pytest.mark.parametrize(("extra", "outcome"), [(0.2, "supported"), (-0.2, "not supported"), (0.004, "undecided")])
def test_a_verdict_follows_its_interval(extra, outcome):
    found = verdict(cells(3, 0.5, between=0.02, extra=extra))
    assert found.outcome == outcome
    assert found.found() == f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    assert found.low <= found.value <= found.high
    assert (found.level, found.seeds) == (pytest.approx(0.95), 4)


def test_one_seed_decides_nothing():
    found = verdict(cells(2, 0.5, seeds=1, extra=0.3))
    assert (found.outcome, found.reason) == ("not testable here", "one seed does not show how much trainings differ")
    assert found.detectable is None and found.power() == "unknown"


def test_the_bound_of_a_claim_counts():
    flags = cells(2, 0.5, between=0.01, extra=0.2)
    assert verdict(flags, more_than=0.1).outcome == "supported"
    assert verdict(flags, more_than=0.4).outcome == "not supported"


ALIKE = "it is the same for all seeds, which does not show their spread"
BY_SIGNS = "it is the same for all seeds: by the sign test, of most trainings"


def test_equal_numbers_do_not_show_their_spread():
    claim = Claim("a is above 1", "a - 1", number("a"), 1.0, "(length)")
    [found] = judge([claim], numbers(a=[2] * 9 + [2 + 1e-15]))
    assert (found.outcome, found.reason) == ("undecided", ALIKE)
    assert (found.found(), found.detectable) == ("+2 [+2, +2] (length)", None)


@pytest.mark.parametrize(
    ("seeds", "bound", "outcome"), [(5, 0.4, "undecided"), (6, 0.4, "supported"), (6, 0.6, "not supported")]
)
def test_equal_accuracies_are_decided_by_the_signs_of_enough_seeds(seeds, bound, outcome):
    flags = {("a", "last", "pgd"): np.tile(np.arange(1000) % 2 == 0, (seeds, 1))}
    [found] = judge([Claim("a is above it", "a", lambda c: c("a", "pgd"), bound)], Outcomes(flags))
    assert (found.outcome, found.reason) == (outcome, BY_SIGNS if outcome in DECIDED else ALIKE)
    assert (found.deviation, found.detectable) == (0, None)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / 1000**0.5, rel=0.1), "the images' part"


@pytest.mark.parametrize(("examples", "outcome"), [(110, "undecided"), (130, "supported")])
def test_other_equal_shares_of_examples_are_decided_alike(examples, outcome):
    values = {("a", "run", name): np.ones(10) for name in ("n", "other")}
    outcomes = Outcomes({}, values, shares={"n": examples})
    claim, other = (Claim(name, name, lambda c, name=name: c("a", name, "run"), 0.95) for name in ("n", "other"))
    found = judge([claim, other], outcomes)
    assert [each.outcome for each in found] == [outcome, "undecided"]
    assert found[0].high - found[0].value == pytest.approx(1.96 * 3 / examples, rel=1e-3)
    assert (found[1].low, found[1].high) == (1, 1), "what it differs by less than is not known"


def test_equal_accuracies_need_more_seeds_where_claims_belong_together():
    claims = [Claim(arm, arm, lambda c, arm=arm: c(arm, "pgd"), 0.5, family="f") for arm in "abcdef"]
    rng = np.random.default_rng(0)
    for seeds, outcome in ((7, "undecided"), (8, "supported")):
        flags = {(arm, "last", "pgd"): rng.random((seeds, 400)) < 0.5 for arm in "bcdef"}
        alike = {("a", "last", "pgd"): np.ones((seeds, 400), dtype=bool)}
        assert judge(claims, Outcomes({**flags, **alike}))[0].outcome == outcome


@pytest.mark.parametrize(("images", "outcome"), [(110, "undecided"), (130, "supported"), (360, "supported")])
def test_images_that_all_agree_do_not_show_that_all_others_would(images, outcome):
    """Of 73 images without a difference, one in 20 may still have one; the rule asks for a few more."""
    flags = {("a", "last", "pgd"): np.ones((10, images), dtype=bool)}
    claim = Claim("a is above 95 %", "a", lambda c: c("a", "pgd"), 0.95)
    [found] = judge([claim], Outcomes(flags))
    assert found.outcome == outcome
    exact = TAIL ** (1 / images)  # Clopper and Pearson
    assert exact - 2.5 / images < found.low < exact


@pytest.mark.parametrize("tail", [TAIL, TAIL / 6])
def test_few_images_that_differ_alike_in_all_seeds_err_little_more_often_than_said(tail):
    """Exact, by the binomial distribution: all trainings break the same images, of which a share p can be broken."""
    n, z = 500, stats.norm.isf(tail)
    broken = np.arange(n + 1)
    upper = broken / n + z * np.sqrt((broken / n) * (1 - broken / n) / n + (3 / n) ** 2)
    wrong = [stats.binom.pmf(broken, n, p)[upper < p].sum() for p in np.linspace(0.0005, 0.1, 400)]
    assert max(wrong) < 1.5 * tail
    few = np.tile(np.arange(n) >= 3, (10, 1))
    [found] = judge([Claim("a", "a", lambda c: c("a", "pgd"), 0.5)], Outcomes({("a", "last", "pgd"): few}))
    assert 1 - found.low == pytest.approx(3 / n + 1.96 * np.hypot(3**0.5, 3) / n, rel=0.02)


def losing(common, seeds=10, images=500, own=()):
    """Flags under a weak attack, which breaks nothing, and a strong one: images lost in all seeds, and in one alone."""
    weak = np.ones((seeds, images), dtype=bool)
    strong = weak.copy()
    strong[:, :common] = False
    strong[[seed for seed, _ in own], [images - 1 - image for _, image in own]] = False
    return {("a", "last", "weak"): weak, ("a", "last", "strong"): strong}


def drop(bound, factor=1):
    return Claim("little more", "drop", lambda c: factor * (c("a", "strong") - c("a", "weak")), -factor * bound)


def test_an_image_that_one_seed_loses_shows_no_more_than_none():
    """The rule of three held only where seeds were alike to the image: one more lost image decided a claim."""
    [none], [one] = (judge([drop(0.003)], Outcomes(losing(0, own=own))) for own in ((), [(3, 0)]))
    assert (none.outcome, one.outcome) == ("undecided", "undecided")
    assert one.high - one.low == pytest.approx(none.high - none.low, rel=0.01)


def test_the_rule_of_three_knows_the_scale_of_a_number():
    [share], [points] = (judge([drop(0.01, factor)], Outcomes(losing(0))) for factor in (1, 100))
    assert points.low == pytest.approx(100 * share.low)
    assert (share.outcome, points.outcome) == ("undecided", "undecided")


def test_ten_images_that_differ_are_enough_for_the_bootstrap():
    """From ten on nothing is added: three images as a standard deviation would show."""
    few, many = (judge([drop(0.5)], Outcomes(losing(count)))[0] for count in (9, 10))
    assert few.high - few.value == pytest.approx(1.96 * np.hypot(9**0.5, 3) / 500, rel=0.1)
    alike = many.deviation == 0  # then it is added in any case
    own = judge([drop(0.5)], Outcomes(losing(9, own=[(3, 0)])))[0]
    assert alike and own.high - own.value == pytest.approx(1.96 * 9**0.5 / 500, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("common", "own"), [(0.002, 2e-4), (0.004, 1e-3), (0.01, 2e-4)])
def test_rare_images_that_seeds_share_err_little_more_often_than_said(common, own):
    """An image breaks in all seeds, or in one alone; 8 to 26 % of studies took too small a drop for shown before."""
    rng, wrong, trials = np.random.default_rng(1), 0, 300
    true = common + (1 - common) * own
    for _ in range(trials):
        weak = np.ones((10, 500), dtype=bool)
        strong = ~((rng.random((1, 500)) < common) | (rng.random((10, 500)) < own))
        flags = {("a", "last", "weak"): weak, ("a", "last", "strong"): strong}
        wrong += judge([drop(0.999 * true)], Outcomes(flags))[0].outcome == "supported"
    assert wrong / trials < TAIL + 1.6 * np.sqrt(TAIL / trials)


@pytest.mark.parametrize("statistic", [lambda c: c("a", "pgd").mean(), lambda c: c("a", "pgd")[1:], lambda c: 0.5])
def test_a_number_that_is_not_one_of_each_seed_is_refused(statistic):
    def of(c):
        c("a", "pgd")
        return statistic(c)

    flags = {("a", "last", "pgd"): np.ones((4, 100), dtype=bool)}
    with pytest.raises(UserError, match=r"a number of a claim is one of each seed, \[4\]: this is \[3?\]"):
        judge([Claim("a", "a", of)], Outcomes(flags))


def test_the_bound_of_a_claim_is_finite():
    with pytest.raises(UserError, match="the bound of a claim is a finite number, not nan"):
        Claim("a", "a", number("a"), float("nan"))


def test_equal_numbers_that_no_study_of_this_size_could_decide_are_called_so():
    claim = Claim("no difference", "a - b", lambda c: c("a", "pgd") - c("b", "pgd"), within=0.01)
    flags = {(arm, "last", "pgd"): np.ones((3, 100), dtype=bool) for arm in "ab"}
    [found] = judge([claim], Outcomes(flags))
    assert found.outcome == "not testable here" and "times the margin" in found.reason


def test_a_statistic_of_yes_and_no_is_a_number():
    low = {("a", "last", "pgd"): np.tile(np.arange(50) < 5, (8, 1))}
    [found] = judge([Claim("a is low", "a", lambda c: c("a", "pgd") < 0.3, most=True)], Outcomes(low))
    assert (found.outcome, found.value) == ("supported", 1.0)


def test_a_claim_that_the_setting_cannot_decide_is_called_so_whatever_is_found():
    found = verdict(cells(2, 0.5, extra=0.3), untestable="the rate never drops")
    assert (found.outcome, found.reason) == ("not testable here", "the rate never drops")


def test_a_number_that_is_not_defined_is_refused():
    with pytest.raises(UserError, match="'a is above 0' is not defined: it is NaN"):
        judge([Claim("a is above 0", "a", number("a"))], numbers(a=[1, np.nan]))


# -- no difference


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ([0.1, -0.1, 0.2, -0.2], "supported"),
        ([0.1, -1.9, 1.8, -0.2], "undecided"),  # no significant difference is no evidence of none
        ([3.1, 2.9, 3.2, 2.8], "not supported"),
        ([-3.1, -2.9, -3.2, -2.8], "not supported"),
    ],
)
def test_a_claim_of_no_difference_needs_an_interval_within_the_margin(values, outcome):
    [found] = judge([Claim("no matter", "a", number("a"), within=1.0)], numbers(a=values))
    assert found.outcome == outcome
    two = [stats.ttest_1samp(values, end, alternative=way).pvalue for end, way in ((-1, "greater"), (1, "less"))]
    assert (max(two) < TAIL) == (outcome == "supported"), "two one-sided tests"


def test_few_images_cannot_show_that_there_is_no_difference():
    rng = np.random.default_rng(0)
    flags = {
        (arm, "last", "pgd"): np.repeat(rng.random((1, 100)) < 0.6, 12, axis=0) ^ (rng.random((12, 100)) < 0.01)
        for arm in ("a", "b")
    }
    found = verdict(flags, within=0.01)
    assert found.outcome == "not testable here"
    assert "the test images alone moves the number by" in found.reason


@pytest.mark.parametrize("wrong", [{"within": 0.0}, {"within": 0.1, "more_than": 1.0}, {"within": 0.1, "most": True}])
def test_a_margin_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UserError, match="'no matter': the margin of a claim of no difference is a number above 0"):
        Claim("no matter", "a", number("a"), **wrong)


# -- shares of trainings


@pytest.mark.parametrize(("seeds", "outcome"), [(5, "not testable here"), (6, "supported")])
def test_most_trainings_are_shown_by_a_sign_test_which_needs_six_seeds(seeds, outcome):
    [found] = judge([Claim("it collapses", "a", number("a"), 0.5, most=True)], numbers(a=[1] * seeds))
    assert (found.outcome, found.value) == (outcome, 1.0)
    low = stats.binomtest(seeds, seeds, 0.5).proportion_ci(0.95).low
    assert found.low == pytest.approx(low)
    assert found.reason == ("" if seeds == 6 else "it needs at least 6 seeds, and there are 5")


def test_most_trainings_are_not_half_of_them():
    [found] = judge([Claim("it collapses", "a", number("a"), 0.5, most=True)], numbers(a=[1] * 5 + [0] * 5))
    assert (found.outcome, found.value, found.unit) == ("undecided", 0.5, "(share of trainings)")
    [never] = judge([Claim("it collapses", "a", number("a"), 0.5, most=True)], numbers(a=[0] * 6))
    assert never.outcome == "not supported"


def test_what_no_result_could_decide_is_known_before_anything_is_trained():
    claims = [
        Claim("it is above 0", "a", number("a")),
        Claim("it collapses", "a", number("a"), most=True),
        *(Claim(f"{arm} collapses, too", "a", number(arm), most=True, family="all") for arm in "ab"),
        Claim("it overfits", "a", number("a"), untestable="the rate never drops"),
    ]
    assert untestable(claims, 6) == {
        **{f"{arm} collapses, too": "it needs at least 7 seeds, and there are 6" for arm in "ab"},
        "it overfits": "the rate never drops",
    }
    assert [*untestable(claims, 7)] == ["it overfits"]
    assert len(untestable(claims, 1)) == 5


# -- families


def of_p(p, seeds=5):
    """Numbers whose one-sided p of Student's t is p."""
    raw = np.arange(seeds) - (seeds - 1) / 2
    return raw + float(stats.t.isf(p, seeds - 1)) * raw.std(ddof=1) / np.sqrt(seeds)


def family(*ps, **how):
    arms = {f"a{place}": of_p(p) for place, p in enumerate(ps)}
    claims = [Claim(f"{arm} is above 0", "it", number(arm), family="all", **how) for arm in arms]
    return [found.outcome for found in judge(claims, numbers(**arms))]


def test_the_claims_of_a_family_are_decided_by_holm():
    up = "supported"
    assert family(0.02) == [up]
    assert family(0.02, 0.02) == ["undecided"] * 2  # neither is below 0.0125
    assert family(0.012, 0.02) == [up, up]  # 0.012 < 0.025 / 2, then 0.02 < 0.025
    assert family(0.012, 0.02, 0.4) == ["undecided"] * 3
    assert family(0.008, 0.012, 0.4) == [up, up, "undecided"]
    assert family(0.008, 0.99, 0.4) == [up, "undecided", "undecided"]
    assert family(0.008, 0.995, 0.4) == [up, "not supported", "undecided"]


def test_claims_without_a_family_are_not_corrected():
    outcomes = numbers(a=of_p(0.02), b=of_p(0.02))
    claims = [Claim(f"{arm} is above 0", "it", number(arm)) for arm in "ab"]
    assert [found.outcome for found in judge(claims, outcomes)] == ["supported"] * 2


def test_the_interval_of_a_family_agrees_with_its_verdicts():
    arms = {f"a{i}": of_p(p) for i, p in enumerate((0.003, 0.015, 0.4, 0.999))}
    claims = [Claim(f"{arm} is above 0", "it", number(arm), family="all") for arm in arms]
    for found in judge(claims, numbers(**arms)):
        assert (found.low > 0) == (found.outcome == "supported")
        assert (found.high <= 0) == (found.outcome == "not supported")
        assert found.level > 0.95
