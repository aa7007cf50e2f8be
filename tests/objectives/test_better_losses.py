"""Methods with other losses are their formulas, written out: terms and crafted points, in double precision."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparring import FGSM, PGD, TRADES, Build, CrossEntropy, Linf, Method, State, UserError, train_step
from sparring.acceleration import OriginalModel
from sparring.attacks import KLDivergence
from sparring.core.rng import make_rng
from sparring.core.schedules import EpsWarmUp, PiecewiseConstant
from sparring.core.types import Batch, Context, ForwardCache, GivenStart, Progress, TensorData
from sparring.models import small_cnn
from sparring.objectives import FATTRADES, IKL, LBGAT, MAILAT, MAILTRADES, MLCAT, SCORE

X = (0.1 + 0.8 * torch.rand(12, 1, 8, 8, generator=make_rng(0))).double()
X_ADV = X + 0.05 * torch.randn(X.shape, generator=make_rng(1)).double()
NEAR = X + 0.001 * torch.randn(X.shape, generator=make_rng(2)).double()
Y = torch.arange(12) % 3
SOFT = torch.softmax(torch.randn(12, 3, generator=make_rng(3)).double(), 1)
DATA = TensorData((X * 255).to(torch.uint8), Y, ("a", "b", "c"))


def net(seed):
    """A net whose predictions differ from image to image, and change under attack."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    with torch.no_grad():
        for weight in (model[1].weight, model[3].weight):
            weight.mul_(4)
    return model


def double_cnn(num_classes, shape):
    return small_cnn(num_classes, shape, width=2).double()


MODEL = net(0)


def context(objective, soft=None, progress=Progress(0, 1, 1)):  # noqa: B008
    memory = objective.init(DATA)
    return Context(ForwardCache(MODEL), Batch(X, Y, torch.arange(12), soft=soft), memory, progress)


class Given:
    """Stands for a model whose logits are given for some tensors."""

    def __init__(self, *pairs):
        self.pairs = pairs

    def logits(self, x):
        return next(out for known, out in self.pairs if known is x)


def crafted(objective, ctx=None, patience=None):
    """The points of four steps of PGD on the inner loss."""
    attack = PGD(Linf(0.05), 4, 0.02, GivenStart(NEAR), patience)
    return attack(objective.inner(ctx or context(objective)), X, make_rng(0))


def climbed(loss, going=lambda z: torch.ones(12, dtype=torch.bool)):
    """The points of four steps up the sign of the gradient of a loss that is written out, for the rows that go on."""
    z = NEAR
    for _ in range(4):
        z = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(z), z)
        moved = (z + 0.02 * grad.sign()).clamp(X - 0.05, X + 0.05).clamp(0, 1)
        z = torch.where(going(z)[:, None, None, None], moved, z)
    return z.detach()


def kl(p, q):
    return (p * (p.log() - q.log())).sum(1)


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-10), name


def pairwise(change, w):
    """The weighted mean square of the released code: over all pairs of classes."""
    total = 0.0
    for j in range(3):
        for k in range(3):
            total = total + w[:, j] * w[:, k] * (change[:, j] - change[:, k]) ** 2 / 4
    return total


def test_ikl_is_its_formula():
    objective = IKL(alpha=3.0, beta=7.0, attack_beta=0.5)
    ctx = context(objective, SOFT)
    means = torch.softmax(torch.randn(3, 3, generator=make_rng(5)), 1)
    ctx.memory.means.copy_(means)
    w = SOFT @ means.double()
    clean, adversarial = MODEL(X), MODEL(X_ADV)
    p = clean.detach().softmax(1)
    wanted = {
        "ce_clean": -(SOFT * clean.log_softmax(1)).sum(1).mean(),
        "ce": -3 * (p * adversarial.log_softmax(1)).sum(1).mean(),
        "wmse": 7 * pairwise(clean - adversarial, w).mean(),
    }
    same(objective.outer(ctx, X_ADV), wanted)

    def attacked(z):
        out = MODEL(z)
        return (-(p * out.log_softmax(1)).sum(1) + 0.5 * pairwise(clean.detach() - out, w)).sum()

    assert torch.allclose(crafted(objective, ctx), climbed(attacked), atol=1e-10)
    hard = context(objective)
    hard.memory.means.copy_(means)
    found = objective.outer(hard, X_ADV)["wmse"]
    assert torch.allclose(found, 7 * pairwise(clean - adversarial, means.double()[Y]).mean(), atol=1e-10)


