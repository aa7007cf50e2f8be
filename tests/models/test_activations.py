"""Activations: against their formulas, smooth where they say so; swapped in any model; gradients that are smoothed."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparring import SGD, UserError
from sparring.core.modes import unchanged
from sparring.models import (
    SmoothBackward,
    SmoothReLU,
    activation,
    preact_resnet18,
    resnet18,
    small_cnn,
    swap_activation,
    wide_resnet,
)
from sparring.models.activations import KINDS

# name, f(x) for a number, whether the derivative is continuous at 0
FORMULAS = [
    ("relu", lambda x: max(x, 0.0), False),
    ("leaky_relu", lambda x: x if x > 0 else 0.1 * x, False),
    ("leaky_relu:0.3", lambda x: x if x > 0 else 0.3 * x, False),
    ("softplus", lambda x: math.log1p(math.exp(x)), True),
    ("parametric_softplus", lambda x: math.log1p(math.exp(10 * x)) / 10, True),
    ("parametric_softplus:3", lambda x: math.log1p(math.exp(3 * x)) / 3, True),
    ("silu", lambda x: x / (1 + math.exp(-x)), True),
    ("pssilu", lambda x: x / (1 + math.exp(-x)), True),  # as it begins
    ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))), True),
    ("gelu_tanh", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), True),
    ("elu", lambda x: x if x > 0 else math.expm1(x), True),
    ("elu:2", lambda x: x if x > 0 else 2 * math.expm1(x), False),
    ("celu:2", lambda x: x if x > 0 else 2 * math.expm1(x / 2), True),
    ("selu", lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)), False),
    ("smooth_relu", lambda x: x - math.log1p(400 * x) / 400 if x > 0 else 0.0, True),
    ("smooth_relu:3", lambda x: x - math.log1p(3 * x) / 3 if x > 0 else 0.0, True),
    ("mish", lambda x: x * math.tanh(math.log1p(math.exp(x))), True),
    ("tanh", math.tanh, True),
]


def test_every_kind_of_activation_has_its_formula_here():
    assert {name.partition(":")[0] for name, _, _ in FORMULAS} | {"celu"} == set(KINDS)


@pytest.mark.parametrize(("name", "formula", "smooth"), FORMULAS, ids=lambda v: v if isinstance(v, str) else "")
def test_every_activation_is_its_formula(name, formula, smooth):
    x = torch.cat([torch.linspace(-2, 2, 41), torch.tensor([-1e-3, 1e-3])]).double()
    wanted = torch.tensor([formula(v) for v in x.tolist()]).double()
    assert torch.allclose(activation(name).double()(x), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "formula", "smooth"), FORMULAS, ids=lambda v: v if isinstance(v, str) else "")
def test_every_gradient_is_right_and_continuous_where_it_is_said_to_be(name, formula, smooth):
    f = activation(name).double()
    x = torch.tensor([-1.7, -0.4, -0.02, 0.03, 0.6, 1.3]).double().requires_grad_()
    assert torch.autograd.gradcheck(f, x)
    around = torch.tensor([-1e-9, 1e-9]).double().requires_grad_()
    below, above = torch.autograd.grad(f(around).sum(), around)[0].tolist()
    assert (abs(above - below) < 1e-5) == smooth


def test_a_smooth_relu_becomes_relu_and_learns_its_alpha():
    x = torch.linspace(-3, 3, 101).double().requires_grad_()
    distance = [(SmoothReLU(a).double()(x) - x.relu()).abs().max().item() for a in (1.0, 1e2, 1e4, 1e6)]
    assert distance == sorted(distance, reverse=True)
    assert distance[-1] < 2e-5
    f = SmoothReLU(4.0).double()
    assert f.alpha == pytest.approx(4.0)
    assert sum(p.numel() for p in f.parameters()) == 1
    assert torch.autograd.gradcheck(lambda x, r: torch.func.functional_call(f, {"r": r}, x), (x[::7], f.r))
    assert torch.autograd.gradgradcheck(lambda x, r: torch.func.functional_call(f, {"r": r}, x), (x[3::9], f.r))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_smooth_relu_does_not_overflow_in_few_bits(dtype):
    f, x = SmoothReLU(400.0), torch.tensor([-300.0, 0.0, 1e-3, 1.0, 300.0]).to(dtype).requires_grad_()
    out = f(x)
    assert out.dtype == dtype
    assert torch.allclose(out.float(), f(x.float()), rtol=1e-2, atol=1e-6)
    (grad,) = torch.autograd.grad(out.float().sum(), x)
    assert grad.dtype == dtype
    assert grad.isfinite().all() and float(grad[-1]) == pytest.approx(1.0, abs=1e-2)


def test_alpha_is_trained_and_never_decayed():
    net = small_cnn(shape=(1, 8, 8), width=2, activation="smooth_relu")
    for decay_vectors in (True, False):
        groups = SGD(weight_decay=0.1, decay_vectors=decay_vectors).build(net).param_groups
        free = [p for group in groups if group["weight_decay"] == 0 for p in group["params"]]
        assert sum(p.ndim == 0 for p in free) == 5
        assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    net = nn.Sequential(nn.Linear(1, 1), SmoothReLU(4.0))
    optimizer = SGD(weight_decay=0.1).build(net)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    net[1](torch.linspace(0, 3, 9)).sum().backward()
    optimizer.step()
    assert net[1].r.item() < 2.0, "a smaller alpha gives a smaller sum"
    assert SGD().build(small_cnn(shape=(1, 8, 8))).param_groups[1:] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sillu", "no activation 'sillu': did you mean silu"),
        ("softplus:0", "the parameter of 'softplus:0' is 0, but must be a number above 0"),
        ("smooth_relu:-4", "is -4, but must be a number above 0"),
        ("celu:two", "two"),
        ("silu:2", "silu has no parameter, and 'silu:2' gives it one"),
    ],
)
def test_an_activation_that_is_none_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        activation(name)


# -- swapping


class Residual(nn.Module):
    """Somebody else's block: one in-place ReLU, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv2(self.relu(self.conv1(x))) + x)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.act = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x):
        return self.last(self.act(self.lin(x)))

    def last(self, x):
        return F.relu(self.lin(x)) + torch.relu(x)


