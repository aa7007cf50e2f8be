"""Residual networks for 32-pixel images: post-activation (He et al.) and pre-activation.

Names inside a body are those of RobustBench's models, so that published weights load (`models.robustbench`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.types import Classifier
from .activations import activation as act

Shortcut = Literal["raw", "activated"]


class _Thin(nn.Conv2d):
    """A strided 1x1 convolution of few channels, computed without stride on a subsampled image.

    For fewer than 8 channels, oneDNN's kernel for AVX2 writes out of bounds in the gradient of the weight, and the
    process dies (seen with torch 2.13 and 2.14, on a processor without AVX-512).
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


def conv(inner: int, outer: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias that keeps the size at stride 1."""
    kind = _Thin if size == 1 and stride > 1 and inner < 8 else nn.Conv2d
    return kind(inner, outer, size, stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Residual block: conv, norm, act, conv, norm, add, act (https://arxiv.org/abs/1512.03385)."""

    def __init__(self, inner: int, outer: int, stride: int, activation: str) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = conv(inner, outer, 3, stride), nn.BatchNorm2d(outer), act(activation)
        self.conv2, self.bn2, self.act2 = conv(outer, outer), nn.BatchNorm2d(outer), act(activation)
        changes = stride != 1 or inner != outer
        self.shortcut = nn.Sequential(
            *([conv(inner, outer, 1, stride), nn.BatchNorm2d(outer)] if changes else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """Residual block of convolutions 1x1, 3x3 and 1x1, each with a norm; it gives four times `outer` channels."""

    def __init__(self, inner: int, outer: int, stride: int, activation: str) -> None:
        super().__init__()
        wide = 4 * outer
        self.conv1, self.bn1, self.act1 = conv(inner, outer, 1), nn.BatchNorm2d(outer), act(activation)
        self.conv2, self.bn2, self.act2 = conv(outer, outer, 3, stride), nn.BatchNorm2d(outer), act(activation)
        self.conv3, self.bn3, self.act3 = conv(outer, wide, 1), nn.BatchNorm2d(wide), act(activation)
        changes = stride != 1 or inner != wide
        self.shortcut = nn.Sequential(*([conv(inner, wide, 1, stride), nn.BatchNorm2d(wide)] if changes else []))

    def forward(self, x: Tensor) -> Tensor:
        out = self.act2(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))))
        return self.act3(self.bn3(self.conv3(out)) + self.shortcut(x))


class PreActBlock(nn.Module):
    """Pre-activation residual block: norm, act, conv, norm, act, conv, add (https://arxiv.org/abs/1603.05027).

    A `shortcut` with a convolution reads the raw input or the activated one, behind the first norm; one without always
    reads the raw input.
    """

    def __init__(self, inner: int, outer: int, stride: int, activation: str, shortcut: Shortcut = "raw") -> None:
        super().__init__()
        self.bn1, self.act1, self.conv1 = nn.BatchNorm2d(inner), act(activation), conv(inner, outer, 3, stride)
        self.bn2, self.act2, self.conv2 = nn.BatchNorm2d(outer), act(activation), conv(outer, outer)
        changes = stride != 1 or inner != outer
        self.shortcut = nn.Sequential(*([conv(inner, outer, 1, stride)] if changes else []))
        self.reads_activated = changes and shortcut == "activated"

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act1(self.bn1(x))
        out = self.conv2(self.act2(self.bn2(self.conv1(activated))))
        return out + self.shortcut(activated if self.reads_activated else x)


Block = Callable[[int, int, int, str], nn.Module]


class _Stages(nn.Module):
    """Four stages of blocks, by default of two; each stage but the first halves the image."""

    def __init__(
        self,
        block: Block,
        widths: tuple[int, ...],
        channels: int,
        activation: str,
        depths: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__()
        self.conv1 = conv(channels, widths[0])
        inner, wider = widths[0], 4 if block is Bottleneck else 1
        for i, (outer, depth) in enumerate(zip(widths, depths, strict=True)):
            first = block(inner, outer, 1 if i == 0 else 2, activation)
            inner = wider * outer
            rest = (block(inner, outer, 1, activation) for _ in range(depth - 1))
            setattr(self, f"layer{i + 1}", nn.Sequential(first, *rest))

    def stages(self, x: Tensor) -> Tensor:
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return x


class ResNetBody(_Stages):
    """Convolution, norm, activation, four stages and average pooling."""

    def __init__(
        self,
        widths: tuple[int, ...],
        channels: int,
        activation: str,
        block: Block = BasicBlock,
        depths: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__(block, widths, channels, activation, depths)
        self.bn1, self.act = nn.BatchNorm2d(widths[0]), act(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.act(self.bn1(self.conv1(x)))).mean((2, 3))


class PreActResNetBody(_Stages):
    """Convolution, four stages and average pooling; an optional norm and activation before it (`bn`, `act`)."""

    def __init__(
        self, widths: tuple[int, ...], channels: int, activation: str, final_norm: bool, shortcut: Shortcut
    ) -> None:
        super().__init__(partial(PreActBlock, shortcut=shortcut), widths, channels, activation)
        self.bn = nn.BatchNorm2d(widths[-1]) if final_norm else nn.Identity()
        self.act = act(activation) if final_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.stages(self.conv1(x)))).mean((2, 3))