def test_the_gradient_of_ikl_reaches_the_clean_prediction_through_wmse_alone():
    objective = IKL(beta=0.0)
    clean = MODEL(X).detach().requires_grad_()
    ctx = replace(context(objective), lens=Given((X, clean), (X_ADV, MODEL(X_ADV))))
    assert torch.autograd.grad(objective.outer(ctx, X_ADV)["ce"], clean, allow_unused=True) == (None,)
    assert bool(torch.autograd.grad(IKL().outer(ctx, X_ADV)["wmse"], clean)[0].any())


def test_the_weights_of_ikl_are_the_mean_predictions_of_the_epoch_before():
    objective = IKL(temperature=2.0)
    memory = objective.init(DATA)
    uniform = memory.means.clone()
    rows = (torch.tensor([0, 1, 3, 4]), torch.tensor([6, 7, 9, 10]))  # none of class 2
    for step, part in enumerate(rows):
        ctx = Context(ForwardCache(MODEL), Batch(X[part], Y[part], part), memory, Progress(step, 2, 3))
        objective.observe(ctx)
        assert torch.equal(memory.means, uniform), "they stay as they are during an epoch"
        objective.remember(ctx, X[part])
    part = rows[0]
    objective.observe(Context(ForwardCache(MODEL), Batch(X[part], Y[part], part), memory, Progress(2, 2, 3)))
    seen = torch.cat(rows)
    p = (MODEL(X[seen]) / 2).softmax(1).float()
    for label in (0, 1):
        assert torch.allclose(memory.means[label], p[Y[seen] == label].mean(0), atol=1e-6)
    assert torch.equal(memory.means[2], uniform[2]), "a class without an image keeps its weights"
    assert not bool(memory.sums.any())


def test_lbgat_is_its_formula_and_trains_both_nets():
    objective = LBGAT(Build(double_cnn), beta=2.0)
    ctx = context(objective, SOFT)
    second, adversarial = ctx.memory(X), MODEL(X_ADV)
    p = MODEL(X).softmax(1)
    wanted = {
        "mse": (adversarial - second).square().mean(),
        "ce_second": -(SOFT * second.log_softmax(1)).sum(1).mean(),
        "kl": 2 * kl(p, adversarial.softmax(1)).mean(),
    }
    found = objective.outer(ctx, X_ADV)
    same(found, wanted)
    for module in (MODEL, ctx.memory):
        grads = torch.autograd.grad(found["mse"], list(module.parameters()), retain_graph=True)
        assert any(bool(grad.any()) for grad in grads)
    assert set(replace(objective, beta=0.0).outer(ctx, X_ADV)) == {"mse", "ce_second"}
    assert torch.allclose(crafted(objective), climbed(lambda z: kl(p.detach(), MODEL(z).softmax(1)).sum()), atol=1e-10)


def test_the_second_net_follows_from_the_seed_and_leaves_the_stream_of_random_numbers():
    torch.manual_seed(3)
    first = torch.rand(2)
    torch.manual_seed(3)
    one, two = (LBGAT(Build(double_cnn)).init(DATA) for _ in range(2))
    assert torch.equal(torch.rand(2), first)
    torch.manual_seed(4)
    other = LBGAT(Build(double_cnn)).init(DATA)
    assert torch.equal(one.head.weight, two.head.weight) and not torch.equal(one.head.weight, other.head.weight)


