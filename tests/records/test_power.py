"""The rule of verdicts by simulation: errors at most as often as it says, power where it says, also look by look."""

import numpy as np
import pytest
from scipy import stats

from sparring.core.errors import UserError
from sparring.records.estimates import Mean, Share, detectable, half_width
from sparring.records.outcomes import Outcomes
from sparring.records.sequential import MOST, levels, looks
from sparring.records.statistics import TAIL, Claim, judge

TRIALS = 20_000
SLACK = 3.3 * np.sqrt(TAIL / TRIALS)  # what so many trials can miss an error by, one in two thousand times


def trainings(seeds, deviation=1.0, images=0.0, rng=1):
    """Numbers [TRIALS, S] of trainings without an effect, the images' part shared by the seeds of a trial."""
    rng = np.random.default_rng(rng)
    return deviation * rng.standard_normal((TRIALS, seeds)) + images * rng.standard_normal((TRIALS, 1))


def bounds(values, tail=TAIL, images=0.0):
    """Lower and upper bounds of the mean in each trial."""
    seeds = values.shape[1]
    half = half_width(values.var(1, ddof=1) / seeds, images**2, seeds, tail)
    return values.mean(1) - half, values.mean(1) + half


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize(("deviation", "images"), [(1.0, 0.0), (1.0, 0.1), (1.0, 0.3), (1.0, 1.0), (0.1, 1.0)])
def test_each_error_is_at_most_as_frequent_as_the_rule_says(seeds, deviation, images):
    low, high = bounds(trainings(seeds, deviation, images), images=images)
    assert (low > 0).mean() < TAIL + SLACK
    assert (high <= 0).mean() < TAIL + SLACK
    if not images:
        assert (low > 0).mean() > TAIL - SLACK, "Student's t is exact"


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize(("deviation", "images"), [(1.0, 0.0), (1.0, 0.3), (0.1, 1.0)])
def test_the_power_at_the_detectable_effect_is_80_per_cent(seeds, deviation, images):
    effect = detectable(deviation, images**2, seeds, TAIL)
    low, _ = bounds(trainings(seeds, deviation, images) + effect, images=images)
    assert (low > 0).mean() == pytest.approx(0.8, abs=0.015)


def test_the_detectable_effect_is_that_of_the_noncentral_t():
    seeds, deviation = 5, 2.0
    effect = detectable(deviation, 0.0, seeds, TAIL)
    power = stats.nct.sf(stats.t.isf(TAIL, seeds - 1), seeds - 1, effect / deviation * np.sqrt(seeds))
    assert power == pytest.approx(0.8, abs=0.01)


def test_what_the_margin_of_no_difference_can_be_is_known_from_simulation():
    margin = detectable(1.0, 0.0, 8, TAIL, equivalence=True)
    low, high = bounds(trainings(8))
    assert ((-margin < low) & (high < margin)).mean() == pytest.approx(0.8, abs=0.015)
    at = trainings(8) + margin  # a difference as large as the margin
    low, high = bounds(at)
    assert ((-margin < low) & (high < margin)).mean() < TAIL + SLACK


@pytest.mark.parametrize("seeds", [6, 10, 18])
def test_the_detectable_share_has_80_per_cent_power_and_a_half_is_rarely_taken_for_more(seeds):
    share = Share(np.ones(seeds, dtype=bool)).detectable(TAIL, None)
    low = np.array([Share(np.arange(seeds) < count).interval(TAIL)[0] for count in range(seeds + 1)])
    counts = np.arange(seeds + 1)
    assert stats.binom.pmf(counts, seeds, share)[low > 0.5].sum() == pytest.approx(0.8, abs=0.015)
    assert stats.binom.pmf(counts, seeds, 0.5)[low > 0.5].sum() <= TAIL


