"""The stability of gradients in the weights: against a quadratic, against definitions, and Theorem 1 on a small net."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parameters_to_vector

from sparring import L2, TRADES, Benign, CrossEntropy, Linf, Method, Sum, TemporalEnsembling, TensorData, UserError
from sparring.analysis import measure_gradient_stability, robustness_bound, standard_methods
from sparring.analysis.memorization.stability import DIRECTIONS, gradient
from sparring.attacks import FGSM, PGD, GaussianStart
from sparring.core.types import Objective
from sparring.models import small_cnn
from sparring.objectives import FGSMMEP

pytestmark = pytest.mark.slow

DATA = TensorData(
    torch.rand(10, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3, ("a", "b", "c")
)
BALL = Linf(0.1)


def net(seed=0, hidden=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def test_a_method_that_decides_how_its_attack_begins_is_measured_with_that():
    """FGSM-MEP begins at a corner of a cube that it draws, and steps along a momentum."""
    methods = {"mep": Method(FGSM(BALL), FGSMMEP(BALL)), "fgsm": Method(FGSM(BALL), CrossEntropy())}
    found = measure_gradient_stability(net(), DATA, methods, lengths=(0.1,))
    assert np.isfinite(found.change["mep", "up"]).all() and found.value["mep"] != found.value["fgsm"]


class Squared(Objective):
    """Half the squared length of the weights: the gradient is the weights, whatever the data."""

    def inner(self, ctx):
        return CrossEntropy().inner(ctx)

    def outer(self, ctx, x_adv):
        return {"half": 0.5 * parameters_to_vector(ctx.lens.model.parameters()).square().sum()}


def test_of_a_quadratic_everything_is_known():
    """∇J(θ) = θ: a move by λ along the gradient changes it by λ, and does not turn it."""
    model = net()
    found = measure_gradient_stability(model, DATA, {"squared": Method(Benign(), Squared())}, lengths=(0.01, 0.5, 20.0))
    length = parameters_to_vector(model.parameters()).norm().item()
    assert found.weights == pytest.approx(length)
    assert found.norm["squared"] == pytest.approx(length)
    assert found.value["squared"] == pytest.approx(0.5 * length**2)
    for way in DIRECTIONS:
        np.testing.assert_allclose(found.change["squared", way], [0.01, 0.5, 20.0], rtol=1e-6)
    np.testing.assert_allclose(found.cosine["squared", "up"], 1.0)
    np.testing.assert_allclose(found.cosine["squared", "down"], [1, 1, -1])  # beyond the minimum, it points back


def test_the_gradient_is_that_of_the_training_loss_at_points_that_are_crafted_anew():
    model = net().double().eval()
    value, found = gradient(standard_methods(BALL)["clean"], model, DATA, 4, 0)  # in batches of 4, 4 and 2
    loss = F.cross_entropy(model(DATA.x.double()), DATA.y)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(found, parameters_to_vector(grads))
    assert value == pytest.approx(loss.item())
    assert all(p.grad is None for p in model.parameters())
    for name in ("PGD-AT", "TRADES"):
        one, same, other = (
            gradient(standard_methods(BALL, steps=1)[name], model, DATA, 10, seed)[1] for seed in (0, 0, 1)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p in moved.parameters():
            p.neg_()
    assert not torch.equal(gradient(standard_methods(BALL)["PGD-AT"], moved, DATA, 10, 0)[1], found)


def test_change_and_cosine_are_those_of_the_definition():
    model = net()
    methods = standard_methods(BALL, steps=3)
    found = measure_gradient_stability(model, DATA, methods, lengths=(0.3,), seed=5)
    wide = copy.deepcopy(model).double().eval()
    _, here = gradient(methods["TRADES"], wide, DATA, 128, 5)
    with torch.no_grad():
        place = 0
        for p in wide.parameters():
            p.add_(0.3 * (here / here.norm())[place : place + p.numel()].view_as(p))
            place += p.numel()
    _, there = gradient(methods["TRADES"], wide, DATA, 128, 5)
    assert found.change["TRADES", "up"][0] == pytest.approx(float((there - here).norm()))
    assert found.cosine["TRADES", "up"][0] == pytest.approx(float(F.cosine_similarity(there, here, dim=0)))
    assert model.training
    assert all(p.dtype == torch.float32 for p in model.parameters())
    plain = found.plain()["losses"]["PGD-AT"]
    assert set(plain) == {
        "value",
        "gradient",
        "weights moved by length x (+ gradient / |gradient|)",
        "weights moved by length x (- gradient / |gradient|)",
    }
    with pytest.raises(UserError, match="all must be above 0"):
        measure_gradient_stability(model, DATA, methods, lengths=(0.0,))


def test_any_method_can_be_looked_at():
    added = Sum((TRADES(), TemporalEnsembling(3.0, on="clean")))
    model = small_cnn(3, (1, 2, 2), width=2, batch_norm=True)
    before = copy.deepcopy(model.state_dict())
    found = measure_gradient_stability(
        model, DATA, {"TE": Method(PGD(BALL, 2, start=GaussianStart()), added)}, lengths=(0.1,)
    )
    assert np.isfinite(found.change["TE", "up"]).all()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.3)], ids=repr)
def test_theorem_1_holds_on_a_small_net_and_its_last_term_stays(threat):
    """Both sides, at weights that are far apart, near, and equal; K is not taken from what the attack finds."""
    model = net()
    for scale in (1.0, 0.1, 1e-3, 0.0):
        other = copy.deepcopy(model)
        torch.manual_seed(1)
        with torch.no_grad():
            for p in other.parameters():
                p.add_(scale * torch.randn_like(p))
        found = robustness_bound(model, other, DATA, threat, points=40)
        assert found.jump <= found.most * (1 + 1e-9)
        assert found.clean <= 40 * scale
        assert 2 * found.eps * found.lipschitz > 0.01
    assert found.jump == found.clean == 0.0


def test_a_bound_without_points_or_by_a_threat_in_words_is_refused():
    with pytest.raises(UserError, match="points = 0 is no whole number"):
        robustness_bound(net(), net(), DATA, Linf(0.1), points=0)
    with pytest.raises(UserError, match=r"threat = .linf:0\.1.: wanted is a set of images"):
        robustness_bound(net(), net(), DATA, "linf:0.1")
    with pytest.raises(UserError, match="batch_size = 0 is no whole number"):
        measure_gradient_stability(net(), DATA, {}, batch_size=0)


def test_the_constant_of_theorem_1_is_known_for_a_linear_model():
    """With logits W x, the gradient by W is (p - e_y) x'; it changes at least by the image where p is constant."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        model[1].weight.zero_()  # p = 1/3 whatever the image
    one = replace(DATA, x=DATA.x[:1], y=DATA.y[:1])
    found = robustness_bound(model, model, one, L2(0.2), points=5)
    assert found.lipschitz == pytest.approx(float(np.linalg.norm([2 / 3, 1 / 3, 1 / 3])), rel=1e-6)
