"""The public contracts can fail: each is shown something that breaks it."""

from dataclasses import dataclass

import pytest
import torch
from conftest import toy_net
from torch import nn

from sparring import PGD, CrossEntropy, Linf, Objective, Sum
from sparring.objectives import Consistency
from sparring.testing import check_attack, check_model, check_objective, check_threat

pytestmark = pytest.mark.slow


def broken(what):
    return pytest.raises(AssertionError, match=f"it should hold that .*{what}")


@dataclass(frozen=True)
class Bent(Linf):
    """A threat with one thing wrong."""

    wrong: str = ""

    def __init__(self, wrong):
        object.__setattr__(self, "eps", 0.1)
        object.__setattr__(self, "wrong", wrong)

    def sample(self, x, rng):
        if self.wrong == "always the same":
            return x
        return Linf(self.eps).sample(x, torch.Generator() if self.wrong == "own seed" else rng)

    def project(self, z, x):
        if self.wrong == "box":
            return torch.clamp(z, x - self.eps, x + self.eps)
        if self.wrong == "ball":
            return z.clamp(0, 1)
        if self.wrong == "in place":
            return z.copy_(Linf(self.eps).project(z, x))
        if self.wrong == "together":
            return Linf(self.eps).project(z - z.mean() * 0.01, x)
        return Linf(self.eps).project(z, x)

    def ascent(self, grad):
        if self.wrong == "nan":
            return grad / grad.abs().flatten(1).amax(1)[:, None, None, None]
        return grad.sign() * {"long": 2, "down": -1}.get(self.wrong, 1)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ("box", r"lies in \[0, 1\]"),
        ("ball", "lies within"),
        ("in place", "project leaves its arguments"),
        ("together", "projecting twice|a point inside|examples do not influence"),
        ("always the same", "two samples differ"),
        ("nan", "zero gradient"),
        ("long", "no longer than 1"),
        ("down", "a step increases the loss"),
    ],
)
def test_a_broken_threat_is_found_out(wrong, what):
    with broken(what):
        check_threat(Bent(wrong))


def away(loss, x, rng):
    return x + 0.2


def in_place(loss, x, rng):
    return x.add_(0.01)


def unseeded(loss, x, rng):
    return (x + 0.01 * torch.rand_like(x)).clamp(0, 1)


def downhill(loss, x, rng):
    z = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(z).value.sum(), z)
    return (x - 0.05 * grad.sign()).clamp(0, 1)


def polluting(loss, x, rng):
    z = x.clone().requires_grad_()
    loss(z).value.sum().backward()
    return x


def attached(loss, x, rng):
    return x.clone().requires_grad_()


@pytest.mark.parametrize(
    ("attack", "what"),
    [
        (away, "lies within"),
        (in_place, "the images are as they were"),
        (unseeded, "equal seeds give"),
        (downhill, "the loss increases; here it decreased by"),
        (polluting, "no gradient is left"),
        (attached, "detached"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_broken_attack_is_found_out(attack, what):
    with broken(what):
        check_attack(attack, within=Linf(0.1))


class Vector(CrossEntropy):
    def outer(self, ctx, x_adv):
        return {"ce": ctx.lens.logits(x_adv).sum(1)}


class Whole(CrossEntropy):
    """Its inner loss is a mean, which no subset can be attacked on."""

    def inner(self, ctx):
        class Mean:
            def __call__(self, x):
                probe = CrossEntropy().inner(ctx)(x)
                return probe._replace(value=probe.value.mean())

        return Mean()


class Constant(CrossEntropy):
    def outer(self, ctx, x_adv):
        return {"ce": ctx.lens.logits(x_adv).sum() * 0}


class Forgetful(CrossEntropy):
    """It counts in outer, where a second call of the closure would count again."""

    def init(self, data):
        memory = nn.Module()
        memory.register_buffer("count", torch.zeros(()))
        return memory

    def outer(self, ctx, x_adv):
        ctx.memory.count += 1
        return CrossEntropy().outer(ctx, x_adv)


class Hidden(Objective):
    """It remembers where no checkpoint looks."""

    def __init__(self):
        self.calls = 0

    def inner(self, ctx):
        return CrossEntropy().inner(ctx)

    def outer(self, ctx, x_adv):
        self.calls += 1
        return {"ce": CrossEntropy().outer(ctx, x_adv)["ce"] * self.calls}


def test_an_objective_of_two_views_is_given_two():
    check_objective(Sum((CrossEntropy(), Consistency(1.0))), PGD(Linf(0.1), steps=1))


@pytest.mark.parametrize(
    ("objective", "what"),
    [
        (Vector(), r"outer of Vector: 'ce' has shape \(\d+,\): wanted is a scalar, as its mean"),
        (Whole(), r"the value of the loss \w+ has shape \(\): wanted is one number per image, \[\d+\]"),
        (Constant(), "the terms have a gradient"),
        (Forgetful(), "the loss of the update changes no memory"),
        (Hidden(), "training is reproducible"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_broken_objective_is_found_out(objective, what):
    with broken(what):
        check_objective(objective, PGD(Linf(0.1), steps=1))


class Probabilities(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = toy_net()

    def forward(self, x):
        return self.net(x).softmax(1)


class Blind(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = toy_net()

    def forward(self, x):
        return self.net(x * 0)


class Crowd(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = toy_net()

    def forward(self, x):
        return self.net(x) + x.mean()


@pytest.mark.parametrize(
    ("model", "classes", "what"),
    [
        (Probabilities(), 3, "gives probabilities"),
        (Blind(), 3, "every image has a gradient"),
        (Crowd(), 3, "images do not influence"),
        (toy_net(), 4, "gives 3 classes, but the data have 4"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_broken_model_is_found_out(model, classes, what):
    with broken(what):
        check_model(model, (1, 4, 4), classes)
