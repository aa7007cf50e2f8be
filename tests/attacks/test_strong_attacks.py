"""APGD, FAB, Square and the minimum-norm attacks, against closed forms and against loops for one example."""

import math

import numpy as np
import pytest
import torch
from conftest import Linear, count, toy_net
from scipy.optimize import linprog, minimize

from sparring import APGD, CE, FAB, L1, L2, CleanStart, Linf, Margin, Square, UserError, make_rng
from sparring.attacks import CWL2, DDN, KLDivergence, SphereStart
from sparring.attacks.apgd import _Sparse, checkpoints
from sparring.attacks.fab import to_hyperplane
from sparring.attacks.gradients import ValueAndGrad
from sparring.attacks.square import _Pyramids, _Stripes
from sparring.core.rng import PerExample

THREATS = [Linf(0.1), L2(0.4), L1(0.4)]
RELEASED = {"ties_halve": True, "first_from_zero": True, "first_no_stall": True}


def dual(threat, w):
    return {Linf: w.abs().sum(), L2: w.norm(), L1: w.abs().max()}[type(threat)]


def middle(n=5):
    return Linear(), torch.full((n, 1, 4, 4), 0.5), torch.zeros(n, dtype=torch.long)


# -- APGD


def test_the_checkpoints_are_those_of_the_paper():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]


@pytest.mark.parametrize("threat", THREATS, ids=repr)
@pytest.mark.parametrize("rules", [{}, RELEASED], ids=["paper", "released"])
def test_on_a_linear_model_apgd_reaches_the_worst_case(threat, rules):
    model, x, y = middle()
    z = APGD(threat, to_the_end=True, **rules)(CE(model, y), x, make_rng(0))
    drop = (model(x) - model(z))[:, 0].detach()
    best = threat.eps * dual(threat, model.w.detach())
    assert (drop <= best * (1 + 1e-5)).all()
    assert (drop >= best * (0.75 if isinstance(threat, L1) else 0.99)).all(), "in L1, at least two pixels move"


def one_by_one(loss, x, z, eps, steps, ties_halve=False, first_from_zero=False, first_no_stall=False):
    """Algorithm 1 of the paper for one image and Linf, in numpy; with the three details of the released code."""

    def look(at):
        point = torch.from_numpy(at).requires_grad_()
        value = loss(point).value.sum()
        return float(value.detach()), torch.autograd.grad(value, point)[0].numpy()

    def inside(point):
        return np.clip(np.clip(point, x - eps, x + eps), 0, 1)

    value, grad = look(z)
    best, best_value, best_grad, size = z, value, grad, 2 * eps
    losses, old, marked, halved, last = [0.0 if first_from_zero else value], z, value, first_no_stall, 0
    for step in range(steps):
        if step in checkpoints(steps):
            ups = sum(b > a for a, b in zip(losses[last:step], losses[last + 1 : step + 1], strict=True))
            limit = 0.75 * (step - last)
            halved = (ups <= limit if ties_halve else ups < limit) or (not halved and best_value <= marked)
            marked, last = best_value, step
            if halved:
                size, z, grad = size / 2, best, best_grad
        ahead = 0.75 if step else 1.0
        target = inside(z + size * np.sign(grad))
        new = inside(z + ahead * (target - z) + (1 - ahead) * (z - old))
        old, z = z, new
        value, grad = look(z)
        losses.append(value)
        if value > best_value:
            best, best_value, best_grad = z, value, grad
    return best_value


@pytest.mark.parametrize("rules", [{}, RELEASED], ids=["paper", "released"])
@pytest.mark.parametrize("seed", range(3))
def test_apgd_is_the_algorithm_of_the_paper(rules, seed):
    """In double precision, an example at a time against the batch."""
    model = toy_net(seed).eval().double()
    x = torch.rand(4, 1, 4, 4, generator=make_rng(seed), dtype=torch.float64)
    loss, threat = CE(model, torch.arange(4) % 3), Linf(0.15)
    found = loss(APGD(threat, 60, to_the_end=True, **rules)(loss, x, PerExample(0, torch.arange(4)))).value.detach()
    start = SphereStart()(threat, x, PerExample(0, torch.arange(4)))
    for i in range(4):
        alone = one_by_one(loss[torch.tensor([i])], x[i : i + 1].numpy(), start[i : i + 1].numpy(), 0.15, 60, **rules)
        assert float(found[i]) == pytest.approx(alone, rel=1e-12)


