"""Another gradient for the ReLUs of a model, for a while."""

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
    """Every `nn.ReLU` computes what it did, but its gradient is that of a softplus: sigmoid(`alpha` x) for 1[x > 0].

    As `inner_mode` or `outer_mode` of a method, it smooths the gradient that crafts the attack, or that moves the
    weights (https://arxiv.org/abs/2006.14536, with alpha 10). Logits keep their bits. Raises `UserError` for a model
    without an `nn.ReLU`, and unless it is not `strict` for one that calls activations as functions, which cannot be
    reached, or throws away what an in-place ReLU returns.
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
                f"{type(model).__name__} has no nn.ReLU whose gradient could be smoothed: leave SmoothBackward away"
            )
        for m in sites:  # the module stays the same, and so do names, hooks and what is known of the model
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
    """A ReLU computes what it did, but its gradient is that of the identity ("fake ReLU").

    For the last one before a representation that is inverted (https://arxiv.org/abs/1906.00945), or units that are off
    where the search begins stay off.
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
