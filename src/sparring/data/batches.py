"""Batches of the training set, augmented on the device, in an order that depends on seed and epoch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..core.errors import UserError
from ..core.rng import make_rng, mixed_seed
from ..core.types import Batch, LabelledData, TensorData, pixels
from .augment import Augment


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches of a training set, shuffled anew in each epoch.

    The order of epoch e is a function of `seed` and e, so a resumed run needs no sampler state.

    Args:
        data: training set.
        size: number of images per batch, at most all of `data`.
        augment: augmentations, applied in this order.
        seed: seed of the order.
        views: number of times that a batch holds each of its images, at least 1. Each view is augmented separately;
            the first views of all images come first, then the second ones, and so on.
        drop_last: leave out the images after the last full batch of an epoch; otherwise they are a smaller batch.

    Raises:
        UserError: when `views` is below 1, or `size` is below 1 or above the number of images.
    """

    data: LabelledData
    size: int
    augment: tuple[Augment, ...] = ()
    seed: int = 0
    views: int = 1
    drop_last: bool = True

    def __post_init__(self) -> None:
        if self.views < 1:
            raise UserError(f"views = {self.views}: a batch must hold every image at least once")
        if not 1 <= self.size <= len(self.data):
            raise UserError(
                f"batches of {self.size} do not go with {len(self.data)} training images: set batch_size (--batch-size)"
            )

    def __len__(self) -> int:
        return len(self.data) // self.size if self.drop_last else math.ceil(len(self.data) / self.size)

    def rest_of_epoch(self, step: int, rng: torch.Generator) -> Iterator[Batch]:
        """Yield the batches of the epoch of `step`, from that step on; the augmentation draws from `rng`."""
        epoch, done = divmod(step, len(self))
        seed = mixed_seed(self.seed, epoch)
        order = torch.randperm(len(self.data), generator=make_rng(seed)).to(self.data.y.device)
        wanted = [index.repeat(self.views) for index in order.split(self.size)[done : len(self)]]
        for part, index in self.data.read(wanted, seed):
            x = pixels(part.x)
            for change in self.augment:
                x = change(x, rng)
            yield Batch(x, part.y, index, self.views)


def hold_out(data: LabelledData, share: float) -> tuple[LabelledData, TensorData]:
    """Split off a validation (held-out) set from the training set, by which the best epoch is chosen.

    The split is fixed: it is the same for every seed.

    Args:
        data: training set `[N]`.
        share: share of the images that are held out, in (0, 1).

    Returns:
        The remaining training set and the validation set.

    Raises:
        UserError: when one of the two would be empty.
    """
    count = round(share * len(data))
    if not 1 <= count < len(data):
        raise UserError(
            f"holding out {share:g} of {len(data)} training images leaves {len(data) - count} to train on and "
            f"{count} to select by: both need at least one"
        )
    order = torch.randperm(len(data), generator=make_rng(0)).to(data.y.device)
    return data.part(order[count:].sort().values), data[order[:count].sort().values]
