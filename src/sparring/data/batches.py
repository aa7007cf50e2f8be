"""Batches of the training set, augmented on the device, in an order that depends on seed and epoch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core import ranks
from ..core.errors import UserError
from ..core.rng import PerExample, mixed_seed
from ..core.types import Batch, LabelledData, TensorData, pixels
from .augment import Augment
from .image_size import ProgressiveResizing
from .order import Order

MOST_HELD_OUT = 10_000
"""Images that select the best epoch, at most: they are on the device, and more of them would hardly tell more."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches of a training set, shuffled anew in each epoch.

    The order of epoch e is a function of `seed` and e, so a resumed run needs no sampler state. Several processes
    divide every batch between them.

    Args:
        data: training set.
        size: number of images per batch, at most all of `data`.
        augment: augmentations, applied in this order.
        seed: seed of the order.
        views: number of times that a batch holds each of its images, at least 1. Each view is augmented separately;
            the first views of all images come first, then the second ones, and so on.
        drop_last: leave out the images after the last full batch of an epoch; otherwise they are a smaller batch.
        accumulate: number of micro-batches into which a step divides a batch, at least 1.
        resizing: sizes of the images in the course of the epochs; None leaves them as they are.

    Raises:
        UserError: when `views` or `accumulate` is below 1, `size` is below 1 or above the number of images, or a batch
            has too few images to be divided.
    """

    data: LabelledData
    size: int
    augment: tuple[Augment, ...] = ()
    seed: int = 0
    views: int = 1
    drop_last: bool = True
    accumulate: int = 1
    resizing: ProgressiveResizing | None = None

    def __post_init__(self) -> None:
        if self.views < 1:
            raise UserError(f"views = {self.views}: a batch must hold every image at least once")
        if not 1 <= self.size <= len(self.data):
            raise UserError(
                f"batches of {self.size} do not go with {len(self.data)} training images: set batch_size (--batch-size)"
            )

        least = self.size if self.drop_last else len(self.data) % self.size or self.size
        parts = ranks.world() * self.accumulate
        if self.accumulate < 1 or least < parts:
            last = "" if self.drop_last else ", or leave out the smaller last batch (--drop-last)"
            raise UserError(
                f"a batch of {least} images cannot be divided into {self.accumulate} micro-batches on {ranks.world()} "
                f"processes: take larger batches (--batch-size) or fewer parts{last}"
            )

    def __len__(self) -> int:
        return len(self.data) // self.size if self.drop_last else math.ceil(len(self.data) / self.size)

    def rest_of_epoch(self, step: int) -> Iterator[Batch]:
        """Yield the batches of the epoch of `step`, from that step on; of several processes each has its own part."""
        epoch, done = divmod(step, len(self))
        seed = mixed_seed(self.seed, epoch)
        wanted = _Wanted(self, Order(len(self.data), seed), done)
        reader = self.data if self.resizing is None else self.resizing.reader(self.data, epoch)
        for at, (part, index) in enumerate(reader.read(wanted, seed)):
            whole = self.views * len(wanted.positions(at))
            batch = Batch(pixels(part.x), part.y, index, self.views, whole, self.accumulate)
            rng = PerExample(mixed_seed(self.seed, step + at, "augmentation"), batch.streams, together=True)
            x = batch.x
            for change in self.augment:
                x = change(x, rng)
            yield replace(batch, x=x)


@dataclass(frozen=True, slots=True)
class _Wanted(Sequence[Tensor]):
    """The rows of the batches of an epoch from number `first` on, for this process, computed when they are wanted."""

    batches: Batches
    order: Order
    first: int

    def __len__(self) -> int:
        return len(self.batches) - self.first

    def positions(self, at: int) -> range:
        """Return the positions of a whole batch in the order of the epoch."""
        size = self.batches.size
        begin = (self.first + at) * size
        return range(begin, min(begin + size, len(self.order)))

    def __getitem__(self, at: int) -> Tensor:  # type: ignore[override]
        if not 0 <= at < len(self):
            raise IndexError(at)
        positions = self.positions(at)
        mine = positions[ranks.own(len(positions))]
        return self.order.rows(torch.arange(mine.start, mine.stop)).repeat(self.batches.views)


def hold_out(data: LabelledData, share: float) -> tuple[LabelledData, TensorData]:
    """Split off a validation (held-out) set from the training set, by which the best epoch is chosen.

    The split is fixed: it is the same for every seed.

    Args:
        data: training set `[N]`.
        share: share of the images that are held out, in (0, 1); at most `MOST_HELD_OUT` images are.

    Returns:
        The remaining training set and the validation set.

    Raises:
        UserError: when one of the two would be empty.
    """
    count = min(round(share * len(data)), MOST_HELD_OUT)
    if not 1 <= count < len(data):
        raise UserError(
            f"holding out {share:g} of {len(data)} training images leaves {len(data) - count} to train on and "
            f"{count} to select by: both need at least one"
        )
    held = Order(len(data), 0).rows(torch.arange(count)).sort().values
    rest = torch.ones(len(data), dtype=torch.bool)
    rest[held] = False
    return data.part(rest.nonzero()[:, 0].to(data.y.device)), data[held.to(data.y.device)]