def test_fooled_examples_leave_at_once_and_cost_nothing_more():
    model, x = toy_net().eval(), torch.rand(64, 1, 4, 4, generator=make_rng(1))
    loss, seen = CE(model, torch.arange(64) % 3), count(model)
    APGD(Linf(0.1), 20, to_the_end=True)(loss, x, make_rng(0))
    assert seen.examples == 64 * 21
    seen.examples = 0
    z = APGD(Linf(0.1), 20)(loss, x, make_rng(0))
    left = int((~loss(z).fooled).sum())
    assert 64 <= seen.examples < 64 * 21 / 2
    assert seen.examples >= left * 21


def test_leaving_early_breaks_the_same_examples():
    model, x = toy_net().eval(), torch.rand(64, 1, 4, 4, generator=make_rng(1))
    loss = CE(model, model(x).argmax(1))
    whole = APGD(Linf(0.05), 20, to_the_end=True)(loss, x, PerExample(0, torch.arange(64)))
    early = APGD(Linf(0.05), 20)(loss, x, PerExample(0, torch.arange(64)))
    assert loss(early).fooled[loss(whole).fooled].all()
    assert 0 < loss(early).fooled.sum() < 64


def test_apgd_serves_a_loss_that_cannot_tell_who_is_fooled():
    model, x = toy_net().eval(), torch.rand(6, 1, 4, 4, generator=make_rng(1))
    loss = KLDivergence(model, model(x).softmax(1).detach())
    assert (loss(APGD(Linf(0.1), 10)(loss, x, make_rng(0))).value > 0).all()


def test_in_l1_the_last_steps_are_in_the_ball_and_few_pixels_change():
    model, x, y = middle()
    threat = L1(0.4)
    z = APGD(threat, 50, to_the_end=True)(CE(model, y), x, make_rng(0))
    assert threat.norm(z - x).max() <= 0.4 * (1 + 1e-5)
    assert ((z - x).abs() > 1e-3).flatten(1).sum(1).max() <= 3


def test_in_l1_a_step_moves_the_steepest_share_of_the_pixels_by_the_length_of_the_step():
    ball, x = L1(2.0), torch.full((2, 1, 4, 4), 0.5)
    grad = torch.randn(2, 1, 4, 4, generator=make_rng(0))
    path = _Sparse.begin(ball, x, x, ValueAndGrad(value=torch.zeros(2), fooled=None, grad=grad))
    path.share, path.size = torch.tensor([0.25, 0.5]), torch.full((2, 1, 1, 1), 0.5)
    step = path.move() - x
    for i, moved in enumerate((4, 8)):
        top = grad[i].flatten().abs().argsort(descending=True)[:moved]
        assert set(step[i].flatten().nonzero()[:, 0].tolist()) == set(top.tolist())
        assert torch.allclose(step[i].flatten()[top], 0.5 / moved * grad[i].flatten()[top].sign(), atol=1e-6)


# -- FAB and its projection


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_the_projection_onto_a_hyperplane_is_the_nearest_point_in_the_box(threat):
    """Against linear programs (Linf, L1) and SLSQP (L2)."""
    rng = np.random.default_rng(0)
    for trial in range(12):
        z, w = rng.random(6), rng.standard_normal(6)
        z[:2] = rng.integers(0, 2, 2)  # on the border of [0, 1]
        reach = np.where(w > 0, 1 - z, z) @ np.abs(w)
        gap = -0.9 * rng.random() * reach if trial % 3 else -2 * reach - 0.1
        tensors = (torch.from_numpy(t).float()[None] for t in (z, w))
        move = to_hyperplane(threat, *tensors, torch.tensor([gap]).float())[0].double().numpy()
        assert (z + move >= -1e-6).all()
        assert (z + move <= 1 + 1e-6).all()
        if trial % 3 == 0:  # out of reach: the corner that comes nearest
            assert w @ move == pytest.approx(reach, rel=1e-5)
            continue
        assert w @ move == pytest.approx(-gap, rel=1e-4, abs=1e-6)
        size = float(threat.norm(torch.from_numpy(move)[None])[0])
        assert size == pytest.approx(least(threat, z, w, -gap), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5), L1(2.0)], ids=repr)
