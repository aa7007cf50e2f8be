"""The wide and the pre-activation ResNet of Gowal et al. (2020), on which most leaders of RobustBench are built.

Two things tell them from `wide_resnet` and `preact_resnet18`: strided convolutions pad below and to the right alone, as
in TensorFlow, and the shortcuts of the pre-activation net are 3x3 convolutions of the raw input. Names inside a body
are those of the published weights.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.types import Classifier
from .activations import activation as act
from .mean_sparse import MeanSparse
from .resnet import resnet_widths


class SameConv(nn.Conv2d):
    """A 3x3 convolution without bias that pads as TensorFlow's SAME does for images of even size."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__(inner, outer, 3, stride, padding=1 if stride == 1 else 0, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.stride == (1, 1) else F.pad(x, (0, 1, 0, 1)))


class SqueezeExcitation(nn.Module):
    """Scales channels by a function of their means (https://arxiv.org/abs/1709.01507)."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        hidden = round(ratio * channels)
        self.fc1, self.act, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class _Parts(NamedTuple):
    """Options of the blocks of a network."""

    activation: str
    squeeze: float | None
    mean_sparse: bool

    def sparse(self, channels: int) -> nn.Module:
        return MeanSparse(channels) if self.mean_sparse else nn.Identity()

    def scale(self, channels: int) -> nn.Module:
        return nn.Identity() if self.squeeze is None else SqueezeExcitation(channels, self.squeeze)


class DMWideBlock(nn.Module):
    """Residual block: norm, act, conv, norm, act, conv, add.

    A shortcut that changes the width or the size reads the activated input.
    """

    def __init__(self, inner: int, outer: int, stride: int, parts: _Parts) -> None:
        super().__init__()
        self.batchnorm_0, self.meansparse_0 = nn.BatchNorm2d(inner), parts.sparse(inner)
        self.relu_0, self.conv_0 = act(parts.activation), SameConv(inner, outer, stride)
        self.batchnorm_1, self.meansparse_1 = nn.BatchNorm2d(outer), parts.sparse(outer)
        self.relu_1, self.conv_1 = act(parts.activation), SameConv(outer, outer)
        self.se, self.meansparse_2 = parts.scale(outer), parts.sparse(outer)
        changes = stride != 1 or inner != outer
        self.shortcut = nn.Conv2d(inner, outer, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu_0(self.meansparse_0(self.batchnorm_0(x)))
        kept = x if self.shortcut is None else self.shortcut(out)
        out = self.relu_1(self.meansparse_1(self.batchnorm_1(self.conv_0(out))))
        return self.meansparse_2(kept + self.se(self.conv_1(out)))


class DMWideGroup(nn.Module):
    """Blocks of one width; only the first has a stride."""

    def __init__(self, count: int, inner: int, outer: int, stride: int, parts: _Parts) -> None:
        super().__init__()
        first = DMWideBlock(inner, outer, stride, parts)
        self.block = nn.Sequential(first, *(DMWideBlock(outer, outer, 1, parts) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class DMWideResNetBody(nn.Module):
    """First convolution, three groups, norm, activation and average pooling."""

    def __init__(self, blocks: Sequence[int], widths: Sequence[int], channels: int, parts: _Parts) -> None:
        super().__init__()
        self.init_conv = SameConv(channels, widths[0])
        sizes = zip(blocks, widths, widths[1:], (1, 2, 2), strict=False)
        self.layer = nn.Sequential(*(DMWideGroup(*each, parts) for each in sizes))
        self.batchnorm, self.meansparse_end = nn.BatchNorm2d(widths[-1]), parts.sparse(widths[-1])
        self.relu = act(parts.activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(self.layer(self.init_conv(x)))

    def pooled(self, x: Tensor) -> Tensor:
        """Return the features, given what the last group gives."""
        return self.relu(self.meansparse_end(self.batchnorm(x))).mean((2, 3))


class DMPreActBlock(nn.Module):
    """Pre-activation block: norm, act, conv, norm, act, conv, add; a 3x3 shortcut reads the raw input."""

    def __init__(self, inner: int, outer: int, stride: int, activation: str) -> None:
        super().__init__()
        self.batchnorm_0, self.relu_0 = nn.BatchNorm2d(inner), act(activation)
        self.conv_2d_1 = SameConv(inner, outer, stride)
        self.batchnorm_1, self.relu_1 = nn.BatchNorm2d(outer), act(activation)
        self.conv_2d_2 = SameConv(outer, outer)
        self.shortcut = SameConv(inner, outer, stride) if stride != 1 or inner != outer else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_2d_1(self.relu_0(self.batchnorm_0(x)))
        out = self.conv_2d_2(self.relu_1(self.batchnorm_1(out)))
        return out + (x if self.shortcut is None else self.shortcut(x))


class DMPreActResNetBody(nn.Module):
    """First convolution, four stages of two blocks, norm, activation and average pooling."""

    def __init__(self, widths: Sequence[int], channels: int, activation: str) -> None:
        super().__init__()
        self.conv_2d = SameConv(channels, widths[0])
        for i, (inner, outer) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            first = DMPreActBlock(inner, outer, 1 if i == 0 else 2, activation)
            setattr(self, f"layer_{i}", nn.Sequential(first, DMPreActBlock(outer, outer, 1, activation)))
        self.batchnorm, self.relu = nn.BatchNorm2d(widths[-1]), act(activation)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_2d(x)
        for i in range(4):
            out = getattr(self, f"layer_{i}")(out)
        return self.relu(self.batchnorm(out)).mean((2, 3))


def dm_wide_resnet(
    depth: int = 28,
    width: int = 10,
    num_classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    normalize: nn.Module | None = None,
    activation: str = "silu",
    mean_sparse: bool = False,
) -> Classifier:
    """Wide residual network WRN-`depth`-`width` as in the code of Gowal et al. (2020), with TensorFlow's padding.

    Args:
        depth: Number of layers, 6 n + 4.
        width: Factor on the number of channels.
        num_classes: Number of classes.
        shape: Shape of an image: (channels, height, width); the sides must be divisible by 4.
        normalize: Module applied to the pixels first; None applies nothing.
        activation: Name of the activation, as for `activation`.
        mean_sparse: Whether a `MeanSparse` follows each norm and each block.

    Returns:
        A classifier with random weights.

    Raises:
        UserError: If the depth is not 6 n + 4, a side is not divisible by 4, or the activation is unknown.

    References:
        Gowal et al. (2020): https://arxiv.org/abs/2010.03593.
    """
    if depth < 10 or (depth - 4) % 6:
        raise UserError(f"the depth of a wide ResNet is 6 n + 4 (10, 16, 22, 28, 34, ...), not {depth}")
    _need_sides(shape, 4)
    widths, parts = (16, 16 * width, 32 * width, 64 * width), _Parts(activation, None, mean_sparse)
    body = DMWideResNetBody([(depth - 4) // 6] * 3, widths, shape[0], parts)
    return Classifier(body, nn.Linear(widths[-1], num_classes), normalize)


def ra_wide_resnet(
    blocks: tuple[int, ...] = (30, 31, 10),
    channels: tuple[int, ...] = (96, 216, 432, 864),
    num_classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    normalize: nn.Module | None = None,
    activation: str = "silu",
    squeeze: float = 0.25,
    mean_sparse: bool = False,
) -> Classifier:
    """RaWRN-70-16: a wide residual network with more of its depth in front, and squeeze and excitation.

    Args:
        blocks: Number of blocks of each of the three groups.
        channels: Channels of the first convolution, and of each group.
        num_classes: Number of classes.
        shape: Shape of an image: (channels, height, width); the sides must be divisible by 4.
        normalize: Module applied to the pixels first; None applies nothing.
        activation: Name of the activation, as for `activation`.
        squeeze: Hidden channels of squeeze and excitation, as a share of the channels.
        mean_sparse: Whether a `MeanSparse` follows each norm and each block.

    Returns:
        A classifier with random weights.

    Raises:
        UserError: If there are not three groups, a side is not divisible by 4, or the activation is unknown.

    References:
        Robust Principles, Peng et al. (2023): https://arxiv.org/abs/2308.16258.
    """
    if len(blocks) != 3 or len(channels) != 4:
        raise UserError(f"blocks = {blocks} and channels = {channels}: give 3 numbers of blocks, and 4 of channels")
    _need_sides(shape, 4)
    body = DMWideResNetBody(blocks, channels, shape[0], _Parts(activation, squeeze, mean_sparse))
    return Classifier(body, nn.Linear(channels[-1], num_classes), normalize)


def dm_preact_resnet18(
    num_classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    normalize: nn.Module | None = None,
    width: float = 1.0,
    activation: str = "silu",
) -> Classifier:
    """Pre-activation ResNet-18 as in the code of Gowal et al. (2020), with TensorFlow's padding.

    Args:
        num_classes: Number of classes.
        shape: Shape of an image: (channels, height, width); the sides must be divisible by 8.
        normalize: Module applied to the pixels first; None applies nothing.
        width: Factor on the number of channels.
        activation: Name of the activation, as for `activation`.

    Returns:
        A classifier with random weights.

    Raises:
        UserError: If a side is not divisible by 8, or the activation is unknown.

    References:
        Gowal et al. (2020): https://arxiv.org/abs/2010.03593.
    """
    _need_sides(shape, 8)
    widths = resnet_widths(width)
    return Classifier(DMPreActResNetBody(widths, shape[0], activation), nn.Linear(widths[-1], num_classes), normalize)


def _need_sides(shape: tuple[int, int, int], divisor: int) -> None:
    """Refuse sides on which this padding would be another than TensorFlow's."""
    if any(side % divisor for side in shape[1:]):
        raise UserError(f"images of {shape[1]} x {shape[2]} pixels: the sides must be divisible by {divisor}")