def test_score_is_its_formula():
    clean, adversarial = MODEL(X).softmax(1), MODEL(X_ADV).softmax(1)
    apart = (clean - adversarial).square().sum(1)
    clip = float(apart.detach().median())
    objective = SCORE(beta=3.0, clip=clip)
    wanted = {
        "square_clean": (clean - SOFT).square().sum(1).mean(),
        "square": 3 * (apart - clip).clamp(min=0).mean(),
    }
    same(objective.outer(context(objective, SOFT), X_ADV), wanted)
    hard = (clean - F.one_hot(Y, 3)).square().sum(1).mean()
    assert torch.allclose(objective.outer(context(objective), X_ADV)["square_clean"], hard, atol=1e-10)
    wanted = climbed(lambda z: (MODEL(z).softmax(1) - clean.detach()).square().sum())
    assert torch.allclose(crafted(objective), wanted, atol=1e-10)


def weights(bias, slope):
    """Three times the sigmoid of the margin of the likeliest wrong class over the true one."""
    rows = []
    for p, label in zip(MODEL(X_ADV).softmax(1).tolist(), Y.tolist(), strict=True):
        margin = max(q for k, q in enumerate(p) if k != label) - p[label]
        rows.append(3 / (1 + math.exp(-slope * (margin + bias))))
    return torch.tensor(rows, dtype=torch.float64)


def test_mail_is_its_formula():
    ce = F.cross_entropy(MODEL(X_ADV), Y, reduction="none")
    objective = MAILAT(bias=-0.2, slope=4.0)
    w = weights(-0.2, 4.0)
    assert float(w.std()) > 0.1
    same(objective.outer(context(objective), X_ADV), {"ce": (w * ce).mean()})
    assert torch.allclose(crafted(objective), climbed(lambda z: F.cross_entropy(MODEL(z), Y)), atol=1e-10)
    objective = MAILTRADES(beta=2.0, bias=0.1, slope=3.0)
    p, q = MODEL(X).softmax(1), MODEL(X_ADV).softmax(1)
    wanted = {"ce_clean": F.cross_entropy(MODEL(X), Y), "kl": 2 * (weights(0.1, 3.0) * kl(p, q)).mean()}
    same(objective.outer(context(objective), X_ADV), wanted)
    assert torch.allclose(crafted(objective), climbed(lambda z: kl(p.detach(), MODEL(z).softmax(1)).sum()), atol=1e-10)


def test_mail_does_not_weigh_during_the_warm_up_and_its_weights_have_no_gradient():
    early, late = (Progress(step, 2, 5) for step in (3, 4))
    for objective, plain in ((MAILAT(warm_up=2), CrossEntropy()), (MAILTRADES(warm_up=2), TRADES(5.0))):
        wanted = plain.outer(context(plain), X_ADV)
        found = objective.outer(context(objective, progress=early), X_ADV)
        assert all(torch.allclose(found[name], wanted[name], atol=1e-12) for name in wanted)
        found = objective.outer(context(objective, progress=late), X_ADV)
        assert any(not torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)
    logits = MODEL(X_ADV).detach().requires_grad_()
    ctx = replace(context(MAILAT()), lens=Given((X_ADV, logits)))
    (grad,) = torch.autograd.grad(MAILAT(0.0, 0.0).outer(ctx, X_ADV)["ce"], logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, Y), logits)
    assert torch.allclose(grad, 1.5 * plain, atol=1e-12), "with slope 0 all weigh 1.5"
    (grad,) = torch.autograd.grad(MAILAT(-0.2, 4.0).outer(ctx, X_ADV)["ce"], logits)
    assert torch.allclose(grad, weights(-0.2, 4.0)[:, None] * plain, atol=1e-12)


