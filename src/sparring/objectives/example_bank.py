"""One row of numbers for every training example, stored where there is room for it."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.types import LabelledData, TensorData

Place: TypeAlias = Literal["auto", "device", "host", "disk"]

WHOLE = 256 * 2**20
"""Largest size in bytes of a bank in float32; a larger one is in half precision."""
ON_DEVICE = 512 * 2**20
"""Largest size in bytes of a bank on the device of the model; a larger one stays on the host."""
OF_MEMORY = 1 / 4
"""Largest share of the host's memory for a bank on the host; a larger one is a file, mapped into memory."""


class Bank(nn.Module):
    """One row of numbers for each example of a training set: `[N, C]`, 0 at first.

    Rows are read and written by index, in float32. The stored precision (float32 or float16) depends only on the size,
    so that a resumed run rounds in the same way wherever the bank is. The bank is a buffer: it is saved and loaded with
    the rest of the state, in pieces, so a checkpoint is larger by its size. A file on disk is created in TMPDIR, which
    should not be in memory itself.

    Args:
        data: The training set.
        columns: Numbers per row, C.
        place: Where the bank is stored: on the "device" of the model, on the "host" or on "disk"; "auto" chooses by
            size.

    Raises:
        UserError: If the data has no length, or there is no room on disk; when loaded, if the saved bank belongs to
            another training set.
    """

    rows: Tensor
    owner: Tensor

    def __init__(self, data: LabelledData, columns: int, place: Place = "auto") -> None:
        super().__init__()
        count = _length(data)
        self.dtype, self.place = chosen(count, columns, place, _memory())
        self.register_buffer("rows", _zeros(count, columns, self.dtype, self.place))
        self.register_buffer("owner", fingerprint(data))
        self._before: list[tuple[Tensor, Tensor]] | None = None

    def __getitem__(self, index: Tensor) -> Tensor:
        """Rows `[B, C]` of `index` `[B]`, on the device of `index`."""
        return self.rows[index.to(self.rows.device)].to(index.device, torch.float32)

    def __setitem__(self, index: Tensor, values: Tensor) -> None:
        index = index.to(self.rows.device)
        if self._before is not None:
            self._before.append((index, self.rows[index]))
        self.rows[index] = values.detach().to(self.rows.device, self.dtype)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Restore on exit the rows that are written meanwhile; only these are copied, and not the whole bank."""
        self._before = []
        try:
            yield
        finally:
            for index, rows in reversed(self._before):
                self.rows[index] = rows
            self._before = None

    def check(self, index: Tensor) -> None:
        """Raise `UserError` for an index outside the training set; on a GPU this synchronises."""
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= len(self.rows):
            raise UserError(
                f"a batch has the index {low if low < 0 else high}, but examples are numbered from 0 to "
                f"{len(self.rows) - 1}: memory of single examples needs the place of each example in the training set"
            )

    def __str__(self) -> str:
        count, columns = self.rows.shape
        size = self.rows.numel() * self.rows.element_size() / 1e6
        where = {
            "device": "on the device of the model",
            "host": "in the memory of the host",
            "disk": "in a file on the disk",
        }
        return (
            f"a bank of {count:,} x {columns} numbers is kept {where[self.place]}, in "
            f"{str(self.dtype).removeprefix('torch.')}, {size:,.1f} MB"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Bank":
        """Keep a bank on the host or on disk in its place when the rest of the state is moved."""
        return super()._apply(fn, recurse) if self.place == "device" else self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        shape = tuple(state_dict[prefix + "rows"].shape)
        if shape != tuple(self.rows.shape):
            raise UserError(
                f"the saved bank is of {shape[0]:,} examples and {shape[1]} classes, but this training set has "
                f"{len(self.rows):,} and {self.rows.shape[1]}: it is of another data set"
            )
        if not torch.equal(state_dict[prefix + "owner"].cpu(), self.owner.cpu()):
            raise UserError(
                "the saved bank is of as many examples, but of other labels or images: the data set has changed since "
                "this training began"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)


def chosen(count: int, columns: int, place: Place, memory: int) -> tuple[torch.dtype, Place]:
    """Precision and place of a bank of `count` rows, on a machine with `memory` bytes."""
    numbers = count * columns
    dtype = torch.float32 if 4 * numbers <= WHOLE else torch.float16
    size = numbers * dtype.itemsize
    if place != "auto":
        return dtype, place
    if size <= ON_DEVICE:
        return dtype, "device"
    return dtype, "host" if size <= OF_MEMORY * memory else "disk"


def _length(data: LabelledData) -> int:
    try:
        count = len(data)
    except TypeError:
        count = 0
    if not count:
        raise UserError(
            "memory of single examples needs a training set whose examples have a number, from 0 on: a set that is "
            "streamed without end or without an index has none. In a loop of your own, give the training set to "
            "State.start(method, model, optimizer, data)"
        )
    return count


def _zeros(count: int, columns: int, dtype: torch.dtype, place: Place) -> Tensor:
    if place != "disk":
        return torch.zeros(count, columns, dtype=dtype)
    numbers = np.float32 if dtype == torch.float32 else np.float16
    with tempfile.TemporaryFile() as file:  # a file without a name, which lives as long as the mapping
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, count * columns * dtype.itemsize)
        except OSError as error:
            raise UserError(
                f"there is no room for a bank of {count:,} x {columns} numbers in {tempfile.gettempdir()} "
                f"({error.strerror}): name another folder in TMPDIR"
            ) from error
        return torch.from_numpy(np.memmap(file, numbers, "w+", shape=(count, columns)))


def _memory() -> int:
    """Bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 8 * 2**30


def fingerprint(data: LabelledData) -> Tensor:
    """Fingerprint of a training set: its labels, classes and shape, and a few of its images if they are in memory."""
    digest = hashlib.sha256(repr((data.classes, data.shape)).encode())
    digest.update(data.y.cpu().numpy().tobytes())
    if isinstance(data, TensorData):
        digest.update(data.x[:: max(1, len(data) // 64)].cpu().contiguous().numpy().tobytes())
    return torch.tensor(int.from_bytes(digest.digest()[:7], "big"))
