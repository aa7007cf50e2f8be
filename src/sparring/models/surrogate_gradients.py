"""Surrogate gradients for the ReLUs of a model, within a `with` block."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.types import Pointwise
from .swap import refuse_hidden


@dataclass(frozen=True, slots=True)
class SmoothBackward:
    """Context in which every `nn.ReLU` has the gradient of a softplus, and its output is unchanged.

    The gradient is sigmoid(`alpha` x) in place of 1[x > 0]. As `inner_mode` or `outer_mode` of a method, it smooths the
    gradient that crafts the attack, or that updates the weights. Logits are bitwise unchanged.

    Args:
        alpha: Sharpness of the softplus; 10 in the paper.
        strict: Whether to refuse a model that calls activations as functions, which cannot be reached, or that discards
            what an in-place ReLU returns.

    Raises:
        UserError: If `alpha` is not a finite number above 0; when entered, for a model without an `nn.ReLU`, and with
            `strict` for a model as above.

    References:
        Smooth Adversarial Training: https://arxiv.org/abs/2006.14536.
    """

    alpha: float = 10.0
    strict: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf"):
            raise UserError(f"alpha = {self.alpha:g} is no number above 0")

    @contextmanager
    def __call__(self, model: nn.Module) -> Generator[None]:
        refuse_hidden(model, self.strict, "smoothed")
        sites = [m for m in model.modules() if type(m) is nn.ReLU]
        if not sites:
            raise UserError(
                f"{type(model).__name__} has no nn.ReLU whose gradient could be smoothed: leave SmoothBackward out"
            )
        for m in sites:  # the module object stays the same, so names, hooks and caches keyed by it stay valid
            m.__class__ = _SmoothlyDerived
            setattr(m, _ALPHA, self.alpha)
        try:
            yield
        finally:
            for m in sites:
                m.__class__ = nn.ReLU
                delattr(m, _ALPHA)


@contextmanager
def straight_through(relu: nn.Module) -> Generator[None]:
    """Context in which a ReLU has the gradient of the identity ("fake ReLU"), and its output is unchanged.

    It is meant for the last ReLU before a representation that is inverted: with the usual gradient, units that are off
    where the search begins stay off.

    Args:
        relu: The module; its class is replaced within the block.

    Yields:
        Nothing.

    References:
        Adversarial robustness as a prior for learned representations: https://arxiv.org/abs/1906.00945.
    """
    before, relu.__class__ = relu.__class__, _PassedThrough
    try:
        yield
    finally:
        relu.__class__ = before


_ALPHA = "alpha of the gradient"


class _SmoothlyDerived(Pointwise, nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _SmoothReLUGradient.apply(x, getattr(self, _ALPHA))
        return out


class _PassedThrough(Pointwise, nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _StraightThrough.apply(x)
        return out


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _SmoothReLUGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return x.relu()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * torch.sigmoid(ctx.alpha * x), None