def resnet_widths(width: float) -> tuple[int, ...]:
    """Return the channels of the four stages of a ResNet for small images."""
    return tuple(max(1, round(w * width)) for w in (64, 128, 256, 512))


def resnet18(
    num_classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    normalize: nn.Module | None = None,
    width: float = 1.0,
    activation: str = "relu",
) -> Classifier:
    """ResNet-18 with the CIFAR stem (3x3, stride 1, no pooling).

    It has 11.2 M parameters at `width` 1.

    Args:
        num_classes: Number of classes.
        shape: Shape of an image: (channels, height, width); only the number of channels matters.
        normalize: Module applied to the pixels first; None applies nothing.
        width: Factor on the number of channels.
        activation: Name of the activation, as for `activation`.

    Returns:
        A classifier with random weights.

    Raises:
        UserError: If the activation is unknown.

    References:
        ResNet: https://arxiv.org/abs/1512.03385.
    """
    widths = resnet_widths(width)
    return Classifier(ResNetBody(widths, shape[0], activation), nn.Linear(widths[-1], num_classes), normalize)


def resnet50(
    num_classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    normalize: nn.Module | None = None,
    width: float = 1.0,
    activation: str = "relu",
) -> Classifier:
    """ResNet-50 with the CIFAR stem (3x3, stride 1, no pooling).

    It has 23.5 M parameters at `width` 1. For large images, see `imagenet_resnet`.

    Args:
        num_classes: Number of classes.
        shape: Shape of an image: (channels, height, width); only the number of channels matters.
        normalize: Module applied to the pixels first; None applies nothing.
        width: Factor on the number of channels.
        activation: Name of the activation, as for `activation`.

    Returns:
        A classifier with random weights.

    Raises:
        UserError: If the activation is unknown.

    References:
        ResNet: https://arxiv.org/abs/1512.03385.
    """
    widths = resnet_widths(width)
    body = ResNetBody(widths, shape[0], activation, Bottleneck, (3, 4, 6, 3))
    return Classifier(body, nn.Linear(4 * widths[-1], num_classes), normalize)


def preact_resnet18(
    num_classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    normalize: nn.Module | None = None,
    width: float = 1.0,
    activation: str = "relu",
    final_norm: bool = False,
    shortcut: Shortcut = "raw",
) -> Classifier:
    """Pre-activation ResNet-18 with the CIFAR stem (3x3, stride 1, no pooling).

    It has 11.2 M parameters at `width` 1. Published codes disagree on two points, and weights trained with one setting
    do not mean the same with another:

    | code | `final_norm` | `shortcut` |
    |---|---|---|
    | GradAlign; RobustBench without `bn_before_fc` | False | "raw" |
    | fast adversarial training, N-FGSM | True | "raw" |
    | robust overfitting (Rice), Bag of Tricks, AWP, ZeroGrad; RobustBench with `bn_before_fc` | True | "activated" |

    Args:
        num_classes: Number of classes.
        shape: Shape of an image: (channels, height, width); only the number of channels matters.
        normalize: Module applied to the pixels first; None applies nothing.
        width: Factor on the number of channels.
        activation: Name of the activation, as for `activation`.
        final_norm: Whether batch norm and an activation follow the last block, before the pooling.
        shortcut: Input of shortcuts with a convolution: the "raw" input of the block, or the "activated" one, behind
            its first norm and activation.

    Returns:
        A classifier with random weights.

    Raises:
        UserError: If `shortcut` or the activation is unknown.

    References:
        Pre-activation ResNet: https://arxiv.org/abs/1603.05027.
    """
    if shortcut not in get_args(Shortcut):
        raise UserError(f"shortcut = {shortcut!r}: the shortcut of a block reads its raw or its activated input")
    widths = resnet_widths(width)
    body = PreActResNetBody(widths, shape[0], activation, final_norm, shortcut)
    return Classifier(body, nn.Linear(widths[-1], num_classes), normalize)
