"""From a picture in a file to an array: decoding, cropping and resizing."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, get_args

import numpy as np

from ..core.errors import UserError
from ..core.reading import Array, open_file

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
Box = tuple[float, float, float, float]  # left, top, right, bottom
Interpolation = Literal["bicubic", "bilinear"]
Centre = Literal["seven-eighths", "efficientnet", "resnet"]

PADDING = 32  # pixels that evaluation on ImageNet crops from the shorter side, at every size

# other formats are refused, because EPS is not decoded but executed, by Ghostscript
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")


@contextlib.contextmanager
def opened(path: Path) -> "Iterator[Image]":
    """Open a picture of one of `FORMATS`, whatever the name of its file, without decoding it."""
    from PIL import Image, UnidentifiedImageError

    with open_file(path) as file:
        try:
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ValueError(f"it is none of {', '.join(FORMATS)}") from error
        most = Image.MAX_IMAGE_PIXELS
        if most and image.width * image.height > most:  # Pillow itself refuses only twice as many
            raise ValueError(f"its {image.width} x {image.height} pixels are more than {most:,}")
        yield image


def in_colour(image: "Image") -> "Image":
    """Return a picture in RGB; of grey values of 16 bits the upper 8, which Pillow would cut off at 255."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers of 32 bits (Pillow's mode {image.mode}), whose range is not known")
    return image.convert("RGB")


def tried(path: Path, look: Callable[[Path], T]) -> "T | str":
    """Return what `look` makes of a picture, or the reason why the picture cannot be read."""
    try:
        return look(path)
    except MemoryError:
        raise
    except Exception as error:  # a broken file can make a decoder raise any exception
        return f"{path} is no picture that can be read ({str(error).splitlines()[0] if str(error) else type(error)})"


class Cut(Protocol):
    """Rule by which a picture becomes `[3, size, size]` bytes, in evaluation (`centre`) and in training (`chance`)."""

    @property
    def size(self) -> int: ...
    def centre(self, path: Path) -> Array: ...
    def chance(self, path: Path, rng: np.random.Generator) -> Array: ...


@dataclass(frozen=True, slots=True)
class CentralSquare:
    """The central square of a `share` of the shorter side, resized to `size` pixels, in evaluation and in training.

    Args:
        size: Height and width of the images in pixels.
        share: Side of the square, as a share of the shorter side of a picture, in (0, 1].
        interpolation: "bicubic" or "bilinear".
    """

    size: int
    share: float = 1.0
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size = {self.size} of pictures must be at least 1 pixel")
        if not 0 < self.share <= 1:
            raise UserError(f"share = {self.share:g} of the shorter side of pictures must be above 0 and at most 1")
        if self.interpolation not in get_args(Interpolation):
            raise UserError(f"interpolation = {self.interpolation!r} is neither bilinear nor bicubic")

    def centre(self, path: Path) -> Array:
        with opened(path) as image:
            return self.of(image)

    def of(self, image: "Image") -> Array:
        """Return a picture that is decoded already, cut and resized."""
        from PIL import Image, ImageOps

        smooth = Image.Resampling[self.interpolation.upper()]
        square = ImageOps.fit(in_colour(image), (self.size, self.size), smooth, bleed=(1 - self.share) / 2)
        return np.asarray(square).transpose(2, 0, 1)

    def chance(self, path: Path, rng: np.random.Generator) -> Array:
        del rng
        return self.centre(path)


@dataclass(frozen=True, slots=True)
class RandomWindow:
    """A random window of the picture in training, a central square in evaluation, resized to `size` pixels.

    JPEG is decoded at the smallest of its own scales that is not smaller than the result.

    Args:
        size: height and width of the result in pixels, at least 1.
        scale: least and most share of the area that the random window covers, in (0, 1]; its aspect ratio is between
            3/4 and 4/3.
        middle: central square of evaluation. "seven-eighths": 7/8 of the largest square, at every size;
            "efficientnet": size / (size + 32) of the largest square; "resnet": `size` pixels of the picture after its
            shorter side is resized to size + 32. The last two resize by bicubic interpolation, in training too; the
            first by bilinear.

    Raises:
        UserError: when an argument is out of its range.

    References:
        Random window: https://arxiv.org/abs/1409.4842.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    middle: Centre = "seven-eighths"

    def __post_init__(self) -> None:
        if self.middle not in get_args(Centre):
            raise UserError(f"middle = {self.middle!r} is none of {', '.join(get_args(Centre))}")
        if self.size < 1:
            raise UserError(f"size = {self.size} of pictures must be at least 1 pixel")
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise UserError(f"scale = {self.scale} is no share of the area: wanted is 0 < least <= most <= 1")

    def centre(self, path: Path) -> Array:
        return self._cut(path, lambda width, height: _CENTRES[self.middle](width, height, self.size))

    def chance(self, path: Path, rng: np.random.Generator) -> Array:
        return self._cut(path, lambda width, height: _window(width, height, self.scale, rng))

    def _cut(self, path: Path, box: Callable[[int, int], Box]) -> Array:
        from PIL import Image

        smooth = Image.Resampling.BILINEAR if self.middle == "seven-eighths" else Image.Resampling.BICUBIC
        with opened(path) as image:
            width, height = image.size
            left, top, right, bottom = box(width, height)
            share = self.size / min(right - left, bottom - top)
            if share < 1:  # the decoder of JPEG can skip detail that resizing would remove
                image.draft("RGB", (math.ceil(width * share), math.ceil(height * share)))
            wide, high = image.size
            corners = (left, top, right, bottom)
            scaled = [
                at * new / old for at, new, old in zip(corners, (wide, high) * 2, (width, height) * 2, strict=True)
            ]
            inside = (
                scaled[0],
                scaled[1],
                min(scaled[2], wide),
                min(scaled[3], high),
            )  # they exceed it by rounding only
            small = in_colour(image).resize((self.size, self.size), smooth, inside)
        return np.asarray(small).transpose(2, 0, 1)


def _middle(width: int, height: int, side: float) -> Box:
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _seven_eighths(width: int, height: int, size: int) -> Box:
    del size
    return _middle(width, height, min(width, height) * 7 / 8)


def _share(width: int, height: int, size: int) -> Box:
    """Central square as in EfficientNet's code: whole pixels, the side rounded down, the corner rounded up."""
    side = max(1, min(width, height) * size // (size + PADDING))
    left, top = (width - side + 1) // 2, (height - side + 1) // 2
    return left, top, left + side, top + side


def _of_resized(width: int, height: int, size: int) -> Box:
    """Box of the central `size` pixels of the picture when its shorter side is resized to size + 32."""
    by = (size + PADDING) / min(width, height)
    wide, high = int(width * by + 0.5), int(height * by + 0.5)
    left, top = (wide - size) // 2, (high - size) // 2
    return left * width / wide, top * height / high, (left + size) * width / wide, (top + size) * height / high


_CENTRES: dict[Centre, Callable[[int, int, int], Box]] = {
    "seven-eighths": _seven_eighths,
    "efficientnet": _share,
    "resnet": _of_resized,
}


def _window(width: int, height: int, scale: tuple[float, float], rng: np.random.Generator) -> Box:
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, high = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if wide <= width and high <= height:
            left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
            return left, top, left + wide, top + high
    return _middle(width, height, min(width, height))
