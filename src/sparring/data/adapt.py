"""Data sets made from others: resized, rotated, inverted, or some of the classes.

Images in memory are changed once; others, of files or a `Dataset`, when they are read.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import UserError, need_one_of
from ..core.types import LabelledData, TensorData, pixels
from .sources import Source, TrainTest, test_images

Fit: TypeAlias = Literal["stretch", "crop"]

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class ChangedImages:
    """Images that are not in memory, as `sparring.core.types.LabelledData`, each changed when it is read.

    Args:
        data: images as they are.
        change: makes the changed images of some.
        classes: names of the classes.
    """

    data: LabelledData
    change: Callable[[TensorData], TensorData]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.data)

    @property
    def y(self) -> Tensor:
        return self.data.y

    @property
    def shape(self) -> tuple[int, int, int]:
        return self[:1].shape

    def to(self, device: torch.device | str) -> "ChangedImages":
        return replace(self, data=self.data.to(device))

    def part(self, rows: Tensor) -> "ChangedImages":
        return replace(self, data=self.data.part(rows))

    def relabelled(self, y: Tensor) -> "ChangedImages":
        return replace(self, data=self.data.relabelled(y))

    def __getitem__(self, rows: Tensor | slice) -> TensorData:
        return replace(self.change(self.data[rows]), classes=self.classes)

    def read(self, batches: Sequence[Tensor], seed: int) -> Iterator[tuple[TensorData, Tensor]]:
        for found, rows in self.data.read(batches, seed):
            yield replace(self.change(found), classes=self.classes), rows


def _changed(data: LabelledData, change: Callable[[TensorData], TensorData]) -> LabelledData:
    return change(data) if isinstance(data, TensorData) else ChangedImages(data, change, data.classes)


def _each(source: Source, change: Callable[[TensorData], TensorData]) -> TrainTest:
    train, test = source.load()
    return _changed(train, change), _changed(test, change)


def _test(source: Source, change: Callable[[TensorData], TensorData]) -> LabelledData:
    """Return the changed test images of a source, without its training images."""
    return _changed(test_images(source), change)


def _bytes(x: Tensor, like: Tensor) -> Tensor:
    """Return `x`, as bytes if `like` has bytes."""
    return (255 * x).round().clamp(0, 255).to(torch.uint8) if like.dtype == torch.uint8 else x.clamp(0, 1)


@dataclass(frozen=True, slots=True)
class Resized:
    """Images of another source with other channels and another size, by bilinear interpolation.

    One channel becomes three by repetition; three become one by the weights of ITU-R BT.601.

    Args:
        source: the other source.
        channels: number of channels, 1 or 3; None for as many as they have.
        height: height in pixels, at least 1.
        width: width in pixels, at least 1.
        fit: "stretch" changes the ratio of height and width; "crop" keeps it and cuts off what does not fit, on both
            sides.

    Raises:
        UserError: when `channels` is neither 1 nor 3, a size is below 1, or `fit` is unknown.
    """

    source: Source
    channels: int | None
    height: int
    width: int
    fit: Fit = "stretch"

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3) or min(self.height, self.width) < 1:
            raise UserError(f"images have 1 or 3 channels and a size, not {self.channels}x{self.height}x{self.width}")
        need_one_of("fit", self.fit, get_args(Fit))

    def load(self) -> TrainTest:
        return _each(self.source, self._changed)

    def load_test(self) -> LabelledData:
        return _test(self.source, self._changed)

    def _changed(self, data: TensorData) -> TensorData:
        x = pixels(data.x)
        if self.channels is not None and x.shape[1] != self.channels:
            luma = x.new_tensor(_LUMA).view(1, 3, 1, 1)
            x = x.expand(-1, 3, -1, -1) if self.channels == 3 else (x * luma).sum(1, keepdim=True)
        size = (self.height, self.width)
        if self.fit == "crop":
            x = _central(x, self.height / self.width)
        if tuple(x.shape[2:]) != size:
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
        return TensorData(_bytes(x, data.x).contiguous(), data.y, data.classes)


def _central(x: Tensor, ratio: float) -> Tensor:
    """Return the largest central part whose height is `ratio` times its width, to whole pixels."""
    height, width = x.shape[2:]
    high, wide = min(height, max(1, round(width * ratio))), min(width, max(1, round(height / ratio)))
    top, left = (height - high) // 2, (width - wide) // 2
    return x[:, :, top : top + high, left : left + wide]


@dataclass(frozen=True, slots=True)
class Rotated:
    """Images of another source, rotated to the left by quarter turns.

    Args:
        source: the other source.
        quarters: number of quarter turns.
    """

    source: Source
    quarters: int = 1

    def load(self) -> TrainTest:
        return _each(self.source, self._changed)

    def load_test(self) -> LabelledData:
        return _test(self.source, self._changed)

    def _changed(self, data: TensorData) -> TensorData:
        return replace(data, x=data.x.rot90(self.quarters, (2, 3)).contiguous())


@dataclass(frozen=True, slots=True)
class InvertedImages:
    """Images of another source as negatives: black becomes white.

    Args:
        source: the other source.
    """

    source: Source

    def load(self) -> TrainTest:
        return _each(self.source, self._changed)

    def load_test(self) -> LabelledData:
        return _test(self.source, self._changed)

    def _changed(self, data: TensorData) -> TensorData:
        return replace(data, x=(255 if data.x.dtype == torch.uint8 else 1) - data.x)


@dataclass(frozen=True, slots=True)
class ClassSubset:
    """Images of some classes of another source, with the classes renumbered.

    Args:
        source: the other source.
        chosen: numbers of the classes in the other source, at least two and all different; the first becomes class 0.

    Raises:
        UserError: when `chosen` has fewer than two classes or one twice, or `load` finds no class of such a number.
    """

    source: Source
    chosen: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(set(self.chosen)) != len(self.chosen) or len(self.chosen) < 2:
            raise UserError(f"at least two classes are chosen, none twice, not {self.chosen}")

    def load(self) -> TrainTest:
        train, test = self.source.load()
        return self._chosen(train), self._chosen(test)

    def load_test(self) -> LabelledData:
        return self._chosen(test_images(self.source))

    def _chosen(self, data: LabelledData) -> LabelledData:
        count = len(data.classes)
        if not all(0 <= number < count for number in self.chosen):
            raise UserError(f"classes {self.chosen} are chosen of those numbered 0 to {count - 1}")
        new = torch.full((count,), -1)
        new[list(self.chosen)] = torch.arange(len(self.chosen))
        y = new.to(data.y.device)[data.y]
        rows = (y >= 0).nonzero()[:, 0]
        names = tuple(data.classes[number] for number in self.chosen)
        return replace(data.part(rows).relabelled(y[rows]), classes=names)  # type: ignore[type-var]
