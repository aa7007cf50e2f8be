"""What each objective does with soft targets."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import sparring as sp
from sparring import PGD, Build, CrossEntropy, Linf, Method, State, Sum, UserError, train_step
from sparring.acceleration import OriginalModel
from sparring.attacks.losses import CE
from sparring.core.rng import make_rng
from sparring.core.teachers import Teacher
from sparring.core.types import Batch, Context, ForwardCache, Progress, TensorData
from sparring.models import small_cnn
from sparring.objectives import (
    ARD,
    ELLE,
    FARE,
    FATTRADES,
    FGSMMEP,
    GAT,
    HAT,
    IKL,
    LBGAT,
    MAILAT,
    MAILTRADES,
    MART,
    MLCAT,
    RSLAD,
    SCORE,
    TDAT,
    TRADES,
    AdaAD,
    BatchNormStatistics,
    DualTeacher,
    GaussianNoise,
    GradAlign,
    LogitPairing,
    MixUp,
    NuAT,
    Staged,
    TemporalEnsembling,
)

BALL = Linf(0.1)
Y = torch.arange(12) % 3
X = torch.rand(12, 1, 8, 8, generator=make_rng(0)).double()
SOFT = torch.softmax(3 * torch.randn(12, 3, generator=make_rng(1)).double(), 1)
DATA = TensorData((X * 255).to(torch.uint8), Y, ("a", "b", "c"))


def net(seed=0):
    torch.manual_seed(seed)
    return small_cnn(3, (1, 8, 8), width=4).double()


def double_cnn(num_classes, shape):
    return small_cnn(num_classes, shape, width=2).double()


def terms(objective, batch):
    model = net()
    memory = objective.init(DATA)
    ctx = Context(ForwardCache(model), batch, memory, Progress(3, 3, 9))
    with torch.no_grad():
        objective.observe(ctx)
        ctx = replace(ctx, start=objective.start(ctx))
    x_adv = (batch.x + 0.05).clamp(0, 1)
    value = objective.inner(ctx)(x_adv).value
    return value.detach(), {k: v.detach() for k, v in objective.outer(ctx.on(model), x_adv).items()}


TEACHER = Teacher.of(net(1))

OF_LABELS = {
    "cross-entropy": CrossEntropy(clean=0.3, label_smoothing=0.1),
    "trades": TRADES(),
    "mart": MART(),
    "hat": HAT(TEACHER),
    "ard": ARD(TEACHER, share=0.9),
    "ikl": IKL(),
    "lbgat": LBGAT(Build(double_cnn)),
    "score": SCORE(),
    "mail-at": MAILAT(),
    "mail-trades": MAILTRADES(),
    "fat-trades": FATTRADES(),
    "mlcat": MLCAT(0.5),
    "two teachers": DualTeacher(TEACHER, TEACHER),
    "mixup": MixUp(),
    "pairing": Sum((CrossEntropy(), LogitPairing())),
    "ensembling": Sum((CrossEntropy(), TemporalEnsembling(3.0))),
    "grad-align": Sum((CrossEntropy(), GradAlign(BALL))),
    "elle": Sum((CrossEntropy(), ELLE(BALL))),
    "gat": GAT(),
    "nuat": NuAT(),
    "tdat": TDAT(BALL),
    "fgsm-mep": FGSMMEP(BALL),
    "statistics": BatchNormStatistics(CrossEntropy()),
    "noise": GaussianNoise(0.1),
    "staged": Staged(((1, CrossEntropy()), (1, TRADES()))),
}


@pytest.mark.parametrize("name", OF_LABELS)
def test_a_soft_target_of_one_class_is_that_class(name):
    hard = Batch(X, Y, torch.arange(12))
    soft = replace(hard, soft=F.one_hot(Y, 3).double())
    (value, found), (wanted_value, wanted) = (terms(OF_LABELS[name], batch) for batch in (soft, hard))
    assert torch.allclose(value, wanted_value, atol=1e-12)
    for key, each in wanted.items():
        assert torch.allclose(found[key], each, atol=1e-12), key


@pytest.mark.parametrize("name", OF_LABELS)
def test_a_soft_target_changes_the_loss_of_the_update(name):
    hard = Batch(X, SOFT.argmax(1), torch.arange(12))
    _, found = terms(OF_LABELS[name], replace(hard, soft=SOFT))
    _, wanted = terms(OF_LABELS[name], hard)
    assert any(not torch.allclose(found[key], wanted[key], atol=1e-6) for key in wanted)


def test_cross_entropy_with_a_soft_target_is_the_expected_cross_entropy():
    model = net()
    loss = CE(model.eval(), SOFT)
    log_p = model(X).log_softmax(1)
    probe = loss(X)
    assert torch.allclose(probe.value, -(SOFT * log_p).sum(1))
    assert torch.equal(probe.fooled, log_p.argmax(1) != SOFT.argmax(1))
    some = torch.tensor([4, 1])
    assert torch.allclose(loss[some](X[some]).value, probe.value[some])


@pytest.mark.parametrize(
    "objective", [RSLAD(TEACHER), AdaAD(TEACHER, share=0.9), FARE(TEACHER)], ids=lambda o: type(o).__name__
)
def test_a_method_without_labels_ignores_soft_targets(objective):
    batch = Batch(X, Y, torch.arange(12))
    (value, found), (wanted_value, wanted) = (terms(objective, each) for each in (replace(batch, soft=SOFT), batch))
    assert torch.equal(value, wanted_value) and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_guest_loop_may_give_soft_targets():
    model, method = net(), Method(PGD(BALL, 2), CrossEntropy())
    hard, one_hot, soft = (
        method.loss(model, (X, target), seed=1, backend=OriginalModel())
        for target in (Y, F.one_hot(Y, 3).double(), SOFT)
    )
    assert torch.allclose(hard, one_hot) and not torch.allclose(hard, soft, atol=1e-3)


@pytest.mark.parametrize(
    ("soft", "reason"),
    [
        (SOFT[:, :2], r"a probability for each class, floating point \[12, 3\]"),
        (SOFT * 2, "soft target number 0 sums to 2"),
        (F.one_hot(Y, 3), "soft targets are torch.int64"),
    ],
)
def test_soft_targets_that_are_no_probabilities_are_refused(soft, reason):
    model, method = net(), Method(PGD(BALL, 1), CrossEntropy())
    state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(UserError, match=reason):
        train_step(method, state, Batch(X, Y, torch.arange(12), soft=soft), Progress(0, 2, 1))


def test_every_objective_says_what_it_does_with_a_soft_target():
    labelled = {type(part) for each in OF_LABELS.values() for part in getattr(each, "parts", (each,))}
    without_labels = {
        "ACL",
        "AdaAD",
        "FARE",
        "RoCL",
        "RSLAD",
        "InstanceDiscrimination",
        "ContrastiveAT",
        "ContrastivePretraining",
    }
    without_labels |= {"Consistency", "InfoNCE", "Multiscale", "NTXent", "Regularizer", "Sum", "ATTA", "EAT"}
    by_class = {"KNNContrastiveAT"}
    named = {kind.__name__ for kind in labelled} | without_labels | by_class
    assert set(sp.objectives.__all__) == named


def test_trades_may_be_attacked_away_from_the_target():
    batch = Batch(X, SOFT.argmax(1), torch.arange(12), soft=SOFT)
    value, found = terms(TRADES(away_from="target"), batch)
    _, usual = terms(TRADES(), batch)
    x_adv = (X + 0.05).clamp(0, 1)
    assert torch.allclose(value, -(SOFT * net()(x_adv).log_softmax(1)).sum(1).detach())
    assert all(torch.equal(found[key], usual[key]) for key in usual), "the update is the same"
    with pytest.raises(UserError, match="away_from = 'label' is not one of"):
        TRADES(away_from="label")