def test_the_projection_of_an_example_does_not_depend_on_its_batch(threat):
    rng = make_rng(0)
    z, w = (torch.rand(200, 30, generator=rng, dtype=torch.float64) for _ in range(2))
    w, gap = w - 0.5, torch.linspace(0.1, 3.5, 200, dtype=torch.float64)
    alone = [to_hyperplane(threat, z[i : i + 1], w[i : i + 1], gap[i : i + 1]) for i in range(200)]
    assert torch.equal(to_hyperplane(threat, z, w, gap), torch.cat(alone))


def least(threat, z, w, need):
    """The smallest norm of a move with `w . move = need` that stays in [0, 1]."""
    bounds = list(zip(-z, 1 - z, strict=True))
    if isinstance(threat, L2):
        rule = {"type": "eq", "fun": lambda m: w @ m - need}
        found = minimize(lambda m: m @ m, w * need / (w @ w), bounds=bounds, constraints=[rule], tol=1e-12)
        return math.sqrt(found.fun)
    eye, count_ = np.eye(6), 1 if isinstance(threat, Linf) else 6
    sizes = np.ones((6, 1)) if count_ == 1 else eye
    above = np.vstack([np.hstack([eye, -sizes]), np.hstack([-eye, -sizes])])
    cost = np.r_[np.zeros(6), np.ones(count_)]
    equal = np.r_[w, np.zeros(count_)][None]
    return linprog(cost, above, np.zeros(12), equal, [need], bounds + [(0, None)] * count_).fun


def distances(attack, threat, images=40):
    """What an attack finds on a linear model, and the closed form where it holds: where no pixel meets 0 or 1."""
    model = Linear()
    x = 0.5 + 0.05 * torch.randn(images, 1, 4, 4, generator=make_rng(3))
    w = model.w.detach()
    x = x - 0.8 * ((x.flatten(1) @ w)[:, None] * w / w.norm() ** 2).view_as(x)  # nearer to the boundary
    y = model(x).argmax(1)
    found = attack.closest(Margin(model, y), x, PerExample(0, torch.arange(images)))
    wanted = (model(x)[:, 0].abs() / dual(threat, model.w)).detach()
    assert torch.allclose(threat.norm(found.points - x), found.norm, atol=1e-5)
    assert Margin(model, y)(found.points).fooled.all()
    free = wanted < 0.3
    assert free.sum() > 5
    return found.norm[free], wanted[free]


@pytest.mark.parametrize("threat", THREATS, ids=repr)
@pytest.mark.parametrize("final", [0, 3])
def test_fab_finds_the_closed_form_distance_on_a_linear_model(threat, final):
    """Within 25 %; a final search comes within 1 %."""
    found, wanted = distances(FAB(threat, steps=50, final_search=final), threat)
    assert (found >= wanted * (1 - 1e-3)).all()
    assert (found <= wanted * (1.25 if not final else 1.01) + 1e-5).all()


@pytest.mark.slow
@pytest.mark.parametrize("attack", [DDN(200), CWL2(300, 6)], ids=repr)
def test_minimum_norm_attacks_find_the_closed_form_distance_on_a_linear_model(attack):
    found, wanted = distances(attack, L2(1.0))
    assert (found >= wanted * (1 - 1e-3)).all()
    assert (found <= wanted * 1.25).all()


