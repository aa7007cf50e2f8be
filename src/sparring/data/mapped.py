"""Images of bytes that stay in a file, mapped into memory, so that a training set may be larger than memory."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.reading import Array, memory_of_machine
from ..core.types import TensorData
from ..core.validation import check_images, check_labels
from .array_files import map_arrays, names_of_arrays
from .arrays import channels_first, class_numbers, count_classes

AHEAD = 2
"""Batches that are gathered while training works on the one before."""
_READERS = 8
"""Threads that gather. One would do where the file is in memory; a disk is fast only if asked for much at once."""
_AT_A_TIME = 64
"""Images that a thread gathers at a time."""


@dataclass(frozen=True, slots=True)
class MappedImages:
    """Labelled images of bytes in a mapped file, as `sparring.core.types.LabelledData`.

    Indexing copies images into memory; `read` gathers the batches of training in threads, two batches ahead, on CUDA in
    pinned memory.

    Args:
        images: all images of the file, `[M, C, H, W]` or `[M, H, W, C]` bytes with 1 or 3 channels.
        y: labels `[N]`.
        classes: names of the classes.
        rows: rows of `images` that belong to these data, `[N]`; None for all.
        device: device of the images that are read.
    """

    images: Array
    y: Tensor
    classes: tuple[str, ...]
    rows: Tensor | None = None
    device: str | torch.device = "cpu"

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = channels_first(self.images[:1], "images").shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> "MappedImages":
        return replace(self, device=device, y=self.y.to(device))

    def part(self, rows: Tensor) -> "MappedImages":
        return replace(self, rows=self._of_file(rows.cpu()), y=self.y[rows.to(self.y.device)])

    def relabelled(self, y: Tensor) -> "MappedImages":
        return replace(self, y=y.to(self.device))

    def _of_file(self, rows: Tensor) -> Tensor:
        return rows if self.rows is None else self.rows[rows]

    def __getitem__(self, rows: Tensor | slice) -> TensorData:
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(len(self)))
        elif rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        size = len(rows) * math.prod(self.shape)
        if size > memory_of_machine():
            raise UserError(
                f"{len(rows):,} images of a file would be {size / 2**30:.3g} GiB in memory, more than this machine "
                "has: take fewer, or train on them as they are"
            )
        found = [part for part, _ in self.read([rows], 0)] if len(rows) else []
        x = found[0].x if found else torch.empty(0, *self.shape, dtype=torch.uint8, device=self.device)
        return TensorData(x, self.y[rows.to(self.y.device)], self.classes)

    def read(self, batches: Sequence[Tensor], seed: int) -> Iterator[tuple[TensorData, Tensor]]:
        del seed
        with ThreadPoolExecutor(_READERS) as pool:
            ahead: deque[_Gathering] = deque()
            for rows in batches:
                ahead.append(_Gathering.begun(self, rows, pool))
                if len(ahead) > AHEAD:
                    yield self._ready(ahead.popleft())
            while ahead:
                yield self._ready(ahead.popleft())

    def _ready(self, batch: "_Gathering") -> tuple[TensorData, Tensor]:
        """Return a batch on the device, with its rows there, as soon as it is gathered."""
        for part in batch.parts:
            part.result()
        there = batch.rows.to(self.device, non_blocking=True)
        x = batch.x.to(self.device, non_blocking=True)
        if tuple(x.shape[1:]) != self.shape:
            x = x.permute(0, 3, 1, 2).contiguous()
        return TensorData(x, self.y[there], self.classes), there


@dataclass(slots=True)
class _Gathering:
    """A batch that threads copy out of the file: its rows, and its images `[B, ...]` as they are laid out there."""

    rows: Tensor
    x: Tensor
    parts: list["Future[Any]"]

    @classmethod
    def begun(cls, data: MappedImages, rows: Tensor, pool: ThreadPoolExecutor) -> "_Gathering":
        places, count = data._of_file(rows.cpu()), len(data.images)
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < count:
            raise IndexError(f"rows {int(places.min())} to {int(places.max())} of {count} images")
        pinned = torch.device(data.device).type == "cuda"  # only from there are copies asynchronous
        x = torch.empty((len(rows), *data.images.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        pairs = zip(places.split(_AT_A_TIME), x.split(_AT_A_TIME), strict=True)
        # "clip" writes to `out` at once, where the default would make a copy first
        return cls(rows, x, [pool.submit(np.take, data.images, a.numpy(), 0, b.numpy(), "clip") for a, b in pairs])


@dataclass(frozen=True, slots=True)
class MappedArrays:
    """Your own arrays of bytes, which stay in their file: training sets may be larger than memory.

    The arrays `x_train`, `y_train`, `x_test` and `y_test` are .npy files in a folder, or in one .npz file (not
    compressed) or .safetensors file. Images are bytes `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`, with 1 or 3
    channels; an image is read when it is needed. Labels are integers `[N]`, and each class from 0 to the highest has a
    training image; they are read when training begins.

    Args:
        path: path of the folder or file.
    """

    path: str

    def load(self) -> tuple[MappedImages, MappedImages]:
        held = map_arrays(Path(self.path), ("x_train", "y_train", "x_test", "y_test"))
        labels = {part: class_numbers(held[f"y_{part}"], f"{self.path}, {part}") for part in ("train", "test")}
        names = tuple(map(str, range(count_classes(labels["train"], labels["test"], self.path))))
        train, test = (
            mapped_images(held[f"x_{part}"], labels[part], names, f"{self.path}, {part}") for part in ("train", "test")
        )
        return train, test


@dataclass(frozen=True, slots=True)
class GeneratedImages:
    """Images of bytes that a generative model has drawn, with their classes; they stay in their file.

    The file is an .npz file (not compressed) or a .safetensors file, or it is a folder of .npy files. Its arrays are
    called `image` and `label`, as in published sets of generated images, or `x_train` and `y_train`, or `x` and `y`. It
    has no test images.

    Args:
        path: path of the file or folder.
    """

    path: str

    def load(self) -> tuple[MappedImages, MappedImages]:
        path, pairs = Path(self.path), (("image", "label"), ("x_train", "y_train"), ("x", "y"))
        found = names_of_arrays(path)
        names = next((pair for pair in pairs if found.issuperset(pair)), None)
        if names is None:
            wanted = ", or ".join(" and ".join(pair) for pair in pairs)
            raise UserError(f"{path} holds {', '.join(sorted(found)) or 'no arrays'}: wanted are {wanted}")
        held = map_arrays(path, names)
        labels = class_numbers(held[names[1]], self.path)
        classes = tuple(map(str, range(max(2, int(labels.max(initial=0)) + 1))))
        drawn = mapped_images(held[names[0]], labels, classes, self.path)
        return drawn, drawn.part(torch.empty(0, dtype=torch.long))


def mapped_images(images: Array, labels: Array, classes: tuple[str, ...], what: str) -> MappedImages:
    """Return mapped images with their labels. Raises `UserError` unless they are bytes, and as many as labels."""
    if images.dtype != np.uint8:
        raise UserError(
            f"{what}: images are {images.dtype}, and mapped images are bytes from 0 to 255: write them as uint8, "
            "or name an npz:FILE, which is read into memory"
        )
    if len(images) != len(labels) or images.size == 0:
        raise UserError(
            f"{what}: there are images {images.shape} and {len(labels)} labels: wanted is a label for each of at "
            "least one image"
        )
    y = torch.from_numpy(labels.astype(np.int64))
    check_labels(y, len(classes), f"{what} labels")
    check_images(torch.from_numpy(channels_first(images[:1], what).copy()), f"{what} images", bytes_too=True)
    return MappedImages(images[:, None] if images.ndim == 3 else images, y, classes)
