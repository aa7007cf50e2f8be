"""Activation functions by name, as modules, so that the repr of a model shows which it uses.

https://arxiv.org/abs/2006.14536 is about which of them are smooth (have a continuous derivative).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.errors import UserError, nearest
from ..core.numbers import parse_number
from ..core.types import Pointwise


class SmoothReLU(Pointwise):
    """Smooth ReLU with a learned alpha: x - log(1 + alpha x) / alpha above 0, and 0 below.

    It maps `[...]` to `[...]`. Its derivative, alpha x / (1 + alpha x), is continuous; for a large alpha it approaches
    that of ReLU. The learned parameter is `r`, and alpha is `r` squared. `r` has no dimension, so the optimisers of
    `sparring.training.optimizers` do not decay it.

    Args:
        alpha: Initial value of alpha; 400 in the paper and its released code.

    Raises:
        UserError: If `alpha` is not above 0.

    References:
        Smooth Adversarial Training, and its released code: https://arxiv.org/abs/2006.14536.
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
    """Hand-written gradient: keeps only the input for the backward pass, and computes in float32 or wider."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Tensor) -> Tensor:
        ctx.save_for_backward(x, r)
        wide, alpha = _wide(x), _wide(r).square()
        less = wide.abs().mul_(alpha).log1p_().div_(alpha)
        # neither in place nor by a `to` that has nothing to do: the compiler of torch 2.11 gives no gradient to either
        out = torch.sub(wide, less, out=less).relu()
        return out if wide is x else out.to(x.dtype)

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
    """Convert half precision to float32, as torch does in its own activations."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class PSSiLU(Pointwise):
    """Parametric shifted SiLU: x (sigmoid(|alpha| x) - |beta|) / (1 - |beta|), with learned alpha and beta.

    It maps `[...]` to `[...]`, and begins as SiLU. The learned parameters have no dimension, so the optimisers of
    `sparring.training.optimizers` do not decay them.

    References:
        Parameterizing Activation Functions for Adversarial Robustness: https://arxiv.org/abs/2110.05626.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1e-8))

    def forward(self, x: Tensor) -> Tensor:
        shift = self.beta.abs()
        return x * (torch.sigmoid(self.alpha.abs() * x) - shift) / (1 - shift)


class _Kind(NamedTuple):
    """Builder of an activation, and the default of its parameter if it has one."""

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
    "pssilu": _Kind(PSSiLU),
    "gelu": _Kind(nn.GELU),
    "gelu_tanh": _Kind(lambda: nn.GELU(approximate="tanh")),
    "elu": _Kind(nn.ELU, 1.0),
    "celu": _Kind(nn.CELU, 1.0),
    "selu": _Kind(nn.SELU),
    "smooth_relu": _Kind(SmoothReLU, 400.0),
    "mish": _Kind(nn.Mish),
    "tanh": _Kind(nn.Tanh),
}
"""Activations of the paper, and some more.

Not smooth at 0: relu, leaky_relu, selu, and elu unless its parameter is 1.
"""


def activation(name: str) -> nn.Module:
    """Create an activation module by its name, as `relu` or `celu:2`.

    The names are the keys of `KINDS`. Activations with a parameter take another value after a colon. The parameter is
    the slope of leaky_relu below 0, alpha in softplus = log(1 + exp(alpha x)) / alpha, the scale a of elu and celu, and
    the initial alpha of smooth_relu.

    Args:
        name: The name, with a parameter after a colon if it is not the default.

    Returns:
        A new module.

    Raises:
        UserError: If the name is unknown, the parameter is not a finite number above 0, or the activation has no
            parameter.
    """
    kind, _, given = name.partition(":")
    if kind not in KINDS:
        raise UserError(f"no activation {kind!r}: {nearest(kind, KINDS)}")
    make, parameter = KINDS[kind]
    if parameter is None:
        if given:
            raise UserError(f"the activation {kind} has no parameter, and {name!r} gives it one: use {kind!r}")
        return make()
    value = parse_number(given) if given else parameter
    if not 0 < value < float("inf"):
        raise UserError(f"the parameter of {name!r} is {value:g}, but must be a number above 0, as in {kind}:2")
    return make(value)
