"""Blocks that compute their activations again: the same training to the bit, with less to keep."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import toy_data
from torch import nn

from sparring import AWP, PGD, TRADES, Linf, Method, OptimizerStep, State, UserError, train_step
from sparring.core.modes import eval_mode, statistics_kept
from sparring.core.types import Batch, Progress
from sparring.models import amdim, preact_resnet18, recomputed, repeated_blocks, small_cnn, wide_resnet
from sparring.objectives import GradAlign, Sum
from sparring.objectives.cross_entropy import CrossEntropy
from sparring.training.updates import MixedPrecision

pytestmark = pytest.mark.slow


class Transformer(nn.Module):
    """Two layers of attention with dropout, on four tokens."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
        self.layers = nn.ModuleList([layer, copy.deepcopy(layer)])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        tokens = x.flatten(1).unflatten(1, (-1, 8))
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.mean(1))


def chain():
    """All of its batch norm is inside its blocks."""
    blocks = [nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.SiLU(), nn.Dropout(0.2))]
    return nn.Sequential(*blocks, copy.deepcopy(blocks[0]), nn.Flatten(), nn.Linear(32, 3))


NETS = {
    "chain": chain,
    "preact_resnet18": lambda: preact_resnet18(3, (2, 4, 4), width=0.05),
    "wide_resnet": lambda: wide_resnet(16, 1, 3, (2, 4, 4), dropout=0.3),
    "transformer": Transformer,
}


def made(name):
    torch.manual_seed(0)
    return NETS[name]().train(), torch.rand(6, 2, 4, 4)


def trained(name, view, passes=2):
    """Gradients, buffers and the state of torch's generator after passes through a net, whose losses are summed."""
    model, x = made(name)
    torch.manual_seed(1)
    with view(model):
        sum(F.cross_entropy(model(x + i), torch.arange(6) % 3) for i in range(passes)).backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    return grads, dict(model.named_buffers()), torch.get_rng_state()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("name", NETS)
def test_gradients_statistics_and_dropout_are_the_same_to_the_bit(name):
    kept, again = (trained(name, view) for view in (lambda model: nullcontext(), recomputed))
    assert same(kept[0], again[0])
    assert same(kept[1], again[1]), "batch norm sees each batch once"
    assert torch.equal(kept[2], again[2])
    assert len({p.abs().sum().item() for p in again[0].values()}) > 5


def saved_bytes(model, x, view):
    """Bytes that a forward pass keeps for the backward pass, weights apart."""
    kept, weights = {}, {p.data_ptr() for p in model.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with view(model), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x).sum()
    return sum(kept.values())


@pytest.mark.parametrize(("name", "most"), [("preact_resnet18", 0.4), ("wide_resnet", 0.4), ("transformer", 0.3)])
def test_much_less_is_kept_for_the_backward_pass(name, most):
    model, _ = made(name)
    x = torch.rand(16, 2, 16, 16)
    assert saved_bytes(model, x, recomputed) < most * saved_bytes(model, x, lambda model: nullcontext())


@pytest.mark.parametrize(
    "update", [OptimizerStep(), AWP(0.01), MixedPrecision(OptimizerStep())], ids=["step", "awp", "bf16"]
)
def test_steps_of_training_are_the_same_to_the_bit(update):
    def after(mode):
        torch.manual_seed(0)
        # with 4 x 4 pixels the last stage would see one: where AMX computes in bf16, torch 2.13 then gives noise
        model, data = preact_resnet18(3, (1, 8, 8), width=0.05), toy_data()
        data = replace(data, x=data.x.repeat(1, 1, 2, 2))
        method = Method(PGD(Linf(0.1), 2), TRADES(), outer_mode=mode)
        state = State.start(method, model, torch.optim.SGD(model.parameters(), 0.1), data)
        for step in range(2):
            rows = torch.arange(12 * step, 12 * step + 12)
            train_step(method, state, Batch(data.x[rows] / 255, data.y[rows], rows), Progress(step, 2, 1), update)
        return model.state_dict()

    assert same(after(lambda model: nullcontext()), after(recomputed))


@pytest.mark.parametrize("name", ["preact_resnet18", "wide_resnet"])
def test_a_gradient_of_a_gradient_is_the_same_to_the_bit(name):
    def penalty(view):
        model, x = made(name)
        x.requires_grad_()
        torch.manual_seed(1)
        with view(model):
            (slope,) = torch.autograd.grad(F.cross_entropy(model(x), torch.arange(6) % 3), x, create_graph=True)
            slope.square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, dict(model.named_buffers())

    kept, again = penalty(lambda model: nullcontext()), penalty(recomputed)
    assert same(kept[0], again[0]) and same(kept[1], again[1])