def test_carlini_and_wagner_climb_any_loss_that_tells_who_is_fooled():
    """Cross-entropy is never negative, as the margin is until an example is fooled."""
    model, x = toy_net().eval(), torch.rand(6, 1, 4, 4, generator=make_rng(0))
    y = model(x).argmax(1)
    norms = [CWL2(100, 6, lr=0.05).closest(loss(model, y), x, make_rng(0)).norm for loss in (CE, Margin)]
    assert norms[1].isfinite().all()
    assert (norms[0] < 1.3 * norms[1]).all()


@pytest.mark.parametrize("target", [False, True])
def test_a_step_of_fab_takes_two_forward_passes_and_a_backward_pass_a_boundary(target):
    model, x = toy_net(classes=4).eval(), torch.rand(6, 1, 4, 4, generator=make_rng(0))
    y = model(x).argmax(1)
    seen = count(model)
    loss = Margin(model, y, (y + 1) % 4 if target else None)
    FAB(Linf(1e-6), steps=5, final_search=0)(loss, x, make_rng(0))
    assert seen.forwards == 10
    assert seen.backwards == 5 * (1 if target else 3)


def test_fab_lets_an_example_go_once_a_point_within_eps_fools():
    model, x = toy_net().eval(), torch.rand(32, 1, 4, 4, generator=make_rng(0))
    loss, seen = Margin(model, model(x).argmax(1)), count(model)
    FAB(Linf(1.0), steps=50, final_search=0)(loss, x, make_rng(0))
    assert seen.examples < 32 * 2 * 20


def test_the_final_search_of_fab_leaves_alone_what_fools_within_eps():
    """Moved to the boundary, it would fool by rounding alone: a copy of the model, say, and not the model."""
    model, x = Linear(), torch.full((1, 1, 4, 4), 0.5)
    with torch.no_grad():
        y, distance = model(x).argmax(1), float(model(x)[0, 0].abs() / model.w.abs().sum())
    loss = Margin(model, y)
    inside, without = (FAB(Linf(2 * distance), 3, final_search=final)(loss, x, make_rng(0)) for final in (3, 0))
    assert torch.equal(inside, without)
    nearest = FAB(Linf(2 * distance), 3, final_search=3).closest(loss, x, make_rng(0)).points
    assert loss(inside).value > 10 * loss(nearest).value.abs()


def test_a_point_just_outside_is_brought_back_or_dropped_as_in_the_released_code():
    """On a linear model FAB ends up to 5 % beyond the boundary; an eps in between tells the two apart."""
    model = Linear()
    x = torch.full((1, 1, 4, 4), 0.5)
    with torch.no_grad():
        y, distance = model(x).argmax(1), float(model(x)[0, 0].abs() / model.w.abs().sum())
    loss, threat = Margin(model, y), Linf(distance * 1.001)
    kept = FAB(threat, 1, final_search=0)(loss, x, make_rng(0))
    dropped = FAB(threat, 1, final_search=0, bring_back=False)(loss, x, make_rng(0))
    assert loss(kept).fooled.all()
    assert torch.equal(dropped, x)


def test_fab_starts_again_elsewhere():
    model, x = toy_net().eval(), torch.rand(8, 1, 4, 4, generator=make_rng(0))
    loss = Margin(model, model(x).argmax(1))
    one, two = (FAB(Linf(0.1), 3, start=SphereStart(0.5)).closest(loss, x, make_rng(s)).norm for s in (0, 1))
    assert not torch.equal(one, two)


def test_where_nothing_fools_the_example_comes_back_at_no_distance():
    x = torch.full((2, 1, 4, 4), 0.5)

    def stubborn(z):
        return torch.stack([z.flatten(1).sum(1) * 0 + 9, z.flatten(1).sum(1) * 1e-9], 1)

    found = FAB(Linf(0.1), 5).closest(Margin(stubborn, torch.zeros(2, dtype=torch.long)), x, make_rng(0))
    assert found.norm.isinf().all()
    assert torch.equal(found.points, x)


# -- Square


def test_the_sides_of_the_squares_are_those_of_the_schedule():
    x = torch.zeros(1, 3, 32, 32)
    square = Square(Linf(0.1), 5000, rescale=False)
    assert [square.side(q, x) for q in (0, 11, 51, 201, 501, 1001, 2001, 4001)] == [29, 20, 14, 10, 7, 5, 4, 3]
    half = Square(Linf(0.1), 5000)
    assert [half.side(q, x) for q in (0, 6, 26, 101, 251)] == [29, 20, 14, 10, 7]


