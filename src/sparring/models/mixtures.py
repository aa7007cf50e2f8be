"""Mixtures of an accurate and a robust classifier: adaptive smoothing (Bai et al., 2023) and MixedNUTS (2024)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.devices import finest
from ..core.optional import library
from ..core.types import Classifier
from .classifier import Normalize
from .deepmind import dm_wide_resnet, ra_wide_resnet
from .resnet import PreActBlock
from .robustbench import fill_published, fit_names

State = Mapping[str, Tensor]
Shape = tuple[int, int, int]


class BiT(nn.Module):
    """Big Transfer's ResNet-152x2 of timm, which enlarges images to 128 pixels (https://arxiv.org/abs/1912.11370)."""

    def __init__(self, num_classes: int, depths: Sequence[int] = (3, 8, 36, 3), width: int = 2) -> None:
        super().__init__()
        conv = partial(library("timm.layers", "imagenet", "this model").StdConv2d, eps=1e-10)
        self.normalize = Normalize([0.5] * 3, [0.5] * 3)
        self.net: Any = library("timm.models.resnetv2", "imagenet", "this model").ResNetV2(
            list(depths), num_classes=num_classes, width_factor=width, stem_type="fixed", conv_layer=conv
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.with_maps(x)[0]

    def with_maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits, and what the first two stages give."""
        x = self.normalize(F.interpolate(x, size=(128, 128), mode="bilinear"))
        first = self.net.stages[0](self.net.stem(x))
        second = self.net.stages[1](first)
        logits: Tensor = self.net.head(self.net.norm(self.net.stages[3](self.net.stages[2](second))))
        return logits, first, second


def bit_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors of Big Transfer's own code to the names of `BiT`; the mean and the deviation may be missing."""
    half = torch.full((1, 3, 1, 1), 0.5)
    stats = {f"normalize.{name}": state.get(name, half) for name in ("mean", "std")}
    return stats | {_bit_name(name): t for name, t in state.items() if name not in ("mean", "std")}


def _bit_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "body":
        stage, block = int(parts[1].removeprefix("block")) - 1, int(parts[2].removeprefix("unit")) - 1
        layer = parts[3].replace("gn", "norm") + (".conv" if parts[3] == "downsample" else "")
        return f"net.stages.{stage}.blocks.{block}.{layer}.{parts[4]}"
    outer = {"root.conv": "stem.conv", "head.gn": "norm", "head.conv": "head.fc"}
    return f"net.{outer.get('.'.join(parts[:2]), name)}.{parts[-1]}"


class MixingNet(nn.Module):
    """A network that tells from two pairs of maps how far to trust the robust classifier: a number for each image."""

    def __init__(self, channels: tuple[int, int], widths: Sequence[int] = (512, 768, 1024)) -> None:
        super().__init__()
        inner = (channels[0], *widths)
        self.layers = nn.ModuleList(_stage(a, b) for a, b in zip(inner, widths, strict=False))
        self.conv1x1 = nn.Conv2d(channels[1], widths[0], 1, bias=False)
        self.linear = nn.Linear(widths[-1], 1, bias=False)

    def forward(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        x = self.layers[0](torch.cat(list(first), 1)) + self.conv1x1(torch.cat(list(second), 1))
        for layer in self.layers[1:]:
            x = layer(x)
        return self.linear(x.mean((2, 3)))


def _stage(inner: int, outer: int) -> nn.Module:
    blocks = PreActBlock(inner, outer, 2, "relu"), PreActBlock(outer, outer, 1, "relu")
    for block in blocks:
        block.reads_activated = True  # also where the shortcut has no convolution
    return nn.Sequential(*blocks)


class AdaptiveSmoothing(nn.Module):
    """Mixes the probabilities of an accurate and a robust classifier, with weights that a network chooses.

    The logits are the logarithms of the mixed probabilities.

    Args:
        accurate: The accurate classifier.
        robust: The robust classifier, of `dm_wide_resnet`.
        mixing: The network that chooses the weights.
        gamma: Factor and summand of its output, after a batch norm.
        alpha: Range and smallest value of the weight of the robust classifier.
        scales: Factors on the logits of the accurate and of the robust classifier.

    References:
        Adaptive smoothing: https://arxiv.org/abs/2301.12554.
    """

    def __init__(
        self,
        accurate: BiT,
        robust: Classifier,
        mixing: MixingNet,
        gamma: Sequence[float],
        alpha: Sequence[float],
        scales: Sequence[float],
    ) -> None:
        super().__init__()
        self.accurate, self.robust, self.mixing = accurate, robust, mixing
        self.bn = nn.BatchNorm1d(1, affine=False)
        self.gamma, self.alpha, self.scales = tuple(gamma), tuple(alpha), tuple(scales)

    def load(self, accurate: State, robust: State, mixing: State) -> None:
        """Load the three published files; the names of the last begin with `model.` and `bn.`."""
        fit_names(self.accurate, bit_names(accurate))
        fill_published(self.robust, robust)
        fit_names(self.mixing, {n.removeprefix("model."): t for n, t in mixing.items() if n.startswith("model.")})
        fit_names(self.bn, {n.removeprefix("bn."): t for n, t in mixing.items() if n.startswith("bn.")})

    def forward(self, x: Tensor) -> Tensor:
        accurate, *theirs = self.accurate.with_maps(x)
        robust, *ours = _with_maps(self.robust, x)
        gamma = self.bn(self.mixing((theirs[0], ours[0]), (theirs[1], ours[1]))) * self.gamma[0] + self.gamma[1]
        weight = gamma.sigmoid() * self.alpha[0] + self.alpha[1]
        first, second = (scale * logits for scale, logits in zip(self.scales, (accurate, robust), strict=True))
        return torch.log((1 - weight) * first.softmax(1) + weight * second.softmax(1))


def _with_maps(model: Classifier, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits of a `dm_wide_resnet`, and what its first two groups give."""
    body: Any = model.body
    first = body.layer[0](body.init_conv(model.normalize(x)))
    second = body.layer[1](first)
    return model.head(body.pooled(body.layer[2](second))), first, second


class MixedNUTS(nn.Module):
    """Mixes the hard decision of an accurate classifier with the sharpened probabilities of a robust one.

    The logits of the robust classifier are normalised over the classes, shifted by `bias`, passed through GELU, and
    raised to `power`. Where a gradient is needed, the decision is a steep softmax instead. The logits are the
    logarithms of the mixed probabilities.

    Args:
        accurate: The accurate classifier.
        robust: The robust classifier.
        scale: Factor on the sharpened logits.
        bias: Summand of the normalised logits.
        power: Exponent of what GELU gives.
        weight: Weight of the robust classifier.

    References:
        MixedNUTS: https://arxiv.org/abs/2402.02263.
    """

    def __init__(
        self, accurate: nn.Module, robust: nn.Module, scale: float, bias: float, power: float, weight: float
    ) -> None:
        super().__init__()
        self.accurate, self.robust = accurate, robust
        self.scale, self.bias, self.power, self.weight = scale, bias, power, weight

    def load(self, accurate: State, robust: State) -> None:
        """Load the two published files."""
        fit_names(self.accurate, bit_names(accurate))
        fill_published(self.robust, robust)

    def forward(self, x: Tensor) -> Tensor:
        accurate, robust = self.accurate(x), self.robust(x)
        sharp = F.gelu(_standardized(robust) + self.bias)
        robust = (self.scale * sharp.abs() ** self.power * sharp.sign()).softmax(1)
        if accurate.requires_grad:
            decided = (1e6 * _standardized(accurate)).softmax(1)
        else:
            decided = F.one_hot(accurate.argmax(1), accurate.shape[1]).to(robust.dtype)
        return torch.log((1 - self.weight) * decided + self.weight * robust).to(x.dtype)


def _standardized(logits: Tensor) -> Tensor:
    """Normalise logits over the classes, in float64 where there is one."""
    logits = logits.to(finest(logits.device))
    return (logits - logits.mean(1, keepdim=True)) / (logits.var(1, keepdim=True) + 1e-8).sqrt()


def adaptive_smoothing(
    num_classes: int,
    shape: Shape,
    normalize: nn.Module | None,
    gamma: Sequence[float],
    alpha: Sequence[float],
    scales: Sequence[float],
) -> AdaptiveSmoothing:
    """The mixture of BiT ResNet-152x2 and WRN-70-16; the maps of the two have 768 and 1,536 channels together."""
    robust = dm_wide_resnet(70, 16, num_classes, shape, normalize)
    return AdaptiveSmoothing(BiT(num_classes), robust, MixingNet((768, 1536)), gamma, alpha, scales)


def mixed_nuts(
    num_classes: int,
    shape: Shape,
    normalize: nn.Module | None,
    robust: str,
    scale: float,
    bias: float,
    power: float,
    weight: float,
) -> MixedNUTS:
    """The mixture of BiT ResNet-152x2 and the `robust` RaWRN-70-16 ("ra") or WRN-70-16 ("dm")."""
    shared = {"num_classes": num_classes, "shape": shape, "normalize": normalize}
    made = ra_wide_resnet(**shared) if robust == "ra" else dm_wide_resnet(70, 16, **shared)  # type: ignore[arg-type]
    return MixedNUTS(BiT(num_classes), made, scale, bias, power, weight)
