"""Methods with teachers are their formulas, written out: terms and crafted points, in double precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparring import PGD, Linf, UserError
from sparring.core.rng import make_rng
from sparring.core.teachers import Teacher
from sparring.core.types import Batch, Context, ForwardCache, GivenStart, Progress
from sparring.objectives import ARD, HAT, AdaAD, DualTeacher

X = (0.1 + 0.8 * torch.rand(12, 1, 8, 8, generator=make_rng(0))).double()
X_ADV = X + 0.05 * torch.randn(X.shape, generator=make_rng(1)).double()
NEAR = X + 0.001 * torch.randn(X.shape, generator=make_rng(2)).double()
Y = torch.arange(12) % 3
SOFT = torch.softmax(torch.randn(12, 3, generator=make_rng(3)).double(), 1)


def net(seed):
    """A net whose predictions differ from image to image, and change under attack."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    with torch.no_grad():
        for weight in (model[1].weight, model[3].weight):
            weight.mul_(4)
    return model


STUDENT, TEACHER, OTHER = net(0), net(1), net(2)


def context(objective, soft=None):
    memory = objective.init(None)
    return Context(ForwardCache(STUDENT), Batch(X, Y, torch.arange(12), soft=soft), memory, Progress(0, 1, 1))


def crafted(objective):
    """The points of four steps of PGD on the inner loss."""
    attack = PGD(Linf(0.05), 4, 0.02, GivenStart(NEAR))
    return attack(objective.inner(context(objective)), X, make_rng(0))


def climbed(loss):
    """The points of four steps up the sign of the gradient of a loss that is written out."""
    z = NEAR
    for _ in range(4):
        z = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(z), z)
        z = (z + 0.02 * grad.sign()).clamp(X - 0.05, X + 0.05).clamp(0, 1)
    return z.detach()


def kl(p, q):
    return (p * (p.log() - q.log())).sum(1).mean()


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-10), name


def test_hat_is_trades_and_the_standard_teachers_label_beyond_the_ball():
    objective = HAT(Teacher.of(TEACHER), beta=2.0, weight=0.7, reach=3.0)
    p, q = STUDENT(X).softmax(1), STUDENT(X_ADV).softmax(1)
    helper = STUDENT(X + 3 * (X_ADV - X)).log_softmax(1)
    label = TEACHER(X_ADV).argmax(1)
    wanted = {
        "ce_clean": -(SOFT * p.log()).sum(1).mean(),
        "kl": 2 * kl(p, q),
        "ce_helper": -0.7 * helper[torch.arange(12), label].mean(),
    }
    same(objective.outer(context(objective, SOFT), X_ADV), wanted)
    assert torch.allclose(crafted(objective), climbed(lambda z: kl(p.detach(), STUDENT(z).softmax(1))), atol=1e-10)


def test_ard_is_its_formula():
    objective = ARD(Teacher.of(TEACHER), share=0.9, temperature=5.0)
    p, q = (TEACHER(X) / 5).softmax(1), (STUDENT(X_ADV) / 5).softmax(1)
    wanted = {"kl": 0.9 * 25 * kl(p, q), "ce_clean": 0.1 * F.nll_loss(STUDENT(X).log_softmax(1), Y)}
    same(objective.outer(context(objective), X_ADV), wanted)
    assert torch.allclose(crafted(objective), climbed(lambda z: F.cross_entropy(STUDENT(z), Y)), atol=1e-10)


def test_adaad_attacks_where_the_teacher_disagrees_through_both_nets():
    objective = AdaAD(Teacher.of(TEACHER), share=0.8)

    def apart(z):
        return kl(TEACHER(z).softmax(1), STUDENT(z).softmax(1))

    same(objective.outer(context(objective), X_ADV), {"kl": 0.8 * apart(X_ADV), "kl_clean": 0.2 * apart(X)})
    found, wanted = crafted(objective), climbed(apart)
    assert torch.allclose(found, wanted, atol=1e-10)
    fixed = climbed(lambda z: kl(TEACHER(z).detach().softmax(1), STUDENT(z).softmax(1)))
    assert not torch.allclose(found, fixed, atol=1e-3), "the gradient of the teacher matters"


def test_the_dual_teacher_is_its_formula():
    objective = DualTeacher(Teacher.of(TEACHER), Teacher.of(OTHER), 0.2, 0.3, 0.5, temperature=3.0)
    log_q = (STUDENT(X_ADV) / 3).log_softmax(1)
    standard, robust = ((each(X_ADV) / 3).softmax(1) for each in (TEACHER, OTHER))
    wanted = {
        "ce": -0.2 * (SOFT * STUDENT(X_ADV).log_softmax(1)).sum(1).mean(),
        "kd_standard": -0.3 * 9 * (standard * log_q).sum(1).mean(),
        "kd_robust": -0.5 * 9 * (robust * log_q).sum(1).mean(),
    }
    same(objective.outer(context(objective, SOFT), X_ADV), wanted)
    assert torch.allclose(crafted(objective), climbed(lambda z: F.cross_entropy(STUDENT(z), Y)), atol=1e-10)


def test_a_term_of_weight_0_costs_no_clean_pass():
    for objective in (ARD(Teacher.of(TEACHER)), AdaAD(Teacher.of(TEACHER))):
        assert set(objective.outer(context(objective), X_ADV)) == {"kl"}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda t: HAT(t, reach=1.0), "reach = 1 .* is not above 1: it must lie beyond"),
        (lambda t: ARD(t, share=1.2), r"share = 1\.2 .* is not in \[0, 1\]"),
        (lambda t: ARD(t, temperature=0.0), "temperature = 0 is not above 0"),
        (lambda t: AdaAD(t, share=-1.0), r"share = -1 .* is not in \[0, 1\]"),
        (lambda t: DualTeacher(t, t, of_robust=-0.1), r"of_robust = -0\.1 is below 0"),
    ],
)
def test_values_out_of_range_are_refused(make, reason):
    with pytest.raises(UserError, match=reason):
        make(Teacher("runs/big"))