class Careless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        self.relu(x)
        return x


class Nested(nn.Module):
    """Calls the activation of its part, which is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.ModuleDict({"relu": nn.ReLU()})

    def forward(self, x):
        return self.part.relu(x)


def kinds(model):
    return [type(m) for m in model.modules() if not list(m.children())]


BUILT = [
    lambda: small_cnn(shape=(3, 8, 8), width=2, batch_norm=True),
    lambda: resnet18(width=0.05),
    lambda: preact_resnet18(width=0.05, activation="elu:2"),
    lambda: wide_resnet(10, 1),
    lambda: nn.Sequential(
        Residual(), nn.Sequential(nn.GELU(), Residual()), nn.LeakyReLU(), nn.Hardtanh(0, 6), Nested()
    ),
]


@pytest.mark.parametrize("build", BUILT)
@pytest.mark.parametrize("name", ["silu", "smooth_relu", "relu"])
def test_a_swap_changes_every_activation_and_nothing_else(build, name):
    torch.manual_seed(0)
    model = build().eval()
    weights, modules = model.state_dict(), dict(model.named_modules())
    assert swap_activation(model, name) is model
    new = type(activation(name))
    old = {nn.ReLU, nn.GELU, nn.LeakyReLU, nn.ELU} - {new}
    assert new in kinds(model) and not old & set(kinds(model))
    assert not any(getattr(m, "inplace", False) or m.training for m in model.modules())
    assert list(dict(model.named_modules())) == list(modules)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(key.endswith(".r") for key in missing)
    assert len(missing) == (kinds(model).count(SmoothReLU) if name == "smooth_relu" else 0)
    assert model(torch.rand(2, 3, 8, 8)).isfinite().all()


def test_swapping_gives_the_model_that_would_have_been_built():
    torch.manual_seed(0)
    plain = resnet18(width=0.05).eval()
    built = resnet18(width=0.05, activation="silu").eval()
    built.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert not torch.equal(plain(x), built(x))
    assert torch.equal(swap_activation(plain, "silu")(x), built(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch's compiler itself
@pytest.mark.parametrize("view", [unchanged, SmoothBackward()], ids=["plain", "smooth"])
def test_gradients_that_are_written_by_hand_are_the_same_compiled(view):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), SmoothReLU(9.0), nn.Linear(8, 1))
    x = torch.rand(5, 6, requires_grad=True)
    wanted = [x, *net.parameters()]
    with view(net):
        plain = torch.autograd.grad(net(x).sum(), wanted)
        torch._dynamo.reset()
        compiled = torch.autograd.grad(torch.compile(net, backend="aot_eager", fullgraph=True)(x).sum(), wanted)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, compiled, strict=True))


def test_a_module_called_twice_stays_one():
    block = swap_activation(Residual(), "smooth_relu")
    assert sum(p.numel() for p in block.parameters()) == sum(p.numel() for p in Residual().parameters()) + 1


def test_a_single_activation_becomes_another():
    assert isinstance(swap_activation(nn.ReLU(), "silu"), nn.SiLU)


class Holding(nn.Module):
    """Has a second activation where it is no submodule."""

    def __init__(self, held):
        super().__init__()
        self.act, self.held = nn.ReLU(), held

    def forward(self, x):
        return self.act(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()),
            "no activation that could be swapped: it holds Linear, Seq.*Sigm",
        ),
        (nn.Sequential(nn.Linear(2, 2), nn.PReLU()), "no activation that could be swapped"),
        (Functional(), "F.relu in Functional; torch.relu in Functional"),
        (nn.Sequential(nn.ReLU(), Careless()), "the output of self.relu, which is discarded in Careless"),
        (
            nn.Sequential(nn.ReLU(), Nested(), Functional()),
            r"Seq.*swapped: F.relu in Functional; torch.relu in Functional",
        ),
        (Holding([nn.ReLU()]), r"the module ReLU in held \(Holding\), which a swap does not reach"),
        (Holding(partial(F.leaky_relu, negative_slope=0.1)), r"the function leaky_relu as held \(Holding\)"),
        (Holding({"relu": torch.relu}), r"the function relu as held \(Holding\)"),
        (Holding((F.hardtanh,)), r"the function hardtanh as held \(Holding\)"),
        (nn.TransformerEncoderLayer(4, 1), r"the function relu as activation \(TransformerEncoderLayer\)"),
    ],
)
def test_what_cannot_be_swapped_is_named_and_the_model_is_left_alone(model, message):
    before = kinds(model)
    with pytest.raises(UserError, match=message):
        swap_activation(model, "silu")
    assert kinds(model) == before


def test_registered_modules_may_be_held_once_more():
    """A list of blocks, or of a parent, is no second copy: what is in them is replaced in place."""
    block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.Sequential(block, nn.ReLU())
    model.stages = [block]
    model.stages.append(model.stages)
    swap_activation(model, "silu")
    assert isinstance(model.stages[0][1], nn.SiLU)


def test_a_transformer_is_the_same_function_with_and_without_gradients():
    """Without gradients torch has a fast path of its own, with the activation that it was built with."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, activation=nn.ReLU(), batch_first=True, dropout=0.0).eval()
    swap_activation(model, "silu")
    x = torch.randn(3, 5, 16)
    with torch.no_grad():
        quick = model(x)
    assert torch.allclose(quick, model(x.requires_grad_()), atol=1e-5)


def test_calls_that_are_never_reached_can_be_left():
    model = swap_activation(Functional(), "silu", strict=False)
    assert isinstance(model.act, nn.SiLU)
    with pytest.raises(UserError, match="no activation 'sillu'"):
        swap_activation(model, "sillu")


def test_the_shift_and_the_slope_of_pssilu_are_learned_by_their_absolute_values():
    layer, x = activation("pssilu"), torch.linspace(-2, 2, 9)
    layer.alpha.data.fill_(-1.5)
    layer.beta.data.fill_(-0.2)
    assert torch.allclose(layer(x), x * (torch.sigmoid(1.5 * x) - 0.2) / 0.8, atol=1e-6)
    layer(x).sum().backward()
    assert layer.alpha.grad != 0 and layer.beta.grad != 0
