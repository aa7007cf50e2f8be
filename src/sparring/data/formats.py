"""Readers of the official file formats. Each gives numpy images `[N, C, H, W]` uint8 and labels `[N]` int64."""

import gzip
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from .files import broken, read

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Labels = np.ndarray[Any, np.dtype[np.int64]]


def read_idx(path: Path) -> Bytes:
    """An array in the idx format of MNIST, gzipped or not."""
    return read(path, _idx)


def _idx(path: Path) -> Bytes:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise broken(path, "it does not begin as an idx file of bytes does")
    ndim = raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(ndim))
    body = raw[4 + 4 * ndim :]
    if len(body) != math.prod(shape):
        raise broken(path, f"{len(body)} bytes of data where the header {shape} promises {math.prod(shape)}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def read_cifar(archive: Path, members: list[str], label_bytes: int) -> tuple[Bytes, Labels]:
    """Records of a binary CIFAR archive: `label_bytes` labels, of which the last counts, and 3x32x32 pixels.

    `archive` is the .tar.gz or the folder that it unpacks to.
    """
    parts = [_records(archive, member, label_bytes) for member in members]
    records = np.concatenate(parts)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1].astype(np.int64)


def _records(archive: Path, member: str, label_bytes: int) -> Bytes:
    raw = read_member(archive, member)
    size = label_bytes + 3 * 32 * 32
    if not raw or len(raw) % size:
        raise broken(archive, f"{member} has {len(raw)} bytes, no multiple of a record's {size}")
    return np.frombuffer(raw, np.uint8).reshape(-1, size)


def read_member(archive: Path, member: str) -> bytes:
    """A file of an archive, or of the folder that it unpacks to."""

    def extract(path: Path) -> bytes:
        if path.is_dir():
            return (path / Path(member).name).read_bytes()
        with tarfile.open(path) as tar:
            found = tar.extractfile(member)
            if found is None:
                raise broken(path, f"{member} is no file")
            return found.read()

    return read(archive, extract)


def read_stl10(archive: Path, images: str, labels: str) -> tuple[Bytes, Labels]:
    """3x96x96 pixels a record, column by column, and a byte for each label, counted from 1."""
    raw, y = (np.frombuffer(read_member(archive, member), np.uint8) for member in (images, labels))
    if not len(y) or len(raw) != len(y) * 3 * 96 * 96:
        raise broken(archive, f"{images} has {len(raw)} bytes, and {labels} {len(y)} labels")
    return raw.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2), y.astype(np.int64) - 1


def read_svhn(path: Path) -> tuple[Bytes, Labels]:
    """A cropped-digits .mat file: images are `[32, 32, 3, N]`, and the digit 0 is labelled 10."""

    def load(path: Path) -> tuple[Bytes, Labels]:
        import scipy.io

        held = scipy.io.loadmat(path)
        return held["X"].transpose(3, 2, 0, 1).copy(), held["y"].reshape(-1).astype(np.int64) % 10

    return read(path, load)
