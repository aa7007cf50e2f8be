"""Progressive resizing: training images that grow from epoch to epoch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UserError, need_whole
from ..core.gate import as_taken, check_taken
from ..core.types import LabelledData, TensorData, pixels
from .pictures import Pictures


class Reader(Protocol):
    """Interface of what training batches are read from: every `LabelledData` is one."""

    def read(self, batches: Sequence[Tensor], seed: int) -> Iterator[tuple[TensorData, Tensor]]:
        """Yield the batches, each with its rows."""
        ...


@dataclass(frozen=True, slots=True)
class ProgressiveResizing:
    """Training on images whose size grows with the epoch, which takes less time than training on large ones throughout.

    `ProgressiveResizing(((0, 128), (30, 160), (60, 224)))` begins with 128 pixels and ends with 224. The size is that
    of the shorter side; the ratio of the sides stays. Pictures in files are decoded at the size; other images are
    resized on the device. Held-out and test images keep their size, and so does the perturbation set.

    Args:
        sizes: Pairs (epoch, pixels of the shorter side); the first epoch is 0, and the epochs increase.

    Raises:
        UserError: If the first size does not begin at epoch 0, the epochs do not increase, or a size is below 1.

    References:
        Progressive learning: https://arxiv.org/abs/2104.00298.
    """

    sizes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        epochs = [epoch for epoch, _ in self.sizes]
        if not epochs or epochs[0] != 0 or epochs != sorted(set(epochs)):
            raise UserError(f"sizes of images begin at epoch 0 and each later than the one before, not at {epochs}")
        for _, size in self.sizes:
            need_whole("size", size)

    def size(self, epoch: int) -> int:
        """Return the pixels of the shorter side in an epoch, counted from 0."""
        return [size for begin, size in self.sizes if begin <= epoch][-1]

    @property
    def largest(self) -> int:
        """The first epoch with the largest images."""
        return max(self.sizes, key=lambda pair: pair[1])[0]

    def reader(self, data: LabelledData, epoch: int) -> Reader:
        """Return what gives the training batches of an epoch, at its size."""
        size = self.size(epoch)
        if min(data.shape[1:]) == size:
            return data
        if isinstance(data, Pictures):
            return replace(data, look=replace(data.look, size=size))  # type: ignore[type-var]
        return _OnDevice(data, size)

    def check(self, model: nn.Module, few: Tensor) -> None:
        """Raise `UserError` unless the model takes a few images `[B, C, H, W]` at every size."""
        for size in {size for _, size in self.sizes}:
            try:
                check_taken(model, as_taken(model, resized(few, size)))
            except UserError as error:
                reason = str(error.__cause__ or error).strip().partition("\n")[0]
                raise UserError(
                    f"the model does not take images of {size} pixels, which progressive resizing would give it "
                    f"({reason}): leave that size out"
                ) from error


@dataclass(frozen=True, slots=True)
class _OnDevice:
    """Reads batches and resizes them where they are."""

    data: LabelledData
    size: int

    def read(self, batches: Sequence[Tensor], seed: int) -> Iterator[tuple[TensorData, Tensor]]:
        for part, rows in self.data.read(batches, seed):
            yield TensorData(resized(part.x, self.size), part.y, part.classes), rows


def resized(x: Tensor, size: int) -> Tensor:
    """Return images `[B, C, H, W]` as floats in [0, 1], whose shorter side is `size`, by antialiased interpolation."""
    height, width = x.shape[2:]
    shape = [round(side * size / min(height, width)) for side in (height, width)]
    if shape == [height, width]:
        return pixels(x)
    small = F.interpolate(pixels(x), shape, mode="bilinear", antialias=True, align_corners=False)
    return small.clamp_(0, 1)  # rounding may leave the interval
