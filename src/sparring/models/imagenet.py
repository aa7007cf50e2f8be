"""Networks for ImageNet, taken from timm: `pip install 'sparring[imagenet]'`. None of them is copied here.

Pixels are scaled to [-1, 1], as in the released code of Smooth Adversarial Training. So these functions take no
`normalize`, and no statistics of the images are computed.
"""

from types import ModuleType
from typing import Literal, get_args

from torch import nn

from ..core.errors import UserError, nearest
from ..core.optional import library
from ..core.types import Classifier
from .classifier import Normalize
from .swap import swap_activation

BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

SIZES = {
    "b0": (1.0, 1.0, 224, 0.2),
    "b1": (1.0, 1.1, 240, 0.2),
    "b2": (1.1, 1.2, 260, 0.3),
    "b3": (1.2, 1.4, 300, 0.3),
    "b4": (1.4, 1.8, 380, 0.4),
    "b5": (1.6, 2.2, 456, 0.4),
    "b6": (1.8, 2.6, 528, 0.5),
    "b7": (2.0, 3.1, 600, 0.5),
    "l1": (3.9, 3.7, 600, 0.5),
    "l1-enhanced": (3.9, 3.7, 600, 0.5),
}
"""EfficientNets: width, depth, pixels, dropout (https://arxiv.org/abs/1905.11946; L1: the authors' released code)."""

Padding = Literal["symmetric", "same"]


def imagenet_resnet(
    depth: int = 50,
    groups: int = 1,
    group_width: int = 64,
    num_classes: int = 1000,
    shape: tuple[int, int, int] = (3, 224, 224),
    activation: str = "relu",
) -> Classifier:
    """ResNet-26, 50, 101 or 152 for large images, from timm.

    The stride is in the 3x3 convolutions, and the last norm of each block is 0 at initialisation. ResNeXt-50-32x4d has
    32 `groups` of `group_width` 4, and counts as twice as wide; 32x8d as four times.

    Args:
        depth: 26, 50, 101 or 152.
        groups: Number of groups of the 3x3 convolutions.
        group_width: Channels of a group in the first stage.
        num_classes: Number of classes.
        shape: Shape of an image: (channels, height, width); only the number of channels matters.
        activation: Name of the activation, as for `activation`.

    Returns:
        A classifier with random weights.

    Raises:
        UserError: If timm or torchvision cannot be imported, or the depth or the activation is unknown.
    """
    resnet = _timm("resnet")
    if depth not in BLOCKS:
        raise UserError(f"depth = {depth} is not one of {', '.join(map(str, BLOCKS))}")
    body = resnet.ResNet(
        resnet.Bottleneck, BLOCKS[depth], num_classes=0, in_chans=shape[0], cardinality=groups, base_width=group_width
    )
    head = nn.Linear(body.num_features, num_classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return _classifier(body, head, activation, shape)


def efficientnet(
    width: float = 1.0,
    depth: float = 1.0,
    dropout: float = 0.2,
    num_classes: int = 1000,
    shape: tuple[int, int, int] = (3, 224, 224),
    activation: str = "silu",
    survival: float = 1.0,
    padding: Padding = "symmetric",
) -> Classifier:
    """EfficientNet of any width and depth, from timm.

    B0 to B7 and L1 are in `SIZES`, with the resolution that goes with them.

    Args:
        width: Factor on the number of channels of B0.
        depth: Factor on the number of blocks of B0.
        dropout: Probability of dropout before the linear layer; with 0 there is no dropout layer.
        num_classes: Number of classes.
        shape: Shape of an image: (channels, height, width); only the number of channels matters.
        activation: Name of the activation, as for `activation`.
        survival: Stochastic depth: in training, block k of n (from 0) is left out for an image with probability (1 -
            `survival`) k / n, if it has a shortcut. 0.8 in the released code; 1 leaves out no block.
        padding: "same" as in TensorFlow, where strided convolutions pad more below and to the right, or "symmetric".

    Returns:
        A classifier with random weights.

    Raises:
        UserError: If timm or torchvision cannot be imported, `survival` is not in (0, 1], or `padding` or the
            activation is unknown.

    References:
        EfficientNet: https://arxiv.org/abs/1905.11946.
    """
    if not 0 < survival <= 1:
        raise UserError(
            f"survival = {survival:g} is not a probability that a block stays: it must be above 0 and at most 1"
        )
    if padding not in get_args(Padding):
        raise UserError(f"padding = {padding!r} is neither symmetric nor same")
    model = _timm("efficientnet")
    body = model._gen_efficientnet(  # timm has constructors for B0 to B8 and L2 only, with fixed factors
        "efficientnet_b0",
        channel_multiplier=width,
        depth_multiplier=depth,
        num_classes=0,
        in_chans=shape[0],
        drop_path_rate=1 - survival,
        pad_type="same" if padding == "same" else "",
    )
    head = nn.Linear(body.num_features, num_classes)
    bound = num_classes**-0.5
    nn.init.uniform_(head.weight, -bound, bound)
    nn.init.zeros_(head.bias)
    return _classifier(body, nn.Sequential(nn.Dropout(dropout), head) if dropout else head, activation, shape)


def size_of(variant: str) -> tuple[float, float, int, float]:
    """Width, depth, pixels and dropout of an EfficientNet by its name: b0 to b7, l1 or l1-enhanced."""
    if variant.lower() not in SIZES:
        raise UserError(f"no EfficientNet {variant!r}: {nearest(variant, SIZES)}")
    return SIZES[variant.lower()]


def _classifier(body: nn.Module, head: nn.Module, activation: str, shape: tuple[int, int, int]) -> Classifier:
    half = [0.5] * shape[0]
    return Classifier(swap_activation(body, activation), head, Normalize(half, half))


def _timm(name: str) -> ModuleType:
    return library(f"timm.models.{name}", "imagenet", "this model")
