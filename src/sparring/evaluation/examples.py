"""The examples of an evaluation, which are read batch by batch: images in files are never all in memory."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError, need_whole
from ..core.types import LabelledData, TensorData
from ..core.validation import check_data, check_images, check_labels
from ..records.results import Array, Shard


def rows_of_shard(count: int, rank: int, world: int) -> Tensor:
    """Gives the rows that one of several processes evaluates: every `world`-th, from row `rank` on.

    Neighbouring examples are in different shards, so that classes and hardness spread over all of them.

    Args:
        count: Number of all examples.
        rank: Number of the process, from 0 to `world` - 1.
        world: Number of processes.

    Returns:
        The rows (int64), `[n]`; none for a rank of at least `count`.

    Raises:
        UserError: If there is no such process.
    """
    need_whole("world", world)
    need_whole("rank", rank, 0, world - 1)
    return torch.arange(min(rank, count), count, world)


def shard_of(shard: tuple[int, int] | None, count: int) -> Shard | None:
    """Return the shard that a user names by its number, from 1, and the number of all."""
    if shard is None:
        return None
    if not isinstance(shard, tuple | list) or len(shard) != 2:
        raise UserError(f"shard = {shard!r}: give a number and the number of all shards, as (2, 8)")
    number, of = shard
    need_whole("the number of shards", of)
    need_whole("the number of a shard", number, 1, of)
    if of > count:
        raise UserError(f"{count:,} examples have no {of:,} shards: use at most {count:,}")
    return Shard(int(number), int(of), count)


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """Labelled images that can all be read, and what identifies each.

    Args:
        source: Images in memory or in files, of which some are evaluated.
        rows: Their rows in the source, `[N]` on the CPU.
        index: Number of each example for its random numbers, int64 `[N]` on the CPU.
        image_hash: Hash of each image with its label, int64 `[N]`.
    """

    source: LabelledData
    rows: Tensor
    index: Tensor
    image_hash: Array

    @classmethod
    def read_once(cls, source: LabelledData, index: Tensor, shard: Shard | None, batch_size: int) -> "EvaluationData":
        """Read all images once to hash them and, if they are in files, to check them and leave out the unreadable."""
        rows = rows_of_shard(len(source), *((0, 1) if shard is None else (shard.number - 1, shard.of)))
        kept, hashes = [], []
        for some in rows.split(batch_size):
            found, readable = _readable(source, some)
            if not isinstance(source, TensorData) and len(found):
                check_images(found.x, f"evaluation images {int(some[0])} to {int(some[-1])}", bytes_too=True)
            kept.append(readable)
            hashes += _hashes(found)
        rows = torch.cat(kept)
        if not len(rows):
            raise UserError("none of the evaluation images can be read: give others")
        return cls(source, rows, index[rows], np.array(hashes, np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all images, `(N, C, H, W)`."""
        return len(self), *self.source.shape

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def label(self) -> Tensor:
        """Labels `[N]` on the CPU."""
        return self.source.y.cpu()[self.rows]

    def __getitem__(self, rows: Tensor | slice) -> TensorData:
        """Read some of the images. Raises `UserError` if one of them can no longer be read."""
        wanted = self.rows[rows]
        found = self.source[wanted.to(self.source.y.device)]
        if len(found) != len(wanted):
            raise UserError(
                f"{len(wanted) - len(found)} of {len(wanted)} images could be read at first and cannot be read now: "
                "check the disk, and evaluate again"
            )
        return TensorData(found.x.detach(), found.y, found.classes)


def check_source(data: LabelledData) -> None:
    """Check labels, and images in memory; images in files are checked when they are read."""
    if isinstance(data, TensorData):
        check_data(data, "evaluation")
        return
    check_labels(data.y, len(data.classes), "evaluation labels")
    if not len(data):
        raise UserError("there are no evaluation images: give at least one")


def _readable(data: LabelledData, rows: Tensor) -> tuple[TensorData, Tensor]:
    """Read some rows, and return the images with their rows: a source may leave out what it cannot read."""
    found = data[rows.to(data.y.device)]
    if len(found) == len(rows):
        return found, rows
    there = [len(data[row[None].to(data.y.device)]) > 0 for row in rows]
    return found, rows[torch.tensor(there)]


def _hashes(data: TensorData) -> list[int]:
    """Return a hash of 64 bits, as a signed number, of each image with its label."""
    x, y = data.x.detach().cpu().contiguous(), data.y.cpu().numpy().astype("<i8")
    kind = hashlib.blake2b(f"{x.dtype} {tuple(x.shape[1:])}".encode(), digest_size=8)
    found = []
    for pixels, label in zip(x.flatten(1).view(torch.uint8).numpy(), y, strict=True):
        one = kind.copy()
        one.update(pixels)
        one.update(label.tobytes())
        found.append(int.from_bytes(one.digest(), "little", signed=True))
    return found