def test_square_takes_a_forward_pass_a_query_and_no_gradient():
    model, x = toy_net().eval(), torch.rand(6, 1, 4, 4, generator=make_rng(0))
    seen = count(model)
    Square(Linf(1e-6), 70)(Margin(model, model(x).argmax(1)), x, make_rng(0))
    assert (seen.forwards, seen.backwards) == (1 + 1 + 70, 0)


@pytest.mark.slow
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.8), L1(4.0)], ids=repr)
@pytest.mark.parametrize("last_place", [True, False])
def test_square_climbs_in_every_norm_and_more_queries_help(threat, last_place):
    model, x = toy_net().eval(), torch.rand(30, 1, 12, 12, generator=make_rng(0))[:, :, :4, :4]
    loss = Margin(model, model(x).argmax(1))
    few, many = (
        loss(Square(threat, n, last_place=last_place)(loss, x, PerExample(0, torch.arange(30)))).value for n in (2, 300)
    )
    assert (many >= few - 1e-6).float().mean() > 0.9
    assert many.mean() > few.mean()
    assert many.mean() > loss(x).value.mean()


def test_square_begins_at_25_pyramids_in_the_middle_of_the_image():
    x = torch.full((200, 1, 28, 28), 0.5)
    moved = (_Pyramids(Square(L2(0.8))).start(x, PerExample(0, torch.arange(200))) != x).any(0)[0]
    border = [False] + [True] * 25 + [False] * 2  # five of five pixels, and the other three on both sides
    assert moved.any(1).tolist() == moved.any(0).tolist() == border


def test_in_linf_every_pixel_goes_all_the_way():
    model, x = toy_net().eval(), 0.3 + 0.4 * torch.rand(6, 1, 4, 4, generator=make_rng(0))
    z = Square(Linf(0.1), 50)(Margin(model, model(x).argmax(1)), x, make_rng(0))
    assert torch.allclose((z - x).abs(), torch.full_like(x, 0.1), atol=1e-6)


@pytest.mark.parametrize("last_place", [True, False])
def test_squares_reach_the_last_row_unless_the_released_code_is_followed(last_place):
    x = torch.full((2000, 1, 8, 8), 0.5)
    numbers = torch.rand(2000, 3, generator=make_rng(0))
    moved = _Stripes(Square(Linf(0.1), last_place=last_place)).propose(x, x, 3, numbers) != x
    assert moved[:, 0, 0].any()
    assert moved[:, 0, -1].any() == last_place
    assert (moved.flatten(1).sum(1) == 9).all()


# -- what is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: APGD(Linf(0.1), 0), "steps = 0 is no whole number"),
        (lambda: APGD(Linf(0.1), rho=1.5), r"rho = 1.5 is not in \(0, 1\)"),
        (lambda: FAB(CleanStart()), "defined for Linf, L2 and L1, not for CleanStart"),
        (lambda: FAB(Linf(0.1), 0), "steps = 0 is no whole number"),
        (lambda: Square(CleanStart()), "defined for Linf, L2 and L1"),
        (lambda: Square(Linf(0.1), 0), "queries = 0 is no whole number"),
        (lambda: DDN(0), "steps = 0 is no whole number"),
        (lambda: CWL2(lr=0), "above 0"),
    ],
)
def test_an_attack_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_loss_that_an_attack_cannot_use_is_refused():
    model, x, _ = middle()
    with pytest.raises(
        UserError, match="FAB needs a loss that gives its decision boundaries: use Margin, not KLDivergence"
    ):
        FAB(Linf(0.1))(KLDivergence(model, model(x).softmax(1)), x, make_rng(0))
    with pytest.raises(
        UserError, match="needs a loss that reports which examples are fooled, and KLDivergence does not"
    ):
        DDN(2).closest(KLDivergence(model, model(x).softmax(1).detach()), x, make_rng(0))
