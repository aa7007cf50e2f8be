import json
import math

import numpy as np
import pytest
import torch

from sparring import FGSM, L2, PGD, Benign, Linf, Progress, UserError, make_rng
from sparring.attacks import CE, MSD, Union
from sparring.core.schedules import (
    Cosine,
    Cycle,
    Cyclic,
    EpsWarmUp,
    ExponentialDecay,
    Linear,
    MultiStep,
    PiecewiseConstant,
    Ramp,
    Triangle,
    WarmUp,
    scaled_lr,
)
from sparring.core.serialization import from_plain, to_plain
from sparring.core.types import at


def values(schedule, steps_per_epoch=10, epochs=10):
    return [schedule.at(Progress(s, steps_per_epoch, epochs)) for s in range(steps_per_epoch * epochs)]


def test_piecewise_drops_at_its_milestones():
    rates = values(MultiStep(1.0, (5, 8), 0.1))
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
    rates = values(WarmUp(MultiStep(0.1, (8,)), epochs=2.5))
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
    found = values(PiecewiseConstant(((0, "a"), (2, "b"), (7.5, "c"))))
    assert [found[s] for s in (0, 19, 20, 74, 75, 99)] == ["a", "a", "b", "b", "c", "c"]
    for wrong in ((), ((1, "a"),), ((0, "a"), (3, "b"), (2, "c")), ((0, "a"), (0, "b"))):
        with pytest.raises(UserError, match="begin at epoch 0 and each later"):
            PiecewiseConstant(wrong)


def test_eps_rises_and_a_step_size_that_was_given_stays():
    found = values(EpsWarmUp(PGD(Linf(0.1), steps=2, step_size=0.03), epochs=5))
    assert found[0].threat.eps == pytest.approx(0.1 / 50)
    assert found[24].threat.eps == pytest.approx(0.05)
    assert found[49] == found[99] == PGD(Linf(0.1), steps=2, step_size=0.03)
    assert all(attack.step_size == 0.03 for attack in found)
    with pytest.raises(UserError, match="Benign has no eps of its own"):
        EpsWarmUp(Benign())
    with pytest.raises(UserError, match="MSD has no eps of its own"):
        EpsWarmUp(MSD(Union((Linf(0.1), L2(0.5)))))


def test_eps_rises_from_nothing_under_a_step_that_is_far_longer():
    for attack in (FGSM(Linf("8/255")), PGD(Linf("8/255"), 10, "2/255")):
        first = at(EpsWarmUp(attack, 10), Progress(0, 390, 100))
        assert first.threat.eps == pytest.approx(8 / 255 / 3900) and first.step_size == attack.step_size
        x = torch.full((2, 1, 2, 2), 0.5)
        loss = CE(lambda z: torch.stack([z.sum((1, 2, 3)), -z.sum((1, 2, 3))], 1), torch.zeros(2, dtype=torch.long))
        assert (first(loss, x, make_rng(0)) - x).abs().max() <= 1.01 * first.threat.eps
    assert attack.threat.eps == Linf("8/255").eps, "the attack itself is as it was"


@pytest.mark.parametrize(("shares", "steps"), [((1, 4, 1), 3), ((1, 9), 2), ((1, 9), 5), ((9, 1), 3), ((1, 1, 8), 4)])
def test_a_short_period_has_every_stage(shares, steps):
    cycle = Cycle(tuple((share, place) for place, share in enumerate(shares)), epochs=1)
    found = [at(cycle, Progress(step, steps, 2)) for step in range(2 * steps)]
    assert found[:steps] == found[steps:] == sorted(found[:steps])
    assert set(found) == set(range(len(shares)))


@pytest.mark.parametrize("length", [0, 1.5, -1])
def test_a_stage_lasts_whole_steps(length):
    with pytest.raises(UserError, match="whole steps, at least one each"):
        Cycle(((length, 1.0),))


# -- beside the formulas of released codes


def of_the_code(formula, steps_per_epoch=7, epochs=110):
    """`formula` of the fractional epoch that the code has at a step, (i + 1) / (steps per epoch)."""
    return [formula((s + 1) / steps_per_epoch) for s in range(steps_per_epoch * epochs)]


def test_the_warm_up_of_bag_of_tricks_is_that_of_its_code():
    warm = WarmUp(MultiStep(0.1), 15, ahead=1, capped=False)
    found = values(warm, 7, 110)
    assert found == pytest.approx(of_the_code(lambda t: (t + 1) / 15 * 0.1 if t < 15 else 0.1))
    assert warm.at(Progress(0, 390, 110)) == pytest.approx(0.0067, abs=5e-5)
    assert max(found) == pytest.approx(0.1 * 16 / 15, rel=0.01)
    assert max(values(WarmUp(MultiStep(0.1), 15, ahead=1), 7, 110)) == pytest.approx(0.1)
    eps = [a.threat.eps for a in values(EpsWarmUp(PGD(Linf(0.03), 10, 0.008), 15, 1, capped=False), 7, 110)]
    assert eps == pytest.approx(of_the_code(lambda t: (t + 1) / 15 * 0.03 if t < 15 else 0.03))