def test_fat_trades_is_trades_whose_attack_lets_fooled_examples_go():
    objective = FATTRADES(2.0)
    p = MODEL(X).detach().softmax(1)
    found = crafted(objective, patience=0)

    def going(z):
        return MODEL(z).argmax(1) == Y

    wanted = climbed(lambda z: kl(p, MODEL(z).softmax(1)).sum(), going)
    assert torch.allclose(found, wanted, atol=1e-10)
    assert not torch.allclose(found, crafted(TRADES(2.0)), atol=1e-3)
    assert torch.equal(crafted(objective), crafted(TRADES(2.0))), "without patience it is TRADES"
    same(objective.outer(context(objective, SOFT), X_ADV), TRADES(2.0).outer(context(objective, SOFT), X_ADV))
    with pytest.raises(UserError, match="KLDivergence does not"):
        crafted(TRADES(), patience=0)


def test_a_divergence_that_knows_labels_reports_who_is_fooled():
    loss = KLDivergence(MODEL, MODEL(X).softmax(1).detach(), y=Y)
    assert torch.equal(loss(X).fooled, MODEL(X).argmax(1) != Y)
    some = torch.tensor([4, 1])
    assert torch.equal(loss[some](X[some]).fooled, loss(X).fooled[some])
    assert KLDivergence(MODEL, MODEL(X).softmax(1).detach())(X).fooled is None


def test_mlcat_is_the_loss_of_those_above_the_threshold_and_a_constant_for_the_others():
    objective = MLCAT(1.0)
    logits = MODEL(X_ADV).detach().requires_grad_()
    ctx = replace(context(objective), lens=Given((X_ADV, logits)))
    ce = F.cross_entropy(logits, Y, reduction="none")
    assert 0 < int((ce < 1).sum()) < 12
    found = objective.outer(ctx, X_ADV)["ce"]
    assert torch.allclose(found, torch.tensor([max(1.0, value) for value in ce.tolist()]).double().mean(), atol=1e-10)
    scaled = (ce * torch.where(ce < 1, 1 / ce, 1.0)).mean()  # as in the released code: the factor is differentiated
    grads = [torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (found, scaled)]
    assert torch.allclose(*grads, atol=1e-10) and bool(grads[0].any())
    assert torch.allclose(crafted(objective), climbed(lambda z: F.cross_entropy(MODEL(z), Y)), atol=1e-10)


def test_methods_that_know_classes_ask_for_the_training_set():
    model, method = net(0).float(), Method(PGD(Linf(0.1), 1), IKL())
    batch = Batch(X.float(), Y, torch.arange(12))
    with pytest.raises(UserError, match=r"the memory of IKL depends on the classes .*memory=method\.init\(data\)"):
        State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(UserError, match="LBGAT"):
        Method(PGD(Linf(0.1), 1), LBGAT(Build(small_cnn))).loss(model, batch)
    state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1), DATA)
    assert train_step(method, state, batch, Progress(1, 2, 1), backend=OriginalModel())["wmse"] > 0


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: IKL(temperature=0.0), "temperature = 0 is not above 0"),
        (lambda: SCORE(clip=-1.0), "clip = -1 of the robust term is below 0"),
        (lambda: Method(FGSM(Linf(0.1)), SCORE()), "begins at the clean image, where its distance has no gradient"),
        (lambda: Method(EpsWarmUp(FGSM(Linf(0.1)), 2), SCORE()), "begins at the clean image"),
        (
            lambda: Method(PiecewiseConstant(((0, PGD(Linf(0.1))), (5, FGSM(Linf(0.1))))), SCORE()),
            "begins at the clean image",
        ),
        (lambda: Method(PiecewiseConstant(((0, PGD),)), CrossEntropy()), "PGD"),
        (lambda: MLCAT(float("nan")), "threshold = nan is not a finite number"),
    ],
)
def test_values_out_of_range_are_refused(make, reason):
    with pytest.raises(UserError, match=reason):
        make()
