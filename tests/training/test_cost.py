"""The cost of a training in passes, counted."""

import pytest

import sparring as sp
from sparring import (
    AWP,
    FGSM,
    PGD,
    Benign,
    Build,
    CrossEntropy,
    GaussianStart,
    Linf,
    Method,
    OptimizerStep,
    RandomStart,
)
from sparring.attacks import SignStart
from sparring.core.schedules import PiecewiseConstant
from sparring.core.teachers import Teacher
from sparring.models import small_cnn
from sparring.recipes import find
from sparring.training.cost import cost

BALL = Linf(8 / 255)
EITHER = sp.attacks.Split(((0.5, PGD(BALL, 5)), (0.5, PGD(sp.L1(12.0), 5))))
UNION = sp.attacks.Union((BALL, sp.L2(0.5), sp.L1(12.0)))
RS = FGSM(BALL, 1.25 * BALL.eps, RandomStart())


@pytest.mark.parametrize(
    ("method", "update", "forward", "backward"),
    [
        (Method(Benign(), CrossEntropy()), OptimizerStep(), 1, 1),
        (Method(RS, CrossEntropy()), OptimizerStep(), 2, 2),
        (Method(PGD(BALL, 7), CrossEntropy()), OptimizerStep(), 8, 8),
        (Method(PGD(BALL, 7, patience=0), CrossEntropy()), OptimizerStep(), 8, 8),  # at most
        (Method(PGD(BALL, 10, start=GaussianStart()), sp.TRADES()), OptimizerStep(), 13, 12),
        (Method(PGD(BALL, 10), CrossEntropy()), AWP(), 12, 12),
        (Method(PGD(BALL, 10), CrossEntropy()), sp.SAM(), 12, 12),
        (Method(PGD(BALL, 10), CrossEntropy()), sp.ASAM(), 12, 12),
        (Method(PGD(BALL, 10), CrossEntropy()), sp.RWP(), 12, 12),
        (Method(PGD(BALL, 10), CrossEntropy()), PiecewiseConstant(((0, OptimizerStep()), (5, AWP()))), 11.5, 11.5),
        # of the student alone: passes through teachers are not counted
        (Method(PGD(BALL, 10, start=GaussianStart()), sp.objectives.HAT(Teacher("t"))), OptimizerStep(), 14, 13),
        (Method(PGD(BALL, 10), sp.objectives.RSLAD(Teacher("t"))), OptimizerStep(), 12, 12),
        (Method(PGD(BALL, 10), sp.objectives.ARD(Teacher("t"))), OptimizerStep(), 11, 11),
        (Method(PGD(BALL, 10), sp.objectives.ARD(Teacher("t"), share=0.9)), OptimizerStep(), 12, 12),
        (Method(PGD(BALL, 10, start=GaussianStart()), sp.objectives.AdaAD(Teacher("t"))), OptimizerStep(), 11, 11),
        (Method(PGD(BALL, 10, start=GaussianStart()), sp.objectives.IKL()), OptimizerStep(), 14, 12),
        (Method(PGD(BALL, 10, start=GaussianStart()), sp.objectives.LBGAT(Build(small_cnn))), OptimizerStep(), 13, 12),
        (Method(PGD(BALL, 10), sp.objectives.SCORE()), OptimizerStep(), 13, 12),
        (Method(PGD(BALL, 10), sp.objectives.MAILAT()), OptimizerStep(), 11, 11),
        (Method(PGD(BALL, 10, start=GaussianStart()), sp.objectives.MAILTRADES()), OptimizerStep(), 13, 12),
        (Method(PGD(BALL, 10, patience=0), sp.objectives.FATTRADES()), OptimizerStep(), 13, 12),  # at most
        (Method(PGD(BALL, 10), sp.objectives.MLCAT()), OptimizerStep(), 11, 11),
        (Method(PGD(BALL, 10), sp.objectives.FARE()), OptimizerStep(), 11, 11),
        (Method(PGD(BALL, 10), sp.objectives.DualTeacher(Teacher("s"), Teacher("r"))), OptimizerStep(), 11, 11),
        (sp.training.Free(BALL, 8), OptimizerStep(), 8, 8),
        (Method(FGSM(BALL), sp.objectives.FGSMMEP(BALL)), OptimizerStep(), 3, 3),
        (Method(EITHER, sp.Sum((CrossEntropy(), sp.objectives.EAT()))), OptimizerStep(), 7, 6),
        (
            Method(sp.attacks.Highest((PGD(BALL, 5), PGD(BALL, 5), PGD(BALL, 5))), CrossEntropy()),
            OptimizerStep(),
            19,
            16,
        ),
        (Method(sp.attacks.PerView((PGD(BALL, 5), PGD(BALL, 5))), CrossEntropy()), OptimizerStep(), 6, 6),
        (Method(sp.attacks.MSD(UNION, 5), CrossEntropy()), OptimizerStep(), 21, 6),
        (Method(FGSM(BALL), sp.objectives.TDAT(BALL)), OptimizerStep(), 3, 3),
        (Method(FGSM(BALL, start=SignStart(0.5)), sp.objectives.NuAT()), OptimizerStep(), 4, 3),
        (Method(FGSM(BALL, start=SignStart(0.5)), sp.objectives.GAT()), OptimizerStep(), 4, 3),
        (Method(RS, sp.Sum((CrossEntropy(), sp.objectives.ELLE(BALL)))), OptimizerStep(), 5, 5),
        (Method(RS, sp.Sum((CrossEntropy(), sp.objectives.ELLE(BALL, adaptive=True)))), OptimizerStep(), 8, 5),
    ],
    ids=lambda v: repr(v)[:60],
)
def test_the_passes_of_a_method_are_those_of_the_theory(method, update, forward, backward):
    found = cost(method, update, epochs=10, steps_per_epoch=20)
    assert (found.forward, found.backward) == (pytest.approx(forward), pytest.approx(backward))


