"""Pictures in files: found by their folders, decoded when they are asked for, in other processes ahead of training."""

import os
import signal
import threading
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
from torch.utils.data import DataLoader, Dataset

from ..acceleration.process import usable_cores
from ..core.errors import UserError
from ..core.reading import Array
from ..core.rng import make_rng, mixed_seed
from ..core.types import TensorData
from .looks import Cut

Unreadable = Literal["stop", "skip"]

AHEAD = 3  # batches that each worker holds ready
_NAMED = 5  # files that are named one by one


@dataclass(frozen=True, slots=True)
class Pictures:
    """Labelled pictures in files, as `sparring.core.types.LabelledData`: rows that are asked for are decoded, as they
    are seen in evaluation; `read` decodes batches for training in `workers` other processes (0: in this one), a few
    ahead.

    What is cut out of a picture is decided by seed and row alone, so neither the number of workers nor an interruption
    changes it. A file that cannot be read stops everything, or is skipped: left out of rows that are asked for, and in
    training replaced by the next that can be read, with its own label and row. Either way it is named and counted.
    Signals are for the process that trains: workers heed only its own.
    """

    folder: Path
    names: Array
    """Paths below the folder, as bytes: a million of them are small, and are not copied for every worker."""
    y: Tensor
    classes: tuple[str, ...]
    look: Cut
    unreadable: Unreadable = "stop"
    workers: int | None = None
    device: str | torch.device = "cpu"
    lost: dict[str, str] = field(default_factory=dict, compare=False)
    """Why which file was skipped so far."""

    def __post_init__(self) -> None:
        if self.unreadable not in get_args(Unreadable):
            raise UserError(
                f"unreadable = {self.unreadable!r}: a file that cannot be read is a reason to stop or to skip"
            )
        if self.workers is not None and self.workers < 0:
            raise UserError(f"there cannot be {self.workers} workers")

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
        with ThreadPoolExecutor(usable_cores()) as pool:  # the decoder runs without Python's lock
            found = list(pool.map(partial(self.tried, look=self.look.centre), wanted.tolist()))
        both = list(zip(wanted.tolist(), found, strict=True))
        self._lose({str(self.path(row)): image for row, image in both if isinstance(image, str)})
        kept = [(row, image) for row, image in both if not isinstance(image, str)]
        x = np.stack([image for _, image in kept]) if kept else np.zeros((0, *self.shape), np.uint8)
        y = self.y[torch.tensor([row for row, _ in kept], dtype=torch.long, device=self.device)]
        return TensorData(torch.from_numpy(x).to(self.device), y, self.classes)

    def tried(self, row: int, look: Callable[[Path], Array]) -> "Array | str":
        """The picture, or why there is none."""
        path = self.path(row)
        try:
            return look(path)
        except MemoryError:
            raise
        except Exception as error:  # whatever a broken file makes a decoder raise
            return (
                f"{path} is no picture that can be read ({str(error).splitlines()[0] if str(error) else type(error)})"
            )

    def _lose(self, new: Mapping[str, str]) -> None:
        """Says which files could not be read, once of each, and stops if that is wanted or if there are no others."""
        for path, why in new.items():
            if self.unreadable == "stop":
                raise UserError(f'{why}: take it away, or skip such files with unreadable="skip"')
            if path not in self.lost:
                self.lost[path] = why
                if len(self.lost) <= _NAMED:
                    warnings.warn(f"{why}; it is skipped, the {_nth(len(self.lost))} of {len(self)}", stacklevel=2)
                elif len(self.lost) & (len(self.lost) - 1) == 0:  # 8, 16, 32, ...
                    warnings.warn(f"{len(self.lost)} of {len(self)} pictures were skipped by now", stacklevel=2)
        if len(self.lost) >= len(self) > 0:
            raise UserError(f"none of {len(self)} pictures in {self.folder} can be read")

    def read(self, batches: Sequence[Tensor], seed: int) -> Iterator[tuple[TensorData, Tensor]]:
        workers = usable_cores() if self.workers is None else self.workers
        ahead: dict[str, Any] = {"prefetch_factor": AHEAD} if workers else {}
        loader = DataLoader(
            _Windows(self, seed),
            batch_sampler=[rows.tolist() for rows in batches],
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_heed_parent_only,
            pin_memory=torch.device(self.device).type == "cuda",
            generator=make_rng(0),  # what it draws from would else be torch's own generator, which training draws from
            **ahead,
        )
        for x, rows, lost in loader:
            self._lose(lost)
            there = rows.to(self.device)
            yield TensorData(x.to(self.device, non_blocking=True), self.y[there], self.classes), there


class _Windows(Dataset[Any]):
    """What a worker does: pictures by their rows, a batch at a time."""

    def __init__(self, pictures: Pictures, seed: int) -> None:
        self.pictures, self.seed = replace(pictures, y=torch.empty(0, dtype=torch.long), device="cpu", lost={}), seed

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor, dict[str, str]]:
        found: list[tuple[Array, int]] = []
        lost: dict[str, str] = {}
        seen: dict[int, int] = {}  # a row may come several times, as so many views
        for row in rows:
            seen[row] = seen.get(row, -1) + 1
            found.append(self._window(row, seen[row], lost))
        x = np.stack([image for image, _ in found])
        return torch.from_numpy(x), torch.tensor([row for _, row in found]), lost

    def _window(self, row: int, view: int, lost: dict[str, str]) -> tuple[Array, int]:
        """Of the row, or of the next that can be read; nothing, if there is none."""
        pictures = self.pictures
        for other in range(len(pictures)):
            there = (row + other) % len(pictures)
            rng = np.random.default_rng((self.seed, there, view))
            image = pictures.tried(there, partial(pictures.look.chance, rng=rng))
            if not isinstance(image, str):
                return image, there
            lost[str(pictures.path(there))] = image
        return np.zeros(pictures.shape, np.uint8), row


def _heed_parent_only(worker: int) -> None:
    """SIGINT and SIGTERM to a whole group of processes shall let the one that trains finish its step."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_says, args=(os.getppid(),), daemon=True).start()


def _end_when_parent_says(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _as_it_is(batch: Any) -> Any:
    return batch


def _nth(count: int) -> str:
    return f"{count}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(count, 'th') }"


def mixed(pictures: Pictures) -> Pictures:
    """In an order by chance, always the same: the first so many are then a sample of all classes."""
    return pictures.part(torch.randperm(len(pictures), generator=make_rng(mixed_seed(0, len(pictures)))))
