"""Extra training data beside the real ones, such as images that a generative model has drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.errors import UserError, need_whole
from ..core.types import LabelledData, TensorData, pixels
from ..core.validation import check_data
from .classes import numbered, with_classes
from .sources import Source


@dataclass(frozen=True, slots=True)
class ExtraData:
    """A second source of training images, from which each batch takes a fixed share of its images.

    An epoch is a pass over the real images, or a number of steps. The extra images go on in the next epoch where they
    have stopped, and each is used once before any is used again. Held-out and test images, alterations, statistics for
    normalisation, and the bank of a kNN head are those of the real data alone. Labels follow the names of classes, if
    both have names.

    Args:
        source: the source, whose training images are used.
        share: share of the extra images in a batch, in (0, 1); 0.7 in the work of Wang et al. on CIFAR-10.
        steps_per_epoch: steps of an epoch; None for as many as a pass over the real images takes.

    Raises:
        UserError: when `share` is not in (0, 1), or `steps_per_epoch` is below 1; in training, when the images do not
            have the shape of the real ones, or a label or the name of a class is none of theirs.

    References:
        Generated data: https://arxiv.org/abs/2110.09468 (Gowal et al.), https://arxiv.org/abs/2302.04638 (Wang et al.).
    """

    source: Source
    share: float = 0.7
    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"share = {self.share:g} of the extra data in a batch is not in (0, 1)")
        if self.steps_per_epoch is not None:
            need_whole("steps_per_epoch", self.steps_per_epoch)

    def load(self, real: LabelledData) -> "ExtraImages":
        """Return the images of the source on the device of the real ones, checked to be of the same kind."""
        data, _ = self.source.load()
        check_data(data if isinstance(data, TensorData) else data[:8], "extra training")
        if data.shape != real.shape:
            raise UserError(f"real training images are {real.shape}, but extra ones are {data.shape}")
        if int(data.y.max()) >= len(real.classes):
            raise UserError(
                f"the extra data have a label {int(data.y.max())}, but the real ones have {len(real.classes)} classes"
            )
        more = len(data.classes) > len(real.classes)
        if not (more and numbered(data.classes)):  # without names, more classes may be counted than have images
            data = with_classes(data, real.classes, "extra data", "real ones")
        return ExtraImages(data.to(real.y.device), self.share, self.steps_per_epoch)


@dataclass(frozen=True, slots=True)
class ExtraImages:
    """Loaded extra data, with the share that they have in a batch and the steps of an epoch, as in `ExtraData`."""

    data: LabelledData
    share: float
    steps_per_epoch: int | None = None

    def count(self, size: int) -> int:
        """Return the number of extra images in a batch of `size` images."""
        return round(self.share * size)

    def joined(self, real: LabelledData) -> "JoinedData":
        """Return real and extra data as one training set, whose numbers of examples are those of batches."""
        return JoinedData(real, self.data)


@dataclass(frozen=True, slots=True)
class JoinedData:
    """Two training sets one after the other, as `sparring.core.types.LabelledData`."""

    first: LabelledData
    second: LabelledData

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @property
    def y(self) -> Tensor:
        return torch.cat([self.first.y, self.second.y])

    @property
    def classes(self) -> tuple[str, ...]:
        return self.first.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.first.shape

    def __getitem__(self, rows: Tensor | slice) -> TensorData:
        chosen = torch.arange(len(self))[rows.cpu() if isinstance(rows, Tensor) else rows]
        late = chosen >= len(self.first)
        parts = self.first[chosen[~late]], self.second[chosen[late] - len(self.first)]
        place = torch.empty_like(chosen)
        place[torch.cat([(~late).nonzero()[:, 0], late.nonzero()[:, 0]])] = torch.arange(len(chosen))
        alike = parts[0].x.dtype == parts[1].x.dtype
        x = torch.cat([part.x if alike else pixels(part.x) for part in parts])[place]
        y = torch.cat([part.y for part in parts])[place]
        return TensorData(x, y, self.classes)

    def to(self, device: torch.device | str) -> "JoinedData":
        return JoinedData(self.first.to(device), self.second.to(device))

    def part(self, rows: Tensor) -> TensorData:
        return self[rows]

    def relabelled(self, y: Tensor) -> "JoinedData":
        count = len(self.first)
        return replace(self, first=self.first.relabelled(y[:count]), second=self.second.relabelled(y[count:]))

    def read(self, batches: Sequence[Tensor], seed: int) -> Iterator[tuple[TensorData, Tensor]]:
        del seed
        for rows in batches:
            yield self[rows], rows
