"""LARS, LAMB and RMSProp beside the formulas of their papers, written out in numpy."""

import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from sparring import LAMB, LARS, RMSProp, UserError

RATES = (0.5, 1.0, 2.0, 0.1, 0.1)
"""The learning rate of each step changes, as the rate of a step is a part of its momentum."""


def net():
    """Weights of four, two and one dimensions in float64: the last ones are biases and scales."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4, bias=True)
    ).double()


def gradients(model, steps=5, scale=1.0):
    rng = np.random.default_rng(1)
    return [[scale * rng.normal(size=tuple(p.shape)) for p in model.parameters()] for _ in range(steps)]


def stepped(model, optimizer, found, rates=RATES):
    """The weights after steps along the gradients `found`."""
    for grads, rate in zip(found, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for p, grad in zip(model.parameters(), grads, strict=True):
            p.grad = torch.from_numpy(grad).to(p.dtype)
        optimizer.step()
    return [p.detach().numpy().copy() for p in model.parameters()]


def norm(x):
    return math.sqrt((x**2).sum())


def lars(w, grads, decay, momentum=0.8, trust=0.002):
    v = np.zeros_like(w)
    for g, rate in zip(grads, RATES, strict=True):
        local = trust * norm(w) / (norm(g) + decay * norm(w)) if w.ndim > 1 else 1.0
        v = momentum * v + rate * local * (g + decay * w)
        w = w - v
    return w


def lamb(w, grads, decay, first=0.8, second=0.95, eps=1e-3):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (g, rate) in enumerate(zip(grads, RATES, strict=True), 1):
        m = first * m + (1 - first) * g
        v = second * v + (1 - second) * g**2
        r = m / (1 - first**t) / (np.sqrt(v / (1 - second**t)) + eps) + decay * w
        w = w - rate * (norm(w) / norm(r) if w.ndim > 1 else 1.0) * r
    return w


def rmsprop(w, grads, decay, alpha=0.7, momentum=0.8, eps=0.01):
    ms, v = np.ones_like(w), np.zeros_like(w)
    for g, rate in zip(grads, RATES, strict=True):
        g = g + decay * w
        ms = alpha * ms + (1 - alpha) * g**2
        v = momentum * v + rate * g / np.sqrt(ms + eps)
        w = w - v
    return w


CASES = {
    "lars": (lambda **more: LARS(0.8, trust_coefficient=0.002, **more), lars),
    "lamb": (lambda **more: LAMB((0.8, 0.95), epsilon=1e-3, **more), lamb),
    "rmsprop": (lambda **more: RMSProp(alpha=0.7, momentum=0.8, epsilon=0.01, **more), rmsprop),
}


@pytest.mark.parametrize("vectors", [False, True], ids=["vectors spared", "vectors decayed"])
@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_the_paper(name, vectors):
    make, oracle = CASES[name]
    model = net()
    before, found = [p.detach().numpy().copy() for p in model.parameters()], gradients(model)
    after = stepped(model, make(weight_decay=0.1, decay_vectors=vectors).build(model), found)
    for i, w in enumerate(before):
        wanted = oracle(w, [grads[i] for grads in found], 0.1 if vectors or w.ndim > 1 else 0.0)
        assert np.abs(after[i] - wanted).max() < 1e-12
        assert np.abs(after[i] - w).max() > 1e-3


@pytest.mark.parametrize("value", [LARS(weight_decay=0.0), LAMB(weight_decay=0.0, epsilon=0.0)], ids=["lars", "lamb"])
def test_the_length_of_a_gradient_does_not_decide_how_far_a_layer_moves(value):
    once, scaled = net(), net()
    one = stepped(once, value.build(once), gradients(once))
    other = stepped(scaled, value.build(scaled), gradients(scaled, scale=1000.0))
    for p, q in zip(one, other, strict=True):
        if p.ndim > 1:
            assert np.allclose(p, q, rtol=1e-9)


def test_a_first_step_of_lamb_is_as_long_as_the_weights_times_the_rate():
    model = net()
    before = [p.detach().numpy().copy() for p in model.parameters()]
    after = stepped(model, LAMB(weight_decay=0.1).build(model), gradients(model, 1), (0.01,))
    for p, q in zip(before, after, strict=True):
        if p.ndim > 1:
            assert norm(q - p) == pytest.approx(0.01 * norm(p), rel=1e-9)


@pytest.mark.parametrize("value", [LARS(), LAMB()], ids=["lars", "lamb"])
def test_a_layer_of_zeros_moves_at_the_rate_itself(value):
    model = nn.Linear(3, 2, bias=False).double()
    nn.init.zeros_(model.weight)
    grads = gradients(model, 1)
    (after,) = stepped(model, value.build(model), grads, (0.5,))
    wanted = -0.5 * grads[0][0] if isinstance(value, LARS) else -0.5 * np.sign(grads[0][0])
    assert np.allclose(after, wanted, rtol=1e-4)
    (still,) = stepped(model, LARS(weight_decay=0.0).build(model), [[np.zeros((2, 3))]], (0.5,))
    assert np.array_equal(still, after), "a gradient of 0 moves nothing, and gives no NaN"


@pytest.mark.parametrize("name", CASES)
def test_a_saved_optimiser_goes_on_to_the_same_bits(name):
    make, _ = CASES[name]
    whole, cut = net().float(), net().float()
    found = gradients(whole)
    wanted = stepped(whole, make().build(whole), found)
    begun = make().build(cut)
    stepped(cut, begun, found[:2], RATES[:2])
    file = io.BytesIO()
    torch.save(begun.state_dict(), file)
    resumed = make().build(cut)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for p, q in zip(stepped(cut, resumed, found[2:], RATES[2:]), wanted, strict=True):
        assert np.array_equal(p, q)


@pytest.mark.parametrize("name", CASES)
def test_a_weight_without_a_gradient_stays_and_counts_no_steps(name):
    make, oracle = CASES[name]
    model = net()
    found = gradients(model)
    optimizer, still = make(weight_decay=0.1).build(model), model[0].weight.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    for p in list(model.parameters())[1:]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(model[0].weight, still) and model[0].weight not in optimizer.state
    after = stepped(model, optimizer, found)
    wanted = oracle(still.numpy(), [grads[0] for grads in found], 0.1)
    assert np.abs(after[0] - wanted).max() < 1e-12, "its first step is the first that had a gradient"


def test_a_step_may_evaluate_the_loss_itself():
    layer = nn.Linear(2, 1, bias=False)
    optimizer = RMSProp().build(layer)

    def loss():
        optimizer.zero_grad()
        value = layer.weight.square().sum()
        value.backward()
        return value

    before = layer.weight.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.1
    assert float(optimizer.step(loss).detach()) == pytest.approx(float(before.square().sum()))
    assert not torch.equal(layer.weight, before)


def test_a_trust_coefficient_that_moves_nothing_is_refused():
    with pytest.raises(UserError, match=r"trust_coefficient = 0 of LARS is not above 0.*0\.001 is usual"):
        LARS(trust_coefficient=0.0)