@pytest.mark.parametrize(
    ("lengths", "steps", "wanted"),
    [((1, 1, 1), 3, 2.33), ((1, 2, 1), 3, 2.25), ((1, 4, 1), 7, 2.83), ((1, 1, 1), 7, 3.67), ((1, 3, 1), 10, 3.60)],
)
@pytest.mark.parametrize("reading", ["pure", "mixup"])
def test_stages_cost_their_mean(lengths, steps, wanted, reading):
    benign, single, multi = lengths
    recipe = find("cifar10_prn18_moat")(
        benign=benign, single=single, multi=multi, slot=10, steps=steps, reading=reading
    )
    found = cost(recipe.method, recipe.update, epochs=10 * sum(lengths), steps_per_epoch=10)
    assert found.both == pytest.approx(wanted, abs=0.005)


def test_clean_images_in_every_stage_cost_one_more_pass_where_the_attack_moved_them():
    recipe = find("cifar10_prn18_moat")(slot=1, reading="mixed")
    found = cost(recipe.method, recipe.update, epochs=1, steps_per_epoch=600)
    assert found.both == pytest.approx((1 + 4 * 3 + 9) / 6)


@pytest.mark.slow
def test_a_long_training_is_sampled():
    method = Method(sp.core.schedules.Cycle(((1, Benign()), (3, RS))), CrossEntropy())
    assert cost(method, OptimizerStep(), epochs=200, steps_per_epoch=500).both == pytest.approx(1.75, abs=0.02)


@pytest.mark.parametrize("threat", [sp.L1(20.0), sp.L2(5.0), Linf(1.0)], ids=repr)
def test_large_sets_have_a_cost_too(threat):
    found = cost(Method(PGD(threat, 3), CrossEntropy()), OptimizerStep(), epochs=2, steps_per_epoch=3)
    assert found.both == 4


def test_an_objective_that_reads_features_has_a_cost():
    class FeatureAttack(CrossEntropy):
        def outer(self, ctx, x_adv):
            return {"f": ctx.lens.features(x_adv).square().mean()}

    assert cost(Method(RS, FeatureAttack()), OptimizerStep(), epochs=1, steps_per_epoch=3).both == 2