@pytest.mark.parametrize(("seeds", "often"), [(2, True), (6, False), (10, False)])
def test_equal_accuracies_are_decided_by_the_sign_test(seeds, often):
    """Accuracies in images, which are whole, of trainings whose mean lies anywhere, with a small part of the images.

    Without the sign test, two equal seeds would be taken for more than their mean far too often.
    """
    rng, trials, worst = np.random.default_rng(1), 4000, 0.0
    for true in np.arange(0, 1, 0.1):
        numbers = np.round(true + 0.5 * rng.standard_normal((trials, seeds)))
        alike = [Mean(each, shared=0.04) for each in numbers if np.ptp(each) == 0]
        assert not any(each.by_signs(TAIL) for each in alike) if often else all(each.by_signs(TAIL) for each in alike)
        worst = max(worst, sum(each.interval(TAIL)[0] > numbers.mean() for each in alike) / trials)
    assert worst > 0.1 if often else worst < TAIL + 3.3 * np.sqrt(TAIL / trials)


@pytest.mark.slow
@pytest.mark.parametrize("true", [0, 3])
def test_any_error_in_a_family_is_at_most_as_frequent_as_the_rule_says(true):
    """Six claims of arms that share a baseline; `true` of them hold by far, the others just do not."""
    rng, trials, wrong = np.random.default_rng(1), 250, 0
    names = [f"a{number}" for number in range(6)]
    claims = [Claim(arm, arm, lambda c, arm=arm: c(arm, "n", "run") - c("b", "n", "run"), family="f") for arm in names]
    for _ in range(trials):
        drawn = {(arm, "run", "n"): rng.standard_normal(5) + 9 * (i < true) for i, arm in enumerate(names)}
        found = judge(claims, Outcomes({}, {**drawn, ("b", "run", "n"): rng.standard_normal(5)}))
        wrong += any(verdict.outcome == "supported" for verdict in found[true:])
        assert all(verdict.outcome == "supported" for verdict in found[:true]), "by far"
    assert wrong / trials < TAIL + 3.3 * np.sqrt(TAIL / trials)


# -- look by look


def test_the_looks_are_half_as_large_again_each():
    assert looks(3) == (3, 5, 8, 12, MOST)
    assert looks(10) == (10, 15, MOST)
    assert looks(MOST) == (MOST,)
    for wrong in (1, MOST + 1):
        with pytest.raises(UserError, match=f"again and again from {wrong} seeds on, which must be 2 to {MOST}"):
            looks(wrong)


def crossed(p, planned, tail):
    """In which trials a p-value [TRIALS, looks] is below the level of its look."""
    return (p <= np.array(levels(planned, tail))).any(1)


def p_values(values, planned):
    return np.stack([stats.ttest_1samp(values[:, :n], 0, axis=1, alternative="greater").pvalue for n in planned], 1)


@pytest.mark.slow
@pytest.mark.parametrize("first", [3, 10])
@pytest.mark.parametrize("tail", [TAIL, TAIL / 6])
def test_all_looks_together_err_as_often_as_one_would(first, tail):
    planned = looks(first)
    wrong = crossed(p_values(trainings(MOST), planned), planned, tail).mean()
    assert wrong == pytest.approx(tail, abs=3.3 * np.sqrt(tail / TRIALS) + 0.02 * tail)
    once = (p_values(trainings(MOST), planned) <= tail).any(1).mean()
    assert once > 1.3 * tail, "looking again and again at the full level errs more often"


@pytest.mark.slow
def test_images_that_all_looks_share_make_no_more_errors():
    planned, images = looks(3), 0.5
    values = trainings(MOST, images=images)
    spent = levels(planned, TAIL)
    lows = [bounds(values[:, :n], tail, images)[0] for n, tail in zip(planned, spent, strict=True)]
    assert (np.stack(lows) > 0).any(0).mean() < TAIL + SLACK


@pytest.mark.slow
def test_looks_at_shares_make_no_more_errors_either():
    planned = looks(3)
    heads = np.random.default_rng(1).random((TRIALS, MOST)) < 0.5
    p = np.stack([stats.binom.sf(heads[:, :n].sum(1) - 1, n, 0.5) for n in planned], axis=1)
    assert crossed(p, planned, TAIL).mean() <= TAIL


