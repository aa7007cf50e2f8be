"""Activation functions by name, as modules, so that a model says in its repr what it uses.

Which are smooth (their derivative is continuous) is what https://arxiv.org/abs/2006.14536 is about.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.errors import UserError, nearest
from ..core.numbers import parse_number
from ..core.types import Pointwise


class SmoothReLU(Pointwise):
    """x - log(1 + alpha x) / alpha above 0, and 0 below, with one alpha that is learned (`[...]` to `[...]`).

    Its derivative, alpha x / (1 + alpha x), is continuous; for a large alpha it is ReLU. alpha = `r` squared, 400 at
    first (https://arxiv.org/abs/2006.14536 and its released code). `r` has no dimension, so the optimisers of
    `sparring.training.optimizers` do not decay it.
    """

    def __init__(self, alpha: float = 400.0) -> None:
        super().__init__()
        if not alpha > 0:
            raise UserError(f"alpha = {alpha:g} is not above 0")
        self.r = nn.Parameter(torch.tensor(float(alpha) ** 0.5))

    @property
    def alpha(self) -> float:
        return float(self.r.detach().square())

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _SmoothReLU.apply(x, self.r)
        return out


class _SmoothReLU(torch.autograd.Function):
    """Written by hand so that the input alone is kept for the backward pass, and computed in float32 or more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Tensor) -> Tensor:
        ctx.save_for_backward(x, r)
        wide, alpha = _wide(x), _wide(r).square()
        less = wide.abs().mul_(alpha).log1p_().div_(alpha)
        return torch.sub(wide, less, out=less).relu_().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, r = ctx.saved_tensors
        alpha = _wide(r).square()
        scaled = alpha * _wide(x).relu()
        value_and_grad = scaled / (1 + scaled)
        by_x = (grad * value_and_grad).to(x.dtype) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return by_x, None
        by_alpha = (grad * (torch.log1p(scaled) - value_and_grad)).sum() / alpha.square()
        return by_x, (by_alpha * 2 * _wide(r)).to(r.dtype)


def _wide(x: Tensor) -> Tensor:
    """In float32 at least, as torch computes its own activations."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class _Kind(NamedTuple):
    """How an activation is made, and the value of its parameter if it has one."""

    make: Callable[..., nn.Module]
    parameter: float | None = None


def _softplus(alpha: float) -> nn.Module:
    return nn.Softplus(beta=alpha)


KINDS: dict[str, _Kind] = {
    "relu": _Kind(nn.ReLU),
    "leaky_relu": _Kind(nn.LeakyReLU, 0.1),
    "softplus": _Kind(_softplus, 1.0),
    "parametric_softplus": _Kind(_softplus, 10.0),
    "silu": _Kind(nn.SiLU),
    "gelu": _Kind(nn.GELU),
    "gelu_tanh": _Kind(lambda: nn.GELU(approximate="tanh")),
    "elu": _Kind(nn.ELU, 1.0),
    "celu": _Kind(nn.CELU, 1.0),
    "selu": _Kind(nn.SELU),
    "smooth_relu": _Kind(SmoothReLU, 400.0),
    "mish": _Kind(nn.Mish),
    "tanh": _Kind(nn.Tanh),
}
"""Those of the paper, and some more. Not smooth at 0: relu, leaky_relu, selu, and elu unless its parameter is 1."""


def activation(name: str) -> nn.Module:
    """A fresh module by its name; those with a parameter take another value as in `celu:2`.

    The parameter is the slope of leaky_relu below 0, alpha in softplus = log(1 + exp(alpha x)) / alpha, the scale a of
    elu and celu, and the alpha from which smooth_relu begins to learn. Raises `UserError` for an unknown name, and for
    a parameter that is not above 0.
    """
    kind, _, given = name.partition(":")
    if kind not in KINDS:
        raise UserError(f"no activation {kind!r}: {nearest(kind, KINDS)}")
    make, parameter = KINDS[kind]
    if parameter is None:
        if given:
            raise UserError(f"the activation {kind} has no parameter, and {name!r} gives it one")
        return make()
    value = parse_number(given) if given else parameter
    if not 0 < value < float("inf"):
        raise UserError(f"the parameter of {name!r} is {value:g}, and wanted is a number above 0, as in {kind}:2")
    return make(value)
