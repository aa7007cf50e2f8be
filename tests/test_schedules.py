import math

import pytest

from sparring import (
    PGD,
    Benign,
    Cosine,
    Cycle,
    Cyclic,
    EpsWarmUp,
    Linf,
    Phases,
    Piecewise,
    Progress,
    UserError,
    WarmUp,
)


def values(schedule, steps_per_epoch=10, epochs=10):
    return [schedule.at(Progress(s, steps_per_epoch, epochs)) for s in range(steps_per_epoch * epochs)]


def test_piecewise_drops_at_its_milestones():
    rates = values(Piecewise(1.0, (5, 8), 0.1))
    assert rates[49] == 1.0
    assert rates[50] == pytest.approx(0.1)
    assert rates[80] == pytest.approx(0.01)


@pytest.mark.parametrize("top", [0.3, 0.5])
def test_cyclic_rises_to_its_peak_and_falls_back_without_a_lost_step(top):
    rates = values(Cyclic(0.2, top))
    peak = rates.index(max(rates))
    assert peak == pytest.approx(100 * top, abs=1)
    assert max(rates) == pytest.approx(0.2, rel=0.03)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates) > 0


def test_cosine_is_half_a_cosine():
    rates = values(Cosine(1.0, final=0.1))
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.55)
    assert rates[99] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 0.99)))


def test_warm_up_never_overshoots_what_it_leads_to():
    rates = values(WarmUp(Piecewise(0.1, (8,)), epochs=2.5))
    assert rates[0] == pytest.approx(0.1 / 25)
    assert max(rates) == pytest.approx(0.1)
    assert rates[25:80] == pytest.approx([0.1] * 55)
    assert rates[90] == pytest.approx(0.01)


def test_a_cycle_counts_whole_steps_and_holds_attacks_as_well_as_numbers():
    assert values(Cycle(((2, 1.0), (1, 5.0))), 3, 2) == [1.0, 1.0, 5.0] * 2
    assert Cycle(((1, Benign()),)).at(Progress(7, 2, 9)) == Benign()
    for stages in ((), ((0, 1.0),)):
        with pytest.raises(UserError, match="whole steps, at least one each"):
            Cycle(stages)


def test_phases_follow_each_other_by_epoch():
    found = values(Phases(((0, "a"), (2, "b"), (7.5, "c"))))
    assert [found[s] for s in (0, 19, 20, 74, 75, 99)] == ["a", "a", "b", "b", "c", "c"]
    for wrong in ((), ((1, "a"),), ((0, "a"), (3, "b"), (2, "c")), ((0, "a"), (0, "b"))):
        with pytest.raises(UserError, match="begin at epoch 0 and each later"):
            Phases(wrong)


def test_eps_rises_and_a_step_size_that_was_given_stays():
    found = values(EpsWarmUp(PGD(Linf(0.1), steps=2, step_size=0.03), epochs=5))
    assert found[0].threat.eps == pytest.approx(0.1 / 50)
    assert found[24].threat.eps == pytest.approx(0.05)
    assert found[49] == found[99] == PGD(Linf(0.1), steps=2, step_size=0.03)
    assert all(attack.step_size == 0.03 for attack in found)
    with pytest.raises(UserError, match="Benign has no eps of its own"):
        EpsWarmUp(Benign())


@pytest.mark.parametrize("length", [0, 1.5, -1])
def test_a_stage_lasts_whole_steps(length):
    with pytest.raises(UserError, match="whole steps, at least one each"):
        Cycle(((length, 1.0),))
