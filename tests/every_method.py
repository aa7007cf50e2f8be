"""Every method as a change of the recipe `tiny`: what tests of training, of resuming and of devices run through."""

from dataclasses import replace

import torch

import sparring as sp
from sparring import (
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
    Sum,
)
from sparring.core.schedules import Cycle, PiecewiseConstant
from sparring.data import Crop, CutMix, Flip, SmoothedLabels
from sparring.models import small_cnn

BALL = Linf(0.1)
SHORT = PGD(BALL, steps=2, step_size=0.05)
RS = FGSM(BALL, 0.125, RandomStart())
NORMS = (SHORT, PGD(sp.L2(0.5), 2), PGD(sp.L1(3.0), 2))
NEAR = PGD(BALL, 2, 0.05, GaussianStart())
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(1)
    TEACHER = sp.core.teachers.Teacher.of(small_cnn(10, (1, 8, 8), width=4, batch_norm=True))


def method(objective, attack=SHORT, **views):
    return {"method": Method(attack, objective, **views)}


CHANGES = {
    "mart": method(sp.MART(), PGD(BALL, 2, 0.05, GaussianStart())),
    "alp": method(Sum((CrossEntropy(clean=0.5), sp.LogitPairing()))),
    "consistency": {
        **method(Sum((CrossEntropy(), sp.objectives.Consistency()))),
        "views_per_image": 2,
        "augment": (Flip(),),
    },
    "hat": method(sp.objectives.HAT(TEACHER), NEAR),
    "ard": method(sp.objectives.ARD(TEACHER, share=0.9)),
    "adaad": method(sp.objectives.AdaAD(TEACHER), NEAR),
    "ikl": method(sp.objectives.IKL(), NEAR),
    "lbgat": method(sp.objectives.LBGAT(Build(small_cnn, width=2, batch_norm=True)), NEAR),
    "score": method(sp.objectives.SCORE(clip=0.01), inner_mode=sp.core.modes.batch_statistics),
    "fare": {**method(sp.objectives.FARE(TEACHER)), "model": Build(small_cnn, width=4, batch_norm=True)},
    "mail-at": method(sp.objectives.MAILAT(warm_up=1), NEAR),
    "mail-trades": method(sp.objectives.MAILTRADES(warm_up=1), NEAR),
    "fat-trades": method(sp.objectives.FATTRADES(), replace(NEAR, patience=0)),
    "mlcat": method(sp.objectives.MLCAT()),
    "kd and swa": {**method(sp.objectives.DualTeacher(TEACHER, TEACHER)), "averaging": sp.SWA(0)},
    "awp": {"update": sp.AWP(0.01)},
    "sam": {"update": sp.SAM()},
    "asam": {"update": sp.ASAM()},
    "rwp": {"update": sp.RWP()},
    "awp later": {"update": PiecewiseConstant(((0, OptimizerStep()), (1, sp.AWP(0.005))))},
    "swa": {"averaging": sp.SWA(0)},
    "fgsm-rs": method(CrossEntropy(), RS),
    "n-fgsm": method(CrossEntropy(), sp.attacks.NFGSM(BALL)),
    "zero-grad": method(CrossEntropy(), sp.attacks.ZeroGrad(BALL)),
    "multi-grad": method(CrossEntropy(), sp.attacks.MultiGrad(BALL)),
    "gaussian noise": method(sp.objectives.GaussianNoise(), Benign()),
    "grad-align": method(Sum((CrossEntropy(), sp.objectives.GradAlign(BALL))), FGSM(BALL)),
    "fgsm-mep": method(sp.objectives.FGSMMEP(BALL, reset=2), FGSM(BALL)),
    "atta": {**method(Sum((CrossEntropy(), sp.objectives.ATTA(2)))), "augment": (Crop(1), Flip())},
    "elle": method(Sum((CrossEntropy(), sp.objectives.ELLE(BALL))), RS),
    "elle-a": method(Sum((CrossEntropy(), sp.objectives.ELLE(BALL, adaptive=True, sensitivity=0.5))), RS),
    "gat": method(sp.objectives.GAT(), FGSM(BALL, start=sp.attacks.SignStart(0.5))),
    "nuat": method(sp.objectives.NuAT(last=1), FGSM(BALL, start=sp.attacks.SignStart(0.5))),
    "tdat": method(sp.objectives.TDAT(BALL), FGSM(BALL)),
    "max": method(CrossEntropy(), sp.attacks.Highest(NORMS)),
    "avg": {**method(CrossEntropy(), sp.attacks.PerView(NORMS)), "views_per_image": 3},
    "msd": method(CrossEntropy(), sp.attacks.MSD(sp.attacks.Union(tuple(each.threat for each in NORMS)), 2)),
    "e-at": method(Sum((CrossEntropy(), sp.objectives.EAT())), sp.attacks.Split(((0.5, NORMS[0]), (0.5, NORMS[2])))),
    "free": {"method": sp.training.Free(BALL, 3)},
    "moat": method(CrossEntropy(), Cycle(((1, Benign()), (2, RS), (1, SHORT)))),
    "moat, mixup": method(
        sp.objectives.Staged(((1, sp.objectives.MixUp()), (3, CrossEntropy(clean=0.5)))),
        Cycle(((1, Benign()), (2, RS), (1, SHORT))),
    ),
    "cutmix": {"augment": (Flip(), CutMix(), SmoothedLabels(0.1))},
    "label smoothing": method(CrossEntropy(label_smoothing=0.2)),
    "statistics": method(
        sp.objectives.BatchNormStatistics(CrossEntropy(), "both"),
        inner_mode=sp.core.modes.batch_statistics,
    ),
    "training mode": method(CrossEntropy(), inner_mode=sp.train_mode),
    "patience": method(
        CrossEntropy(), PiecewiseConstant(((0, replace(SHORT, patience=0)), (1, replace(SHORT, patience=1))))
    ),
    "eps warm-up": method(CrossEntropy(), sp.core.schedules.EpsWarmUp(SHORT, 1)),
    "central": {"optimizer": sp.SGD(centralize="weights")},
    "adam": {"optimizer": sp.Adam(), "lr": 0.001},
    "lars": {"optimizer": sp.LARS(), "lr": 5.0},
    "lamb": {"optimizer": sp.LAMB(), "lr": 0.01},
    "rmsprop": {"optimizer": sp.RMSProp(), "lr": 0.001},
    "smooth": {"model": Build(small_cnn, width=4, batch_norm=True, activation="smooth_relu")},
    "smooth attacker": method(
        CrossEntropy(), RS, inner_mode=sp.core.modes.ComposedMode((sp.eval_mode, sp.models.SmoothBackward()))
    ),
    "smooth both": method(
        *(CrossEntropy(), RS),
        inner_mode=sp.core.modes.ComposedMode((sp.eval_mode, sp.models.SmoothBackward())),
        outer_mode=sp.models.SmoothBackward(),
    ),
}
