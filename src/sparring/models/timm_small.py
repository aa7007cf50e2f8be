"""Networks of timm as RobustBench's models change them: for small images, and with a stem of convolutions.

None of them is copied here: `pip install 'sparring[imagenet]'`.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import need_one_of
from ..core.optional import library
from ..core.types import Classifier
from .swap import swap_activation

Shape = tuple[int, int, int]
XCITS = {"s": (384, 8), "m": (512, 8), "l": (768, 16)}
"""Channels and heads of the robust XCiT-S12, M12 and L12 (https://arxiv.org/abs/2209.07399)."""


def resnest152(
    num_classes: int = 10,
    shape: Shape = (3, 32, 32),
    normalize: nn.Module | None = None,
    depths: tuple[int, ...] = (3, 8, 36, 3),
    radix: int = 4,
    activation: str = "silu",
) -> Classifier:
    """ResNeSt-152 for small images: its stem keeps the size (https://arxiv.org/abs/2004.08955)."""
    blocks, resnet = _timm("resnest"), _timm("resnet")
    body = resnet.ResNet(
        blocks.ResNestBottleneck,
        list(depths),
        num_classes=0,
        in_chans=shape[0],
        stem_type="deep",
        stem_width=64,
        avg_down=True,
        block_args={"radix": radix, "avd": True, "avd_first": False},
    )
    body.conv1[0].stride, body.maxpool = (1, 1), nn.Identity()
    return Classifier(swap_activation(body, activation), nn.Linear(body.num_features, num_classes), normalize)


def xcit(
    size: str,
    num_classes: int = 1000,
    shape: Shape = (3, 224, 224),
    normalize: nn.Module | None = None,
) -> Classifier:
    """Cross-covariance image transformer of 12 blocks; for 32 pixels its patches are of 4 instead of 16 pixels."""
    need_one_of("size", size, XCITS)
    channels, heads = XCITS[size]
    body = _timm("xcit").Xcit(
        img_size=shape[1],
        in_chans=shape[0],
        num_classes=0,
        patch_size=16,
        embed_dim=channels,
        depth=12,
        num_heads=heads,
        eta=1.0,
        tokens_norm=True,
    )
    if shape[1] <= 32:
        for k in (0, 2):  # two of the four halvings
            body.patch_embed.proj[k][0].stride = (1, 1)
        body.patch_embed.patch_size = 4
    return Classifier(body, nn.Linear(channels, num_classes), normalize)


def conv_stem(
    name: str,
    num_classes: int = 1000,
    shape: Shape = (3, 224, 224),
    normalize: nn.Module | None = None,
) -> Classifier:
    """ConvNeXt or ViT of timm whose patches come from a stem of convolutions.

    Args:
        name: "convnext_tiny", "convnext_small", "convnext_base", "convnext_large", "deit_small_patch16_224" or
            "vit_base_patch16_224".
        num_classes: Number of classes.
        shape: Shape of an image: (channels, height, width), of three channels.
        normalize: Module applied to the pixels first; None applies nothing.

    Returns:
        A classifier with random weights.

    Raises:
        UserError: If timm or torchvision cannot be imported, or there is no stem for `name`.

    References:
        Singh et al.: https://arxiv.org/abs/2303.01870.
    """
    need_one_of("name", name, _STEMS)
    sized = name.startswith(("deit", "vit"))
    body = _timm_model(name, shape, **({"img_size": shape[1:]} if sized else {}))
    stem = _STEMS[name]()
    if sized:
        body.patch_embed.proj = stem
    else:
        body.stem = stem
    return Classifier(body, nn.Linear(body.num_features, num_classes), normalize)


def plain_timm(
    name: str, num_classes: int = 1000, shape: Shape = (3, 224, 224), normalize: nn.Module | None = None
) -> Classifier:
    """A network of timm with a head of its own."""
    body = _timm_model(name, shape)
    return Classifier(body, nn.Linear(body.num_features, num_classes), normalize)


def plain_torchvision(
    name: str, num_classes: int = 1000, shape: Shape = (3, 224, 224), normalize: nn.Module | None = None
) -> Classifier:
    """A residual network of torchvision."""
    del shape
    body = library("torchvision.models", "imagenet", "this model").get_model(name, num_classes=num_classes)
    head, body.fc = body.fc, nn.Identity()
    return Classifier(body, head, normalize)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6).permute(
            0, 3, 1, 2
        )


class ConvStem(nn.Module):
    """Convolutions of 3x3 with stride 2 (the last maybe 1), each followed by a norm and GELU; maybe a 1x1 behind."""

    def __init__(self, widths: tuple[int, ...], last_stride: int = 2, out: int | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (inner, outer) in enumerate(zip((3, *widths), widths, strict=False)):
            stride = last_stride if i == len(widths) - 1 else 2
            layers += [nn.Conv2d(inner, outer, 3, stride, padding=1), ChannelNorm(outer), nn.GELU()]
        self.stem = nn.Sequential(*layers, *([] if out is None else [nn.Conv2d(widths[-1], out, 1)]))

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


_STEMS: dict[str, Callable[[], nn.Module]] = {
    "convnext_tiny": partial(ConvStem, (48, 96)),
    "convnext_small": partial(ConvStem, (48, 96)),
    "convnext_base": partial(ConvStem, (64, 96, 128), 1),
    "convnext_large": partial(ConvStem, (96, 144, 192), 1),
    "deit_small_patch16_224": partial(ConvStem, (48, 96, 192, 384), 2, 384),
    "vit_base_patch16_224": partial(ConvStem, (48, 96, 192, 384), 2, 768),
}


def _timm_model(name: str, shape: Shape, **options: object) -> Any:
    return library("timm", "imagenet", "this model").create_model(name, num_classes=0, in_chans=shape[0], **options)


def _timm(name: str) -> ModuleType:
    return library(f"timm.models.{name}", "imagenet", "this model")
