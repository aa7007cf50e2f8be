"""Images of a map-style `Dataset` of PyTorch, read when they are needed."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ..core.errors import UserError
from ..core.rng import mixed_seed
from ..core.types import TensorData
from .arrays import channels_first
from .workers import Workers


@dataclass(frozen=True, slots=True)
class DatasetImages:
    """Images of a map-style `Dataset`, read when they are needed, with its own transforms and its own collation.

    Every item is read with random numbers that depend on the seed, the item and the view alone, so that a run that
    was interrupted sees the same augmentations.

    Args:
        dataset: The data set, whose items are (image, label), or dicts that hold both.
        rows: Rows of the data set that belong to these data, `[N]`.
        y: Class numbers `[N]`.
        classes: Names of the classes.
        shape: Channels, height and width.
        workers: Number of processes that read items; 0 to read in this process.
        collate: Makes a batch `(images, labels)`, or a dict that holds both, of a list of items of the data set.
        device: Device of the batches.
        listed: Class numbers of all items of the data set, with which they are compared when they are read; None if
            they are not to be compared. `y` may differ, as with noisy labels.
    """

    dataset: Any
    rows: Tensor
    y: Tensor
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    workers: int = 0
    collate: Callable[[list[Any]], Any] = default_collate
    device: str | torch.device = "cpu"
    listed: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> "DatasetImages":
        return replace(self, device=device, y=self.y.to(device))

    def part(self, rows: Tensor) -> "DatasetImages":
        return replace(self, rows=self.rows[rows.cpu()], y=self.y[rows.to(self.y.device)])

    def relabelled(self, y: Tensor) -> "DatasetImages":
        return replace(self, y=y.to(self.device))

    def __getitem__(self, rows: Tensor | slice) -> TensorData:
        """Return some of the images in memory; an augmentation of the data set draws the same numbers every time."""
        places = torch.arange(len(self))[rows if isinstance(rows, slice) else rows.cpu()]
        found = [part.x for part, _ in self.read(places.split(256), 0)] if len(places) else []
        x = torch.cat(found) if found else torch.zeros(0, *self.shape, device=self.device)
        return TensorData(x, self.y[places.to(self.y.device)], self.classes)

    def read(self, batches: Sequence[Tensor], seed: int) -> Iterator[tuple[TensorData, Tensor]]:
        # new workers each time, which see what the owner of the data set has changed in it since
        found = Workers().read(
            _Items(self.dataset, self.rows, self.collate, self.listed), batches, seed, self.workers, self.device
        )
        for rows, x in found:
            there = rows.to(self.device, non_blocking=True)
            yield TensorData(x.to(self.device, non_blocking=True), self.y[there], self.classes), there


class _Items(Dataset[Any]):
    """Data set of a worker: a batch at a time, each item with random numbers of its own."""

    def __init__(
        self, dataset: Any, rows: Tensor, collate: Callable[[list[Any]], Any], listed: Tensor | None = None
    ) -> None:
        self.dataset, self.rows, self.collate, self.listed = dataset, rows, collate, listed

    def __getitems__(self, wanted: tuple[int, list[int]]) -> Tensor:
        run, places = wanted
        seen: dict[int, int] = {}  # a row occurs once for each view
        items = []
        with own_random_state():
            for place in places:
                seen[place] = seen.get(place, -1) + 1
                seed = mixed_seed(run, place, seen[place])
                random.seed(seed)
                np.random.seed(seed % 2**32)  # noqa: NPY002
                torch.manual_seed(seed)
                items.append(self.dataset[int(self.rows[place])])
            pairs = [image_and_label(item) for item in items]
            self._check([int(self.rows[place]) for place in places], pairs)
            x, y = default_collate(pairs) if self.collate is default_collate else _batch(self.collate(items))
        if not torch.equal(torch.as_tensor(y), torch.tensor([label for _, label in pairs])):
            raise UserError(
                "the loader's collate_fn changes the labels: take that out of it, and mix images and labels by an "
                "objective such as sparring.objectives.MixUp"
            )
        return x

    def _check(self, rows: list[int], pairs: list[tuple[Tensor, int]]) -> None:
        """Raise `UserError` if an item has another label than is listed, or a size that makes no batch."""
        shape = pairs[0][0].shape
        for row, (image, label) in zip(rows, pairs, strict=True):
            if self.listed is not None and label != int(self.listed[row]):
                raise UserError(
                    f"item {row} of the data set has the label {label}, and had or was listed with the label "
                    f"{int(self.listed[row])}: an item must keep its label, and `targets` or `labels` must be those of "
                    "the items"
                )
            if image.shape != shape and self.collate is default_collate:
                raise UserError(
                    f"images of the data set differ in size: item {row} is {'x'.join(map(str, image.shape))}, and item "
                    f"{rows[0]} is {'x'.join(map(str, shape))}: add a transform that resizes or crops them"
                )


@contextmanager
def own_random_state() -> Iterator[None]:
    """Restore the global random generators of Python, numpy and torch afterwards: transforms draw from these."""
    ours, theirs = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(ours)
    np.random.set_state(theirs)  # noqa: NPY002


def image_and_label(item: Any) -> tuple[Tensor, int]:
    """Return image `[C, H, W]` and label of an item."""
    item = _pair(item)
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise UserError(f"an item of the data set is {item!r:.60}: wanted is (image, label)")
    label = item[1]
    number = label.item() if isinstance(label, Tensor | np.generic) and np.ndim(label) == 0 else label
    if isinstance(number, bool) or not isinstance(number, int):
        raise UserError(f"a label of the data set is {label!r:.60}: wanted is a class number, 0, 1, 2, ...")
    return _image(item[0]), number


def _pair(item: Any) -> Any:
    """Return image and label of a dict that holds both by one of their usual names; anything else as it is."""
    if not isinstance(item, Mapping):
        return item
    images = [item[name] for name in ("image", "img", "pixel_values", "x") if name in item]
    labels = [item[name] for name in ("label", "labels", "fine_label", "y") if name in item]
    return (*images[:1], *labels[:1])


def _batch(made: Any) -> tuple[Tensor, Any]:
    """Return images and labels of what a `collate_fn` has made."""
    pair = _pair(made)
    if not isinstance(pair, tuple | list) or len(pair) < 2 or not isinstance(pair[0], Tensor) or pair[0].ndim != 4:
        raise UserError(f"the loader's collate_fn gives {made!r:.60}: wanted are images [B, C, H, W] and labels [B]")
    return pair[0], pair[1]


def _image(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        return image[None] if image.ndim == 2 else image
    if getattr(image, "mode", None) == "P":  # of Pillow, with a palette: its pixels are numbers of colours
        image = image.convert("RGB")
    array = np.array(image)  # Pillow's pictures, too
    if array.dtype.kind not in "buif" or array.ndim not in (2, 3):
        raise UserError(f"an image of the data set is {image!r:.60}: wanted are pixels [C, H, W], or a picture")
    return torch.from_numpy(channels_first(array[None], "the data set").copy())[0]