def test_an_objective_that_aligns_gradients_trains_the_same():
    def after(mode):
        torch.manual_seed(0)
        model, data = preact_resnet18(3, (1, 4, 4), width=0.05), toy_data()
        method = Method(PGD(Linf(0.1), 1), Sum((CrossEntropy(), GradAlign(Linf(0.1)))), outer_mode=mode)
        state = State.start(method, model, torch.optim.SGD(model.parameters(), 0.1), data)
        rows = torch.arange(12)
        train_step(method, state, Batch(data.x[rows] / 255, data.y[rows], rows), Progress(0, 2, 1))
        return model.state_dict()

    assert same(after(lambda model: nullcontext()), after(recomputed))


@pytest.mark.parametrize("within", [eval_mode, statistics_kept], ids=["eval mode", "statistics kept"])
def test_a_pass_in_another_mode_is_repeated_in_that_mode_and_with_its_statistics(within):
    def grads(view, at_once):
        model, x = made("chain")
        torch.manual_seed(1)
        with view(model):
            with within(model):
                quiet = model(x).sum()
            if at_once:
                quiet.backward()
                quiet = 0.0
            (quiet + model(x + 1).square().sum()).backward()  # this pass moves the statistics
        assert all(module.training for module in model.modules())
        assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        return {n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())

    # backward at once, as torch itself differentiates the first pass at the statistics after the second one
    kept, again = grads(lambda model: nullcontext(), at_once=True), grads(recomputed, at_once=False)
    assert same(kept[1], again[1])
    for name, grad in kept[0].items():
        assert torch.allclose(again[0][name], grad, atol=1e-6), name


def test_the_model_is_as_before_afterwards_even_after_an_exception():
    model, x = made("preact_resnet18")
    names, keys = [n for n, _ in model.named_modules()], list(model.state_dict())
    mine = repeated_blocks(model)[0]
    mine.forward = own = mine.forward

    def fail():
        assert [n for n, _ in model.named_modules()] == names and list(model.state_dict()) == keys
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), recomputed(model):
        fail()
    assert mine.forward is own
    assert not any("forward" in vars(block) for block in repeated_blocks(model)[1:])
    with recomputed(model), torch.no_grad():
        assert not model(x).requires_grad


def test_a_model_without_repeated_blocks_is_refused():
    with (
        pytest.raises(UserError, match=r"Classifier has no repeated blocks .*: these are several members of one class"),
        recomputed(small_cnn(width=2)),
    ):
        pass


class Stage(nn.Module):
    """Blocks behind a convolution, as a stage of ConvNeXt."""

    def __init__(self, count, kind):
        super().__init__()
        self.down, self.blocks = nn.Conv2d(2, 2, 1), nn.Sequential(*(kind() for _ in range(count)))


class Bottle(nn.Module):
    """A block that is a chain of unlike parts itself, as in MobileNet."""

    def __init__(self):
        super().__init__()
        self.chain = nn.Sequential(Unit(), Gate(), Unit())


class Unit(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU())


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = Unit(), Unit()


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)


def names(model):
    return [type(block).__name__ for block in repeated_blocks(model)]


def test_blocks_are_found_in_models_of_every_build():
    assert names(preact_resnet18(width=0.05)) == ["PreActBlock"] * 8
    assert names(wide_resnet(depth=16, width=1)) == ["WideBlock"] * 6
    assert set(names(amdim(shape=(3, 32, 32), width=4, dim=8, depth=2))) == {"_Residual"}
    assert names(Transformer()) == ["TransformerEncoderLayer"] * 2
    wrapped = nn.Sequential(nn.Identity(), preact_resnet18(width=0.05))
    assert len(repeated_blocks(wrapped)) == 8
    staged = nn.Sequential(*(Stage(count, Unit) for count in (1, 3)))
    assert names(staged) == ["Unit"] * 4, "inner ones, and single ones of their class"
    assert names(nn.Sequential(Unit(), *(Stage(2, Bottle) for _ in range(2)))) == ["Bottle"] * 4
    plain = nn.Sequential(*(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)) for _ in range(3)), nn.Linear(2, 2))
    assert len(repeated_blocks(plain)) == 3
    pure = nn.Sequential(nn.Linear(2, 2), Pair())
    assert names(pure) == ["Unit", "Unit"], "of a module that holds nothing else"
    dense = nn.ModuleDict({"a": Unit(), "b": Unit()})
    assert names(dense) == ["Unit", "Unit"]
    assert repeated_blocks(nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))) == []
