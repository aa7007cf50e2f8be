"""Convolutions whose weights stay as they are while an attack searches: only the gradient of the input is wanted.

Two things cost time that need not. A normalisation and a ReLU after a convolution are memory passes of their own,
unless the library that computes the convolution is told of them. And the gradient of an image of one or three channels
is a convolution with one or three outputs, which leaves most of the vector units idle: computed for a block of pixels
at once, it is a convolution with stride and many outputs, two to five times as fast on the CPU.
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


# bytes of output: below that, a pass over it costs less than a backward step in Python
_WORTH = ContextVar("_WORTH", default=4 * 2**20)


@contextmanager
def worth(least: int) -> Generator[None]:
    """From how many bytes of output on a pass is saved; 0 tries on a few images what an attack will do with many."""
    token = _WORTH.set(least)
    try:
        yield
    finally:
        _WORTH.reset(token)


def unsafe_in_channels_last(model: nn.Module) -> bool:
    """Whether a convolution is of a kind that torch computes wrongly, or dies of, in channels-last order on the CPU.

    In float32, of 6,000 geometries for the fused convolution and 4,000 for the ordinary one, drawn by chance (torch
    2.13, oneDNN 3.12), all 20 that failed had unequal strides, or strides and dilation at once: two gave numbers from
    uninitialised memory, the others ended the process.
    """
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return any(
        conv.stride[0] != conv.stride[1] or (conv.stride != (1, 1) and conv.dilation != (1, 1)) for conv in convolutions
    )


class FrozenConv(nn.Module):
    """A `Conv2d` with constant weights, followed by a ReLU if `relu`; `[B, C, H, W]` in channels-last order.

    It is differentiated by its input alone and, where it is large, once. `load` gives it weights; until then they are
    empty.
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
        """Whether a module can be replaced: a plain `Conv2d` with zero padding that is given in numbers."""
        return type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)

    @torch.no_grad()
    def load(self, weight: Tensor, bias: Tensor) -> None:
        """New weights, in place."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        if self.blocks is not None:
            _fill_blocks(self.blocks, self.weight, self.block)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or x.device.type != "cpu":  # compilers fuse, and cuDNN minds few channels less
            return self._plain(x.to(self.weight.dtype))
        if torch.is_grad_enabled() and x.requires_grad:
            if not self._saves(x):
                return self._plain(x.to(self.weight.dtype))
            out: Tensor = _Differentiable.apply(x, self)
            return out
        return self._fused(_channels_last(x.to(self.weight.dtype)))

    def _saves(self, x: Tensor) -> bool:
        """Whether there is a pass to be saved, and one that takes time."""
        size = x.numel() // x.shape[1] * self.weight.shape[0] // (self.stride[0] * self.stride[1])
        return (self.relu or bool(self.block)) and size * self.weight.element_size() >= _WORTH.get()

    def _plain(self, x: Tensor) -> Tensor:
        out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return out.relu() if self.relu else out

    def _fused(self, x: Tensor) -> Tensor:
        """Without a gradient, `x` in channels-last order: with the ReLU in the same pass if torch can do that."""
        fused = _fused_op(self.weight.dtype)
        if fused is None:
            return self._plain(x)
        how = (list(self.padding), list(self.stride), list(self.dilation), self.groups)
        out: Tensor = fused(x, self.weight, self.bias, *how, "relu" if self.relu else "none", [], "")
        return out


class _Differentiable(torch.autograd.Function):
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
    """The convolution with a ReLU in the same pass, where there is one."""
    if not torch.backends.mkldnn.is_available():
        return None
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


def _block_side(conv: nn.Conv2d) -> int:
    """How many pixels in a row and in a column are computed at once: 0 where it does not pay."""
    padding: Any = conv.padding
    same = all(2 * p == k - 1 for p, k in zip(padding, conv.kernel_size, strict=True))
    dense = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1
    if not (same and dense and conv.in_channels <= _FEW_CHANNELS):
        return 0
    return 4 if conv.in_channels == 1 else 2


def _block_kernel(weight: Tensor, side: int) -> Tensor:
    """`[side * side * C, O, K + side - 1, ...]`: the kernel of the input's gradient, once for each pixel of a block."""
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
    """The gradient of the input `[B, C, H, W]`, each block of pixels by one place of a convolution with stride."""
    assert conv.blocks is not None
    side, inner = conv.block, conv.weight.shape[1]
    found = F.conv2d(grad, conv.blocks, None, side, conv.padding)
    found = found.view(len(grad), side, side, inner, height // side, width // side)
    return found.permute(0, 3, 4, 1, 5, 2).reshape(len(grad), inner, height, width)


def _channels_last(x: Tensor) -> Tensor:
    """As `x.contiguous(memory_format=torch.channels_last)`, also said of tensors with one channel or one pixel.

    Their memory is the same in either order, so torch leaves the strides alone, takes the tensor for one in the usual
    order, and copies what comes out of the next layer.
    """
    if x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last):
        return x
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    return x.as_strided((batch, channels, height, width), (height * width * channels, 1, width * channels, channels))
