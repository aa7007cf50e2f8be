"""Pictures in files, decoded on demand, and for training ahead of time in other processes."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..acceleration.process import usable_cores
from ..core.errors import UserError
from ..core.reading import Array
from ..core.rng import make_rng, mixed_seed
from ..core.types import TensorData
from .looks import Cut, tried
from .workers import Workers

Unreadable = Literal["stop", "skip"]

_NAMED = 5  # skipped files that are named one by one in warnings


@dataclass(frozen=True, slots=True)
class Pictures:
    """Labelled pictures in files, as `sparring.core.types.LabelledData`.

    Indexing decodes pictures as they are cut in evaluation; `read` decodes batches for training in other processes, a
    few batches ahead. The random window of a picture depends on seed, row and view alone, so neither the number of
    workers nor an interruption changes it. A file that cannot be read is an error, or is skipped: an index leaves it
    out, and training replaces it by the next readable picture, with that picture's label and row. Either way the file
    is named and counted. The processes stay from epoch to epoch.

    Args:
        folder: folder that holds all pictures.
        names: paths below the folder, as an array of bytes: a million of them are small, and are not copied for every
            worker.
        y: labels `[N]`.
        classes: names of the classes.
        look: rule by which a picture is cut and resized.
        unreadable: "stop" raises an error for a file that cannot be read, "skip" skips it.
        workers: number of processes that decode for training; 0 decodes in this process, None takes one per core.
        device: device of the decoded images.
        lost: for each file skipped so far, the reason.

    Raises:
        UserError: when `unreadable` or `workers` is not allowed.
    """

    folder: Path
    names: Array
    y: Tensor
    classes: tuple[str, ...]
    look: Cut
    unreadable: Unreadable = "stop"
    workers: int | None = None
    device: str | torch.device = "cpu"
    lost: dict[str, str] = field(default_factory=dict, compare=False)
    _workers: Workers = field(default_factory=Workers, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.unreadable not in get_args(Unreadable):
            raise UserError(
                f"unreadable = {self.unreadable!r}: a file that cannot be read is a reason to stop or to skip"
            )
        if self.workers is not None and self.workers < 0:
            raise UserError(f"workers = {self.workers} of pictures must be at least 0")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.look.size, self.look.size

    def to(self, device: torch.device | str) -> "Pictures":
        return replace(self, device=device, y=self.y.to(device))

    def part(self, rows: Tensor) -> "Pictures":
        return replace(self, names=self.names[rows.cpu().numpy()], y=self.y[rows], lost={})

    def relabelled(self, y: Tensor) -> "Pictures":
        return replace(self, y=y.to(self.device))

    def path(self, row: int) -> Path:
        return self.folder / os.fsdecode(bytes(self.names[row]))

    def __getitem__(self, rows: Tensor | slice) -> TensorData:
        wanted = np.arange(len(self))[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        with ThreadPoolExecutor(usable_cores()) as pool:  # the decoder releases Python's lock
            found = list(pool.map(partial(self.tried, look=self.look.centre), wanted.tolist()))
        both = list(zip(wanted.tolist(), found, strict=True))
        self._lose({str(self.path(row)): image for row, image in both if isinstance(image, str)})
        kept = [(row, image) for row, image in both if not isinstance(image, str)]
        x = np.stack([image for _, image in kept]) if kept else np.zeros((0, *self.shape), np.uint8)
        y = self.y[torch.tensor([row for row, _ in kept], dtype=torch.long, device=self.device)]
        return TensorData(torch.from_numpy(x).to(self.device), y, self.classes)

    def tried(self, row: int, look: Callable[[Path], Array]) -> "Array | str":
        """Return the picture of a row, or the reason why it cannot be read."""
        return tried(self.path(row), look)

    def _lose(self, new: Mapping[str, str]) -> None:
        """Warn of files that cannot be read, once for each; raise if `unreadable` is "stop" or no file is readable."""
        for path, why in new.items():
            if self.unreadable == "stop":
                raise UserError(f'{why}: remove it, or skip such files with unreadable="skip"')
            if path not in self.lost:
                self.lost[path] = why
                if len(self.lost) <= _NAMED:
                    warnings.warn(f"{why}; it is skipped, the {_nth(len(self.lost))} of {len(self)}", stacklevel=2)
                elif len(self.lost) & (len(self.lost) - 1) == 0:  # 8, 16, 32, ...
                    warnings.warn(f"{len(self.lost)} of {len(self)} pictures were skipped so far", stacklevel=2)
        if len(self.lost) >= len(self) > 0:
            raise UserError(f"none of {len(self)} pictures in {self.folder} can be read")

    def read(self, batches: Sequence[Tensor], seed: int) -> Iterator[tuple[TensorData, Tensor]]:
        count = usable_cores() if self.workers is None else self.workers
        found = self._workers.read(_Windows(self), batches, seed, count, self.device)
        for rows, (x, others, lost) in found:
            self._lose(lost)
            there = (rows if others is None else others).to(self.device, non_blocking=True)
            yield TensorData(x.to(self.device, non_blocking=True), self.y[there], self.classes), there


class _Windows(Dataset[Any]):
    """Data set of a worker, which decodes random windows by their rows, a batch at a time."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = replace(pictures, y=torch.empty(0, dtype=torch.long), device="cpu", lost={})

    def __getitems__(self, wanted: tuple[int, list[int]]) -> tuple[Tensor, Tensor | None, dict[str, str]]:
        """Return the images, their rows if others took the place of some that were wanted, and what was lost."""
        seed, rows = wanted
        found: list[tuple[Array, int]] = []
        lost: dict[str, str] = {}
        seen: dict[int, int] = {}  # a row occurs once for each view
        for row in rows:
            seen[row] = seen.get(row, -1) + 1
            found.append(self._window(row, seed, seen[row], lost))
        x = np.stack([image for image, _ in found])
        return torch.from_numpy(x), torch.tensor([row for _, row in found]) if lost else None, lost

    def _window(self, row: int, seed: int, view: int, lost: dict[str, str]) -> tuple[Array, int]:
        """Decode the row, or the next readable one, and return it with its row; a black picture if none is readable."""
        pictures = self.pictures
        for other in range(len(pictures)):
            there = (row + other) % len(pictures)
            rng = np.random.default_rng((seed, there, view))
            image = pictures.tried(there, partial(pictures.look.chance, rng=rng))
            if not isinstance(image, str):
                return image, there
            lost[str(pictures.path(there))] = image
        return np.zeros(pictures.shape, np.uint8), row


def _nth(count: int) -> str:
    return f"{count}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(count, 'th') }"


def mixed(pictures: Pictures) -> Pictures:
    """Return the pictures in a fixed random order, so that the first few are a sample of all classes."""
    return pictures.part(mixed_order(len(pictures)))


def mixed_order(count: int) -> Tensor:
    """Return a fixed random order of `count` images."""
    return torch.randperm(count, generator=make_rng(mixed_seed(0, count)))
