"""Convolutions with constant weights, for attacks: only the gradient of the input is computed.

They avoid two costs. First, normalisation and ReLU after a convolution need memory passes of their own, unless the
library that computes the convolution fuses them. Second, the gradient of an image of one or three channels is a
convolution with one or three outputs, which leaves most of the vector units idle; computed for a block of pixels at
once, it is a strided convolution with many outputs, two to five times as fast on the CPU.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_FEW_CHANNELS = 4


# Bytes of output below which a memory pass costs less than a backward step in Python.
_WORTH = ContextVar("_WORTH", default=4 * 2**20)


@contextmanager
def worth(least: int) -> Generator[None]:
    """Set the least size of an output, in bytes, for the custom backward pass; 0 uses it for a few images too."""
    token = _WORTH.set(least)
    try:
        yield
    finally:
        _WORTH.reset(token)


def unsafe_in_channels_last(model: nn.Module) -> bool:
    """Return True if torch computes a convolution of the model wrongly, or crashes, in channels-last order on the CPU.

    In float32, of 6,000 random geometries for the fused convolution and 4,000 for the ordinary one (torch 2.13, oneDNN
    3.12), all 20 that failed had unequal strides, or strides and dilation at once: two gave numbers from uninitialised
    memory, the others ended the process.
    """
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return any(
        conv.stride[0] != conv.stride[1] or (conv.stride != (1, 1) and conv.dilation != (1, 1)) for conv in convolutions
    )


class FrozenConv(nn.Module):
    """A `Conv2d` with constant weights, followed by a ReLU if `relu`; `[B, C, H, W]` in channels-last order.

    It has a gradient for its input only and, where its output is large, no second derivative. Its owner sets `weight`
    and `bias`, which are zero until then, and calls `loaded`.
    """

    weight: Tensor
    bias: Tensor
    blocks: Tensor | None

    def __init__(self, conv: nn.Conv2d, relu: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.stride, self.dilation, self.groups, self.relu = conv.stride, conv.dilation, conv.groups, relu
        assert not isinstance(conv.padding, str)
        self.padding = conv.padding
        self.register_buffer("weight", _channels_last(torch.zeros_like(conv.weight, dtype=dtype, requires_grad=False)))
        self.register_buffer("bias", torch.zeros(conv.out_channels, dtype=dtype, device=conv.weight.device))
        self.block = _block_side(conv)
        self.register_buffer("blocks", _block_kernel(self.weight, self.block) if self.block else None)

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Return True if a module can be replaced: a plain `Conv2d` with zero padding that is given in numbers."""
        return type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)

    @torch.no_grad()
    def loaded(self) -> None:
        """Derive from the weights what depends on them, after they have changed."""
        if self.blocks is not None:
            _fill_blocks(self.blocks, self.weight, self.block)

    def forward(self, x: Tensor) -> Tensor:
        # A compiler fuses the passes by itself, and few channels cost cuDNN less.
        if torch.compiler.is_compiling() or x.device.type != "cpu":
            return self._plain(x.to(self.weight.dtype))
        if torch.is_grad_enabled() and x.requires_grad:
            if not self._saves(x):
                return self._plain(x.to(self.weight.dtype))
            out: Tensor = _Differentiable.apply(x, self)
            return out
        return self._fused(_channels_last(x.to(self.weight.dtype)))

    def _saves(self, x: Tensor) -> bool:
        """Return True if the custom backward pass saves a memory pass, of an output that is large enough to matter."""
        size = x.numel() // x.shape[1] * self.weight.shape[0] // (self.stride[0] * self.stride[1])
        return (self.relu or bool(self.block)) and size * self.weight.element_size() >= _WORTH.get()

    def _plain(self, x: Tensor) -> Tensor:
        out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return out.relu() if self.relu else out

    def _fused(self, x: Tensor) -> Tensor:
        """Run without a gradient on `x` in channels-last order, with the ReLU in the same pass if torch supports it."""
        fused = _fused_op(self.weight.dtype)
        if fused is None:
            return self._plain(x)
        how = (list(self.padding), list(self.stride), list(self.dilation), self.groups)
        out: Tensor = fused(x, self.weight, self.bias, *how, "relu" if self.relu else "none", [], "")
        return out


class _Differentiable(torch.autograd.Function):
    """Fused forward pass of a `FrozenConv`, with a backward pass to its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: FrozenConv) -> Tensor:
        ctx.conv, ctx.dtype = conv, x.dtype
        x = _channels_last(x.to(conv.weight.dtype))
        out = conv._fused(x)
        ctx.save_for_backward(x, out if conv.relu else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        conv: FrozenConv = ctx.conv
        x, out = ctx.saved_tensors
        grad = _channels_last(grad)
        if out is not None:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        height, width = x.shape[2:]
        if conv.blocks is not None and not (height % conv.block or width % conv.block):
            return _by_blocks(grad, conv, height, width).to(ctx.dtype), None
        geometry = (list(conv.stride), list(conv.padding), list(conv.dilation), False, [0, 0], conv.groups)
        wanted = [True, False, False]
        found = torch.ops.aten.convolution_backward(grad, x, conv.weight, None, *geometry, wanted)[0]
        return found.to(ctx.dtype), None


@cache
def _fused_op(dtype: torch.dtype) -> Any:
    """Return torch's convolution with a fused ReLU, or None where there is none."""
    if not torch.backends.mkldnn.is_available():
        return None
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


def _block_side(conv: nn.Conv2d) -> int:
    """Return the side in pixels of the blocks whose gradient is computed at once; 0 where blocks are not faster."""
    padding: Any = conv.padding
    same = all(2 * p == k - 1 for p, k in zip(padding, conv.kernel_size, strict=True))
    dense = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1
    if not (same and dense and conv.in_channels <= _FEW_CHANNELS):
        return 0
    return 4 if conv.in_channels == 1 else 2


def _block_kernel(weight: Tensor, side: int) -> Tensor:
    """Return the kernel of the input gradient for all pixels of a block, `[side * side * C, O, K + side - 1, ...]`."""
    outer, inner, *size = weight.shape
    shape = (side * side * inner, outer, *(k + side - 1 for k in size))
    blocks = _channels_last(torch.zeros(shape, dtype=weight.dtype, device=weight.device))
    _fill_blocks(blocks, weight, side)
    return blocks


def _fill_blocks(blocks: Tensor, weight: Tensor, side: int) -> None:
    inner, (high, wide) = weight.shape[1], weight.shape[2:]
    turned = weight.transpose(0, 1).flip(2, 3)
    for i in range(side):
        for j in range(side):
            first = (i * side + j) * inner
            blocks[first : first + inner, :, i : i + high, j : j + wide] = turned


def _by_blocks(grad: Tensor, conv: FrozenConv, height: int, width: int) -> Tensor:
    """Return the input gradient `[B, C, H, W]`; each position of a strided convolution gives one block of pixels."""
    assert conv.blocks is not None
    side, inner = conv.block, conv.weight.shape[1]
    found = F.conv2d(grad, conv.blocks, None, side, conv.padding)
    found = found.view(len(grad), side, side, inner, height // side, width // side)
    return found.permute(0, 3, 4, 1, 5, 2).reshape(len(grad), inner, height, width)


def _channels_last(x: Tensor) -> Tensor:
    """Return `x` in channels-last order, with matching strides also for tensors with one channel or one pixel.

    The memory of such tensors is the same in either order, so `contiguous` does not change their strides; torch then
    takes the tensor for one in the usual order, and copies the output of the next layer.
    """
    if x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last):
        return x
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    return x.as_strided((batch, channels, height, width), (height * width * channels, 1, width * channels, channels))