@pytest.mark.slow
def test_no_more_error_is_spent_than_planned_until_any_look():
    planned = looks(3)
    p, spent = p_values(trainings(MOST), planned), np.array(levels(planned, TAIL))
    until = (p <= spent).cumsum(1).astype(bool).mean(0)
    allowed = TAIL * np.log(1 + (np.e - 1) * np.array(planned) / MOST)
    assert np.all(until <= allowed + SLACK)
    assert until[0] == pytest.approx(allowed[0], abs=SLACK)


def test_a_claim_keeps_the_verdict_of_the_look_that_decided_it():
    strong = np.array([5.0, 5.1, 4.9, -40.0, -41.0])
    outcomes = Outcomes({}, {("a", "run", "n"): strong})
    claim = Claim("a is above 0", "a", lambda c: c("a", "n", "run"))
    [found] = judge([claim], outcomes, looks(3))
    assert (found.outcome, found.seeds, found.value) == ("supported", 3, 5.0)
    assert found.level == pytest.approx(1 - 2 * levels(looks(3), TAIL)[0])
    [whole] = judge([claim], outcomes)
    assert (whole.outcome, whole.seeds) == ("undecided", 5)


def test_a_family_that_is_decided_later_does_not_turn_a_verdict():
    """Holm's procedure eases one direction when others of a family are decided; the look that decided first counts."""
    rng = np.random.default_rng(0)
    raw = np.array([-1.0, 0.0, 1.0])
    below = raw - stats.t.isf(0.0045, 2) * raw.std(ddof=1) / np.sqrt(3)  # "not supported" only at the eased level
    drawn = {"a": np.concatenate([below, 8 + 2 * rng.standard_normal(15)]), "b": -5 + 0.01 * rng.standard_normal(18)}
    claims = [Claim(arm, arm, lambda c, arm=arm: c(arm, "n", "run"), family="f") for arm in "ab"]
    for seeds in looks(3):
        numbers = {(arm, "run", "n"): each[:seeds] for arm, each in drawn.items()}
        found = judge(claims, Outcomes({}, numbers), looks(3))
        assert [(each.outcome, each.seeds) for each in found] == [("not supported", 3)] * 2


@pytest.mark.slow
@pytest.mark.parametrize(("first", "often"), [(None, 0.34), (10, 0.34), (3, 0.42)])
def test_where_one_training_in_ten_falls_the_mean_is_taken_for_too_high_more_often(first, often):
    """Student's t is right for roughly normal numbers; what falls make of it stands in docs/studies.md."""
    rng = np.random.default_rng(1)
    values = 0.015 * rng.standard_normal((TRIALS, MOST)) - 0.2 * (rng.random((TRIALS, MOST)) < 0.1) + 0.02
    planned = looks(first) if first else (10,)
    spent = levels(planned, TAIL) if first else (TAIL,)
    lows = [bounds(values[:, :n], tail)[0] for n, tail in zip(planned, spent, strict=True)]
    wrong = (np.stack(lows) > 0).any(0).mean()
    assert wrong == pytest.approx(often, abs=0.02)


def test_fewer_seeds_than_the_first_look_decide_nothing():
    claim = Claim("a is above 0", "a", lambda c: c("a", "n", "run"))
    few = Outcomes({}, {("a", "run", "n"): np.array([5.0, 5.1, 4.9])})
    [found] = judge([claim], few, looks(10))
    assert (found.outcome, found.reason) == ("undecided", "it is looked at from 10 seeds on")
    assert judge([claim], few, looks(3))[0].outcome == "supported"


def test_seeds_beyond_the_last_complete_look_do_not_count_yet():
    outcomes = Outcomes({}, {("a", "run", "n"): np.array([1.0, -1.0, 0.5, 90.0])})
    [found] = judge([Claim("a is above 0", "a", lambda c: c("a", "n", "run"))], outcomes, looks(3))
    assert (found.outcome, found.seeds) == ("undecided", 3)
