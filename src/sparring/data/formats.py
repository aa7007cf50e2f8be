"""Readers of the official file formats, which give images `[N, C, H, W]` uint8 and labels `[N]` int64 in numpy."""

import math
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..core.reading import gunzip, open_file, read_bytes, reading

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Labels = np.ndarray[Any, np.dtype[np.int64]]

LARGEST = 2**29  # bytes, of a file and of its unpacked content; the test images of STL-10 have 221 million
ANEW = "get it anew"


def read_idx(path: Path) -> Bytes:
    """Read an array in the idx format of MNIST, gzipped or not."""
    with reading(path, ANEW):
        raw, packed = read_bytes(path, LARGEST), path.suffix == ".gz"
        shape = _idx_shape(zlib.decompressobj(wbits=31).decompress(raw, 4 + 4 * 255) if packed else raw)
        start = 4 + 4 * len(shape)
        size = start + math.prod(shape)
        if size > LARGEST:
            raise ValueError(f"its header {shape} promises more than {LARGEST:,} bytes")
        raw = gunzip(raw, size) if packed else raw
        if len(raw) != size:
            raise ValueError(f"{len(raw) - start} bytes of data where the header {shape} promises {size - start}")
        return np.frombuffer(raw, np.uint8)[start:].reshape(shape)


def _idx_shape(raw: bytes) -> tuple[int, ...]:
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError("its first bytes are not those of an idx file of bytes")
    return tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3]))


def read_cifar(archive: Path, members: list[str], label_bytes: int) -> tuple[Bytes, Labels]:
    """Read the records of a binary CIFAR archive: `label_bytes` labels, of which the last is used, and 3x32x32 pixels.

    `archive` is the .tar.gz or its unpacked folder.
    """
    parts = [_records(archive, member, label_bytes) for member in members]
    records = np.concatenate(parts)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1].astype(np.int64)


def _records(archive: Path, member: str, label_bytes: int) -> Bytes:
    raw = read_member(archive, member)
    size = label_bytes + 3 * 32 * 32
    with reading(archive, ANEW):
        if not raw or len(raw) % size:
            raise ValueError(f"{member} has {len(raw)} bytes, no multiple of a record's {size}")
    return np.frombuffer(raw, np.uint8).reshape(-1, size)


def read_member(archive: Path, member: str) -> bytes:
    """Read a file of an archive, or of its unpacked folder."""
    if archive.is_dir():
        path = archive / Path(member).name
        with reading(path, ANEW):
            return read_bytes(path, LARGEST)
    with reading(archive, ANEW), open_file(archive) as file, tarfile.open(fileobj=file) as tar:
        found = tar.extractfile(member)
        content = found.read(LARGEST + 1) if found else b""
        if not 0 < len(content) <= LARGEST:
            raise ValueError(f"{member} is no file of 1 to {LARGEST:,} bytes")
        return content


def read_names(archive: Path, member: str) -> list[str]:
    """Read the words in a file of an archive."""
    raw = read_member(archive, member)
    with reading(archive, ANEW):
        return raw.decode().split()


def read_stl10(archive: Path, images: str, labels: str) -> tuple[Bytes, Labels]:
    """Read records of 3x96x96 pixels, column by column, and labels of one byte each, counted from 1."""
    raw, y = (np.frombuffer(read_member(archive, member), np.uint8) for member in (images, labels))
    with reading(archive, ANEW):
        if not len(y) or len(raw) != len(y) * 3 * 96 * 96:
            raise ValueError(f"{images} has {len(raw)} bytes, and {labels} {len(y)} labels")
    return raw.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2), y.astype(np.int64) - 1


def read_svhn(path: Path) -> tuple[Bytes, Labels]:
    """Read a cropped-digits .mat file: its images are `[32, 32, 3, N]`, and it labels the digit 0 as 10."""
    with reading(path, ANEW), open_file(path) as file:
        import scipy.io

        _check_svhn(scipy.io.whosmat(file))
        file.seek(0)
        held = scipy.io.loadmat(file, variable_names=["X", "y"])
        return held["X"].transpose(3, 2, 0, 1), held["y"].reshape(-1).astype(np.int64) % 10


def _check_svhn(found: list[tuple[str, tuple[int, ...], str]]) -> None:
    """Raise `ValueError` for other arrays than those of SVHN, before any is unpacked."""
    shapes = {name: shape for name, shape, kind in found if kind == "uint8"}
    x, y = shapes.get("X", ()), shapes.get("y", ())
    if x[:3] != (32, 32, 3) or x[3:] != (math.prod(y),) or math.prod(x) > LARGEST:
        raise ValueError(f"its byte arrays are {shapes}, wanted are X (32, 32, 3, N) and y (N, 1)")
