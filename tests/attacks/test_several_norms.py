"""Attacks in several norms: the highest loss, one norm for each view, the union of sets and its steepest descent."""

import pytest
import torch
import torch.nn.functional as F

from sparring import CE, L1, L2, PGD, CleanStart, Linf, Restarts, UserError, evaluate, make_rng
from sparring.attacks import MSD, Highest, PerView, Union
from sparring.core.modes import eval_mode
from sparring.core.rng import PerExample, some
from sparring.core.types import recordable
from sparring.evaluation import MultiTargeted
from sparring.models import small_cnn
from sparring.testing import check_threat

SETS = (Linf(0.03), L2(0.5), L1(4.0, share=0.02))
X = torch.rand(12, 3, 8, 8, generator=make_rng(0)).double()
Y = torch.arange(12) % 3
ATTACKS = tuple(PGD(each, 3, start=CleanStart()) for each in SETS)


def net():
    torch.manual_seed(0)
    return small_cnn(3, (3, 8, 8), width=4).double().eval()


def losses(model, z):
    return F.cross_entropy(model(z), Y, reduction="none")


def test_highest_keeps_the_point_of_highest_loss_of_each_image():
    model = net()
    found = Highest(ATTACKS)(CE(model, Y), X, make_rng(0))
    points = [attack(CE(model, Y), X, make_rng(0)) for attack in ATTACKS]
    values = torch.stack([losses(model, z) for z in points])
    assert torch.equal(losses(model, found), values.amax(0))
    assert len(set(values.argmax(0).tolist())) > 1, "the norms differ between images"
    assert recordable(Highest(ATTACKS)) and not recordable(Highest((PGD(SETS[0], patience=1),)))


def test_each_view_meets_its_own_attack():
    model, views = net(), X[:4].repeat(3, 1, 1, 1)
    y, rng = Y[:4].repeat(3), PerExample(0, torch.arange(12))
    found = PerView(ATTACKS)(CE(model, y), views, rng)
    for number, attack in enumerate(ATTACKS):
        rows = torch.arange(4) + 4 * number
        wanted = attack(CE(model, y[rows]), views[rows], some(PerExample(0, torch.arange(12)), rows))
        assert torch.equal(found[rows], wanted)


def test_views_are_for_training_since_verdicts_would_depend_on_the_batch():
    wanted = r"PerView divides a batch among its attacks.* take Worst\(\(..\)\) of them"
    with pytest.raises(UserError, match=wanted):
        evaluate(net(), (X, Y), PerView(ATTACKS))
    with pytest.raises(UserError, match=wanted):
        MultiTargeted(Restarts(PerView(ATTACKS), 2))


def test_a_union_is_a_threat():
    check_threat(Union(SETS))


def test_a_union_holds_what_one_of_its_sets_holds():
    union = Union(SETS)
    delta = torch.randn(40, 3, 8, 8, generator=make_rng(1)).double() * torch.logspace(-3, 0, 40).view(-1, 1, 1, 1)
    inside = torch.stack([each.norm(delta) <= each.eps for each in SETS]).any(0)
    assert torch.equal(union.norm(delta) <= union.eps, inside) and 0 < inside.sum() < 40
    far = X + delta[:12] * 30
    points = torch.stack([each.project(far, X) for each in SETS])
    nearest = (points - far).flatten(2).norm(dim=2).amin(0)
    assert torch.allclose((union.project(far, X) - far).flatten(1).norm(dim=1), nearest)


def test_the_step_of_a_union_is_the_steepest_of_its_sets():
    grad = (
        torch.randn(12, 3, 8, 8, generator=make_rng(2)).double() * torch.rand(12, 3, 8, 8, generator=make_rng(3)) ** 9
    )
    gains = torch.stack([(each.eps * each.ascent(grad) * grad).sum((1, 2, 3)) for each in SETS])
    assert torch.allclose((Union(SETS).ascent(grad) * grad).sum((1, 2, 3)), gains.amax(0))


def test_msd_is_its_formula():
    model, sizes, delta = net(), (0.01, 0.2, 1.0), torch.zeros_like(X)
    found = MSD(Union(SETS), 6, sizes)(CE(model, Y), X, make_rng(0))
    most, wanted, seen = torch.zeros(12).double(), torch.zeros_like(X), set()
    for _ in range(6):
        z = (X + delta).requires_grad_()
        (grad,) = torch.autograd.grad(losses(model, z).sum(), z)
        length = grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        at_l2 = delta + 0.2 * grad / length
        at_l2 = at_l2 * (0.5 / at_l2.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp_max(1)
        at_linf = (delta + 0.01 * grad.sign()).clamp(-0.03, 0.03)
        top = grad.abs() >= grad.abs().flatten(1).topk(4).values[:, -1].view(-1, 1, 1, 1)  # 2 % of 192 pixels
        at_l1 = SETS[2].project(X + delta + grad.sign() * top / 4, X) - X
        tried = [(X + each).clamp(0, 1) - X for each in (at_linf, at_l2, at_l1)]
        values = torch.stack([losses(model, X + each) for each in tried])
        best = values.argmax(0)
        seen |= set(best.tolist())
        delta = torch.stack(tried)[best, torch.arange(12)]
        higher = values.amax(0) > most
        wanted[higher], most[higher] = delta[higher], values.amax(0)[higher]
    assert torch.allclose(found, X + wanted, rtol=0, atol=1e-10)
    assert len(seen) > 1, "more than one set was steepest"
    assert bool((Union(SETS).norm(found - X) <= 1 + 1e-9).all())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: MSD(Linf(0.1)), "MSD is defined for a union of sets"),
        (lambda: MSD(Union(SETS), 5, (0.1,)), "must be a length above 0 for each of 3 sets"),
        (lambda: Union(()), "a union of no sets"),
    ],
)
def test_mistakes_get_a_sentence(make, reason):
    with pytest.raises(UserError, match=reason):
        make()


def test_msd_leaves_model_and_images_as_they_were():
    model, x = net(), X.clone()
    with eval_mode(model):
        MSD(Union(SETS), 2)(CE(model, Y), x, make_rng(0))
    assert torch.equal(x, X) and all(p.grad is None for p in model.parameters())
