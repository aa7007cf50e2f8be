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
from .extra import ExtraImages
from .image_size import ProgressiveResizing, Reader
from .mixing import TargetAugment, moved_from, probabilities
from .order import Order, Passes

MOST_HELD_OUT = 10_000
"""Images that select the best epoch, at most: they are on the device, and more of them would hardly tell more."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches of a training set, shuffled anew in each epoch.

    The order of epoch e is a function of `seed` and e, so a resumed run needs no sampler state. Several processes
    divide every batch between them. With extra data, real and extra images alternate in a batch as evenly as can be,
    so that every process and every micro-batch has the same share of both; the numbers of extra images follow those of
    the real ones, and no image is left out at the end of an epoch.

    Args:
        data: training set.
        size: number of images per batch, at most all of `data`.
        augment: augmentations, applied in this order; some change the targets, too.
        seed: seed of the order.
        views: number of times that a batch holds each of its images, at least 1. Each view is augmented separately;
            the first views of all images come first, then the second ones, and so on.
        drop_last: leave out the images after the last full batch of an epoch; otherwise they are a smaller batch.
        accumulate: number of micro-batches into which a step divides a batch, at least 1.
        resizing: sizes of the images in the course of the epochs; None leaves them as they are.
        extra: extra images, which have a fixed share of every batch; None without.
        places: whether batches say where augmentations moved each pixel from (`Batch.places`).

    Raises:
        UserError: when `views` or `accumulate` is below 1, `size` is below 1 or above the number of images, or a batch
            has too few images to be divided.
    """

    data: LabelledData
    size: int
    augment: tuple[Augment | TargetAugment, ...] = ()
    seed: int = 0
    views: int = 1
    drop_last: bool = True
    accumulate: int = 1
    resizing: ProgressiveResizing | None = None
    extra: ExtraImages | None = None
    places: bool = False

    def __post_init__(self) -> None:
        if self.views < 1:
            raise UserError(f"views = {self.views}: a batch must hold every image at least once")
        for count, data, kind in self._streams():
            if not 1 <= count <= len(data):
                share = "" if self.extra is None else f", of which {count} are {kind},"
                raise UserError(
                    f"batches of {self.size}{share} do not go with {len(data)} {kind} images: set batch_size "
                    "(--batch-size)"
                )
        full = self.drop_last or self.extra is not None
        least = self.size if full else len(self.data) % self.size or self.size
        parts = ranks.world() * self.accumulate
        if self.accumulate < 1 or least < parts:
            last = "" if self.drop_last else ", or leave out the smaller last batch (--drop-last)"
            raise UserError(
                f"a batch of {least} images cannot be divided into {self.accumulate} micro-batches on {ranks.world()} "
                f"processes: take larger batches (--batch-size) or fewer parts{last}"
            )

    def _streams(self) -> list[tuple[int, LabelledData, str]]:
        """Return the number of images in a batch, the data and the kind of each stream."""
        if self.extra is None:
            return [(self.size, self.data, "training")]
        extra = self.extra.count(self.size)
        return [(self.size - extra, self.data, "real"), (extra, self.extra.data, "extra")]

    def __len__(self) -> int:
        if self.extra is not None:
            return self.extra.steps_per_epoch or max(1, len(self.data) // self._streams()[0][0])
        return len(self.data) // self.size if self.drop_last else math.ceil(len(self.data) / self.size)

    def rest_of_epoch(self, step: int) -> Iterator[Batch]:
        """Yield the batches of the epoch of `step`, from that step on; of several processes each has its own part."""
        epoch, done = divmod(step, len(self))
        classes = len(self.data.classes)
        for at, batch in enumerate(self._read(epoch, done)):
            seed = mixed_seed(self.seed, step + at, "augmentation")
            if self.places:
                places = moved_from(self.augment, batch.x, PerExample(seed, batch.streams, together=True))
                batch = replace(batch, places=places)
            rng = PerExample(seed, batch.streams, together=True)
            for change in self.augment:
                if isinstance(change, TargetAugment):
                    x, soft = change.change(batch.x, probabilities(batch.target, classes), rng)
                    batch = replace(batch, x=x, y=soft.argmax(1), soft=soft)
                else:
                    batch = replace(batch, x=change(batch.x, rng))
            yield batch

    def _read(self, epoch: int, done: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `done` on, as they are in the data."""
        seed = mixed_seed(self.seed, epoch)
        if self.extra is not None:
            yield from self._read_both(seed, epoch * len(self) + done, len(self) - done, epoch)
            return
        wanted = _Wanted(Order(len(self.data), seed), self.size, done, len(self) - done, self.views)
        for at, (part, index) in enumerate(self._reader(self.data, epoch).read(wanted, seed)):
            whole = self.views * len(wanted.positions(at))
            yield Batch(pixels(part.x), part.y, index, self.views, whole, self.accumulate)

    def _read_both(self, seed: int, first: int, count: int, epoch: int) -> Iterator[Batch]:
        """Yield `count` batches of real and extra images, from number `first` of the whole training on."""
        (real, data, _), (_, extra, _) = self._streams()
        mine = ranks.own(self.size)
        ends = [number * (self.size - real) // self.size for number in range(self.size + 1)]
        own = (
            slice(mine.start - ends[mine.start], mine.stop - ends[mine.stop]),
            slice(ends[mine.start], ends[mine.stop]),
        )
        is_extra = torch.tensor(ends[mine.start : mine.stop + 1]).diff().bool()
        place = is_extra.argsort(stable=True).argsort(stable=True).to(data.y.device)
        orders = [Passes(len(each), mixed_seed(self.seed, kind)) for each, kind in ((data, "real"), (extra, "extra"))]
        sizes = real, self.size - real
        wanted = [
            _Wanted(order, size, first, count, self.views, part)
            for order, size, part in zip(orders, sizes, own, strict=True)
        ]
        readers = [self._reader(each, epoch).read(rows, seed) for each, rows in zip((data, extra), wanted, strict=True)]
        for (part, index), (other, rows) in zip(*readers, strict=True):
            pairs = (pixels(part.x), pixels(other.x)), (part.y, other.y), (index, rows + len(data))
            x, y, index = (self._alternating(pair, place) for pair in pairs)
            yield Batch(x, y, index, self.views, self.views * self.size, self.accumulate)

    def _alternating(self, pair: tuple[Tensor, Tensor], place: Tensor) -> Tensor:
        """Return the rows of two tensors, of which each holds all views of its images, in the order of the batch."""
        both = torch.cat([part.unflatten(0, (self.views, -1)) for part in pair], 1)
        return both[:, place].flatten(0, 1)

    def _reader(self, data: LabelledData, epoch: int) -> Reader:
        return data if self.resizing is None else self.resizing.reader(data, epoch)


@dataclass(frozen=True, slots=True)
class _Wanted(Sequence[Tensor]):
    """The rows of `batches` batches from number `first` on, for this process, computed when they are wanted.

    `part` is the part of a batch that this process has; None for its part of all, also where the last batch is smaller.
    """

    order: Order | Passes
    size: int
    first: int
    batches: int
    views: int
    part: slice | None = None

    def __len__(self) -> int:
        return self.batches

    def positions(self, at: int) -> range:
        """Return the positions of a whole batch in the order."""
        begin = (self.first + at) * self.size
        end = begin + self.size
        return range(begin, min(end, len(self.order)) if isinstance(self.order, Order) else end)

    def __getitem__(self, at: int) -> Tensor:  # type: ignore[override]
        if not 0 <= at < len(self):
            raise IndexError(at)
        positions = self.positions(at)
        mine = positions[self.part or ranks.own(len(positions))]
        return self.order.rows(torch.arange(mine.start, mine.stop)).repeat(self.views)


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
