"""Batch normalisation whose statistics and weights stay as they are while an attack searches."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FrozenNorm(nn.Module):
    """A `BatchNorm2d` in eval mode, followed by a ReLU if `relu`: `x * scale + shift` for each channel.

    It is differentiated once, by its input alone, and remembers for that what it gave and not what it was given. `load`
    gives it its numbers; until then they are empty.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d, relu: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.relu = relu
        assert norm.running_mean is not None
        for name in ("scale", "shift"):
            empty = torch.zeros(1, norm.num_features, 1, 1, dtype=dtype, device=norm.running_mean.device)
            self.register_buffer(name, empty)

    @staticmethod
    def fits(norm: nn.Module) -> bool:
        """Whether a module can be replaced: a plain `BatchNorm2d` that keeps statistics."""
        return type(norm) is nn.BatchNorm2d and norm.running_mean is not None

    @torch.no_grad()
    def load(self, scale: Tensor, shift: Tensor) -> None:
        """New numbers `[C]`, in place."""
        self.scale.copy_(scale[:, None, None])
        self.shift.copy_(shift[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.scale.dtype)
        if torch.compiler.is_compiling():  # compilers fuse
            out = torch.addcmul(self.shift, x, self.scale)
            return out.relu() if self.relu else out
        differentiable: Tensor = _Differentiable.apply(x, self)
        return differentiable


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: FrozenNorm) -> Tensor:
        out = torch.addcmul(norm.shift, x, norm.scale)
        out = out.relu_() if norm.relu else out
        ctx.norm = norm
        ctx.save_for_backward(out if norm.relu else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        if out is None:
            return grad * ctx.norm.scale, None
        return torch.ops.aten.threshold_backward(grad, out, 0).mul_(ctx.norm.scale), None


def folded(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift `[C]` of batch normalisation in eval mode."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias
