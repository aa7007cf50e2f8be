"""Wide residual networks (https://arxiv.org/abs/1605.07146), with RobustBench's names inside the body."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.types import Classifier
from .activations import activation as act
from .resnet import conv


class WideBlock(nn.Module):
    """Residual block: norm, act, conv, norm, act, dropout, conv, add.

    A shortcut that changes the width or the size reads the activated input.
    """

    def __init__(self, inner: int, outer: int, stride: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(inner), act(activation)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(outer), act(activation)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.convShortcut = conv(inner, outer, 1, stride) if stride != 1 or inner != outer else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(x))
        kept = x if self.convShortcut is None else self.convShortcut(out)
        return kept + self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(out)))))


class WideGroup(nn.Module):
    """Blocks of one width; only the first has a stride."""

    def __init__(self, count: int, inner: int, outer: int, stride: int, activation: str, dropout: float) -> None:
        super().__init__()
        first = WideBlock(inner, outer, stride, activation, dropout)
        rest = [WideBlock(outer, outer, 1, activation, dropout) for _ in range(count - 1)]
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNetBody(nn.Module):
    """First convolution, three groups, norm, activation and average pooling."""

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], channels: int, activation: str, dropout: float = 0.0
    ) -> None:
        super().__init__()
        w = (16, 16 * widths[0], 32 * widths[1], 64 * widths[2])
        self.conv1 = nn.Conv2d(channels, w[0], 3, padding=1, bias=False)
        self.block1 = WideGroup(blocks[0], w[0], w[1], 1, activation, dropout)
        self.block2 = WideGroup(blocks[1], w[1], w[2], 2, activation, dropout)
        self.block3 = WideGroup(blocks[2], w[2], w[3], 2, activation, dropout)
        self.bn1, self.relu = nn.BatchNorm2d(w[3]), act(activation)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return F.adaptive_avg_pool2d(self.relu(self.bn1(out)), 1).flatten(1)


def wide_resnet(
    depth: int = 28,
    width: int = 10,
    num_classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    normalize: nn.Module | None = None,
    activation: str = "relu",
    dropout: float = 0.0,
) -> Classifier:
    """Wide residual network WRN-`depth`-`width`.

    It has 36.5 M parameters for 28-10 and 46.2 M for 34-10.

    Args:
        depth: Number of layers, 6 n + 4.
        width: Factor on the number of channels.
        num_classes: Number of classes.
        shape: Shape of an image: (channels, height, width); only the number of channels matters.
        normalize: Module applied to the pixels first; None applies nothing.
        activation: Name of the activation, as for `activation`.
        dropout: Probability of dropout between the two convolutions of a block.

    Returns:
        A classifier with random weights.

    Raises:
        UserError: If the depth is not 6 n + 4, or the activation is unknown.

    References:
        Wide residual networks: https://arxiv.org/abs/1605.07146.
    """
    if depth < 10 or (depth - 4) % 6:
        raise UserError(f"the depth of a wide ResNet is 6 n + 4 (10, 16, 22, 28, 34, ...), not {depth}")
    body = WideResNetBody([(depth - 4) // 6] * 3, [width] * 3, shape[0], activation, dropout)
    return Classifier(body, nn.Linear(64 * width, num_classes), normalize)


def robust_wide_resnet(
    blocks: tuple[int, ...] = (5, 5, 5),
    widths: tuple[int, ...] = (20, 20, 8),
    num_classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    normalize: nn.Module | None = None,
    activation: str = "relu",
) -> Classifier:
    """Wide residual network whose groups have a depth and a width each, such as WRN-34-R (by default) and WRN-A4.

    WRN-A4 has `blocks` (27, 28, 13), `widths` (10, 14, 6) and the activation "silu".

    Args:
        blocks: Number of blocks of each of the three groups; n of WRN-(6n+4) in `wide_resnet`.
        widths: Factor on the number of channels of each group.
        num_classes: Number of classes.
        shape: Shape of an image: (channels, height, width); only the number of channels matters.
        normalize: Module applied to the pixels first; None applies nothing.
        activation: Name of the activation, as for `activation`.

    Returns:
        A classifier with random weights.

    Raises:
        UserError: If there are not three groups, or the activation is unknown.

    References:
        WRN-34-R: https://arxiv.org/abs/2110.03825. WRN-A4: https://arxiv.org/abs/2212.11005.
    """
    if len(blocks) != 3 or len(widths) != 3:
        raise UserError(f"blocks = {blocks} and widths = {widths}: wanted are 3 numbers each, one for each group")
    body = WideResNetBody(blocks, widths, shape[0], activation)
    return Classifier(body, nn.Linear(64 * widths[-1], num_classes), normalize)