def test_a_warm_up_may_begin_at_a_rate_above_0():
    found = values(WarmUp(MultiStep(1.6, (30,)), 5, start=0.1), 10, 40)
    assert found[0] == pytest.approx(0.1 + 1.5 / 50)
    assert found[24] == pytest.approx(0.85)
    assert found[49] == found[299] == pytest.approx(1.6)
    assert found[300] == pytest.approx(0.16)


def test_the_rate_of_imagenet_in_an_hour_is_scaled_and_warmed_up_as_in_its_paper():
    peak = scaled_lr(0.1, 8192)
    assert peak == pytest.approx(3.2)
    found = values(WarmUp(MultiStep(peak, (30, 60, 80)), 5, start=0.1), 7, 90)
    code = of_the_code(lambda t: 0.1 + (3.2 - 0.1) * min(1.0, t / 5), 7, 30)
    assert found[: 7 * 30] == pytest.approx(code)
    assert np.diff(found[: 7 * 5]) == pytest.approx((3.2 - 0.1) / 35), "by a constant amount at each iteration"
    assert [found[7 * e] for e in (30, 60, 80)] == pytest.approx([0.32, 0.032, 0.0032])
    assert [scaled_lr(0.016, n) for n in (2048, 384)] == pytest.approx([0.128, 0.024])
    assert scaled_lr(5e-4, 4096, reference=512) == pytest.approx(4e-3)
    for wrong in (0, 2.5):
        with pytest.raises(UserError, match=f"batch_size = {wrong} is no whole number from 1 on"):
            scaled_lr(0.1, wrong)


@pytest.mark.parametrize("steps_per_epoch", [1, 5, 7, 625])
def test_an_exponential_decay_is_the_staircase_of_tensorflow(steps_per_epoch):
    found = values(ExponentialDecay(0.256), steps_per_epoch, 30)
    code = [0.256 * 0.97 ** math.floor(step / (steps_per_epoch * 2.4)) for step in range(30 * steps_per_epoch)]
    assert found == pytest.approx(code)
    assert ExponentialDecay(1.0, 0.5, 2).at(Progress(7, 1, 10)) == 0.125
    with pytest.raises(UserError, match="every = 0 of an exponential decay"):
        ExponentialDecay(1.0, every=0)


def test_a_schedule_inside_phases_is_followed():
    decay = PiecewiseConstant(((0, 0.1), (100, Linear(((100, 0.01), (105, 0.0))))))
    found, code = values(decay, 7, 110), of_the_code(lambda t: 0.1 if t < 100 else max(0.0, 0.1 * 0.02 * (105 - t)))
    assert found[:699] == code[:699]  # at step 699 the code has gone on by a step
    assert found[700:] == pytest.approx(code[700:], abs=1e-12)
    assert found[-1] == 0
    risen = PiecewiseConstant(((0, EpsWarmUp(PGD(Linf(0.1)), 2)), (4, Benign())))
    assert [at(risen, Progress(e, 1, 9)) for e in (3, 4)] == [PGD(Linf(0.1)), Benign()]
    assert at(risen, Progress(0, 1, 9)).threat.eps == pytest.approx(0.05)
    assert at(Cycle(((1, PiecewiseConstant(((0, 1.0), (2, 5.0)))),)), Progress(3, 1, 9)) == 5.0


def test_lines_go_through_their_points():
    points = ((0, 0.1), (36, 0.1), (73, 0.01), (110, 0.001))
    xs, ys = zip(*points, strict=True)
    wanted = of_the_code(lambda t: float(np.interp(t, xs, ys)))
    assert values(Linear(points), 7, 110) == pytest.approx(wanted)
    assert set(values(Linear(((3, 0.5),)), 2, 5)) == {0.5}
    assert values(Linear(((3, 1.0), (4, 0.0))), 2, 5)[:4] == [1.0] * 4
    for wrong in ((), ((3, 1.0), (3, 0.0)), ((4, 1.0), (3, 0.0))):
        with pytest.raises(UserError, match="each at a later epoch"):
            Linear(wrong)


def test_triangles_are_those_of_the_released_code():
    def code(t):
        cycle = math.floor(1 + t / 36)
        return 1e-5 + (0.1 - 1e-5) * max(0, 1 - abs(t / 18 - 2 * cycle + 1))

    assert values(Triangle(0.1), 7, 110) == pytest.approx(of_the_code(code))
    with pytest.raises(UserError, match="half = 0 of a triangle"):
        Triangle(0.1, 0)


def test_schedules_of_schedules_survive_the_disk():
    for value in (
        PiecewiseConstant(((0, 0.1), (100, Linear(((100, 0.01), (105, 0.0)))))),
        WarmUp(Triangle(0.1), 3, 0.1, 1.0),
        WarmUp(ExponentialDecay(0.128, 0.97, 2.4), 5),
    ):
        assert from_plain(json.loads(json.dumps(to_plain(value)))) == value


def test_a_ramp_is_the_curve_of_its_paper():
    ramp = Ramp(30.0, start=3, end=7)
    found = [ramp.at(Progress(step, 1, 10)) for step in range(8)]
    wanted = [30 * math.exp(-5 * (1 - share) ** 2) for share in (0, 0.25, 0.5, 0.75)]
    assert found == pytest.approx([0, 0, *wanted, 30, 30])
