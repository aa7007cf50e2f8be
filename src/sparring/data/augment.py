"""Augmentations of a whole batch, on its device. Each takes and returns images `[B, C, H, W]` in [0, 1]."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import UserError, need_one_of, need_whole
from ..core.rng import Rng, integers, uniform
from ..core.types import each


class Augment(Protocol):
    """Interface of an augmentation: random changes of a batch of images."""

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        """Return changed images `[B, C, H, W]` in [0, 1], of the shape of `x`; `rng` is on the device of `x`."""
        ...


@dataclass(frozen=True, slots=True)
class Crop:
    """Random crop to the original size, from the image with padding on each side.

    Args:
        padding: number of pixels that are padded on each side.
        mode: "constant" pads with black, "reflect" with the mirrored image.
        p: share of the images that are cropped, 0 to 1.

    Raises:
        UserError: when a number is out of range, or, in a call, the image is too small for its mirrored padding.
    """

    padding: int = 4
    mode: Literal["constant", "reflect"] = "constant"
    p: float = 1.0

    def __post_init__(self) -> None:
        need_whole("padding", self.padding, 0)
        need_one_of("mode", self.mode, ("constant", "reflect"))
        _need_share(self.p)

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        n, _, height, width = x.shape
        if self.mode == "reflect" and self.padding >= min(height, width):
            raise UserError(f"images of {height}x{width} have no {self.padding} pixels to mirror: let Crop pad fewer")
        wide = F.pad(x, [self.padding] * 4, mode=self.mode)
        corner = torch.stack([integers(n, 2 * self.padding + 1, rng, x.device) for _ in range(2)])[:, :, None]
        if self.p < 1:
            moved = _drawn(x, 1, rng) < self.p
            corner = torch.where(moved, corner, self.padding)
        rows = corner[0] + torch.arange(height, device=x.device)
        columns = corner[1] + torch.arange(width, device=x.device)
        image = torch.arange(n, device=x.device)[:, None, None]
        # indexing on both sides of a slice puts the channels last
        return wide[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True, slots=True)
class Flip:
    """Horizontal flip of a random half of the images."""

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        return torch.where(each(_drawn(x, 1, rng) < 0.5, x), x.flip(3), x)


@dataclass(frozen=True, slots=True)
class Cutout:
    """Black square around a random pixel of each image, cut off at the border.

    Args:
        length: side of the square in pixels.

    Raises:
        UserError: when `length` is no whole number from 1 on.

    References:
        Cutout: https://arxiv.org/abs/1708.04552.
    """

    length: int = 16

    def __post_init__(self) -> None:
        need_whole("length", self.length)

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        hit = [self._span(len(x), size, rng, x.device) for size in x.shape[2:]]
        return x.masked_fill((hit[0][:, :, None] & hit[1][:, None, :])[:, None], 0.0)

    def _span(self, n: int, size: int, rng: Rng, device: torch.device) -> Tensor:
        centre = integers(n, size, rng, device)[:, None]
        from_centre = torch.arange(size, device=device) - centre
        return (from_centre >= -(self.length // 2)) & (from_centre < self.length - self.length // 2)


@dataclass(frozen=True, slots=True)
class ResizedCrop:
    """Random crop of random area and aspect ratio, resized to the size of the image by bilinear interpolation.

    A side of the window that would be longer than that of the image is cut to it.

    Args:
        scale: least and most share of the area of the image, in (0, 1].
        ratio: least and most ratio of width to height, above 0.

    Raises:
        UserError: when `scale` or `ratio` is out of range or not in order.

    References:
        Inception: https://arxiv.org/abs/1409.4842.
    """

    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)

    def __post_init__(self) -> None:
        if not (0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]):
            raise UserError(
                f"scale = {self.scale} must be (least, most) in (0, 1], ratio = {self.ratio} (least, most) above 0"
            )

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        u = _drawn(x, 4, rng).T
        area = self.scale[0] + u[0] * (self.scale[1] - self.scale[0])
        low, high = (math.log(r) for r in self.ratio)
        ratio = (low + u[1] * (high - low)).exp()
        ratio = ratio * x.shape[2] / x.shape[3]  # sides are shares of those of the image
        width, height = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
        none = torch.zeros_like(area)
        # affine map from coordinates in the window to those in the image, -1 to 1 on both axes
        across = torch.stack([width, none, (1 - width) * (2 * u[2] - 1)], 1)
        down = torch.stack([none, height, (1 - height) * (2 * u[3] - 1)], 1)
        grid = F.affine_grid(torch.stack([across, down], 1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False).clamp_(0, 1)


@dataclass(frozen=True, slots=True)
class Jitter:
    """Random changes of brightness, contrast and, with three channels, saturation.

    Each factor is drawn between 1 - its strength and 1 + its strength. Brightness is changed first, then contrast, then
    saturation. The hue is unchanged.

    Args:
        brightness: strength of the change of brightness.
        contrast: strength of the change of contrast.
        saturation: strength of the change of saturation.
        p: share of the images that are changed, 0 to 1.

    Raises:
        UserError: when a number is out of range.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    p: float = 0.8

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation) < 0:
            raise UserError(f"strengths of changes are at least 0, unlike {self!r}")
        _need_share(self.p)

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        u = _drawn(x, 4, rng).T
        strengths = (self.brightness, self.contrast, self.saturation)
        bright, contrast, saturation = (each(1 + s * (2 * v - 1), x) for s, v in zip(strengths, u, strict=False))
        out = (x * bright).clamp(0, 1)
        out = _blend(out, grey(out).mean((2, 3), keepdim=True), contrast)
        if x.shape[1] == 3:
            out = _blend(out, grey(out), saturation)
        return torch.where(each(u[3] < self.p, x), out, x)


@dataclass(frozen=True, slots=True)
class Grey:
    """Conversion of a random share of the images to grey.

    Args:
        p: share of the images that lose their colour, 0 to 1.

    Raises:
        UserError: when `p` is outside [0, 1].
    """

    p: float = 0.25

    def __post_init__(self) -> None:
        _need_share(self.p)

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        return torch.where(each(_drawn(x, 1, rng) < self.p, x), grey(x).expand_as(x), x)


def _need_share(p: float) -> None:
    if not 0 <= p <= 1:
        raise UserError(f"p = {p:g} is no share of the images: it is from 0 to 1")


def _drawn(x: Tensor, count: int, rng: Rng) -> Tensor:
    """Draw numbers in [0, 1) for each image, `[B, count]`."""
    return uniform(x.new_empty(len(x), count), rng)


def grey(x: Tensor) -> Tensor:
    """Return the luma of three channels (ITU-R 601), or the mean of another number of channels, `[B, 1, H, W]`."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = x.split(1, 1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _blend(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return (share * x + (1 - share) * other).clamp(0, 1)
