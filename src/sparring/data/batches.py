"""The training set in batches by index, augmented on the device, in an order that depends on seed and epoch."""

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
    """Full batches of `size`; what is left over at the end of an epoch waits for another order, or is a batch as well.

    The order of epoch e is a function of `seed` and e, so a resumed run needs no sampler state. With `views`, a batch
    holds every image so many times, each augmented by itself, one view of all images after the other.
    """

    data: LabelledData
    size: int
    augment: tuple[Augment, ...] = ()
    seed: int = 0
    views: int = 1
    drop_last: bool = True

    def __post_init__(self) -> None:
        if self.views < 1:
            raise UserError(f"a batch holds every image once or more, not {self.views} times")
        if not 1 <= self.size <= len(self.data):
            raise UserError(f"batches of {self.size} do not go with {len(self.data)} training images")

    def __len__(self) -> int:
        return len(self.data) // self.size if self.drop_last else math.ceil(len(self.data) / self.size)

    def rest_of_epoch(self, step: int, rng: torch.Generator) -> Iterator[Batch]:
        """The batches of the epoch that `step` lies in, from that step on. `rng` drives the augmentation."""
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
    """Splits off a fixed part of the training set, the same for every seed, by which "best" is chosen."""
    count = round(share * len(data))
    if not 1 <= count < len(data):
        raise UserError(
            f"holding out {share:g} of {len(data)} training images leaves {len(data) - count} to train on and "
            f"{count} to select by: both need at least one"
        )
    order = torch.randperm(len(data), generator=make_rng(0)).to(data.y.device)
    return data.part(order[count:].sort().values), data[order[:count].sort().values]
