"""Arrays in .npy, .npz and .safetensors files, mapped into memory: nothing of them is read before it is used."""

import math
import mmap
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..core.reading import Array, conform, open_file, parse_json, reading

_LONGEST_HEADER = 100_000_000  # bytes of the header of a .safetensors file, as its own library has it
_TYPES = {"U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8"}
_TYPES |= {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_REMEDY = (
    "name a folder of .npy files, an .npz file as numpy.savez writes it, or a .safetensors file, each with the arrays "
)


def map_arrays(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Map arrays of a folder of .npy files, of an .npz file that is not compressed, or of a .safetensors file.

    Raises `UserError` if the file is damaged, or lacks one of `names`.
    """
    with reading(path, _REMEDY + ", ".join(names)):
        if os.path.isdir(path):
            return {name: _of_npy(path / f"{name}.npy") for name in names}
        with open_file(path) as file:
            return (_of_safetensors if path.suffix == ".safetensors" else _of_npz)(file, names)


def names_of_arrays(path: Path) -> set[str]:
    """Return the names of the arrays that `map_arrays` finds in a folder or file."""
    with reading(path, _REMEDY.removesuffix(", each with the arrays ")):
        if os.path.isdir(path):
            return {each.stem for each in path.glob("*.npy")}
        with open_file(path) as file:
            return set(_header(file) if path.suffix == ".safetensors" else _members(file))


def _of_npy(path: Path) -> Array:
    with reading(path, "write it with numpy.save"), open_file(path) as file:
        return _mapped(file, *_npy_header(file))


def _of_npz(file: IO[bytes], names: Sequence[str]) -> dict[str, Array]:
    members = _members(file)
    _check_names(names, members)
    return {name: _of_member(file, members[name]) for name in names}


def _members(file: IO[bytes]) -> dict[str, zipfile.ZipInfo]:
    with zipfile.ZipFile(file) as archive:
        return {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}


def _of_member(file: IO[bytes], entry: zipfile.ZipInfo) -> Array:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename} is compressed: write it with numpy.savez, not savez_compressed")
    file.seek(entry.header_offset)
    head = file.read(30)  # its last two numbers are the lengths of a name and of extra fields, which follow
    start = entry.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    file.seek(start)
    kind, shape = _npy_header(file)
    if file.tell() - start + kind.itemsize * math.prod(shape) != entry.file_size:
        raise ValueError(f"{entry.filename} has another length than its header {shape} promises")
    return _mapped(file, kind, shape)


def _npy_header(file: IO[bytes]) -> tuple["np.dtype[Any]", tuple[int, ...]]:
    """Return type and shape of an array in the format of numpy.save, and leave the file where its numbers begin."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, kind = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"it is of version {version} of the format of numpy.save, and versions 1 and 2 are read")
    if fortran:
        raise ValueError("it is in the order of Fortran: write numpy.ascontiguousarray(..) of it")
    return kind, shape


def _of_safetensors(file: IO[bytes], names: Sequence[str]) -> dict[str, Array]:
    members = _header(file)
    length = file.tell() - 8
    _check_names(names, members)
    found = {}
    for name in names:
        kind, shape, ends = (members[name].get(key) for key in ("dtype", "shape", "data_offsets"))
        conform(shape, list[int], f"the shape of {name}")
        conform(ends, tuple[int, int] if isinstance(ends, tuple) else list[int], f"the place of {name}")
        if kind not in _TYPES:
            raise ValueError(f"{name} is {kind}: wanted is one of {', '.join(_TYPES)}")
        file.seek(8 + length + ends[0])
        found[name] = _mapped(file, np.dtype(_TYPES[kind]), tuple(shape))
    return found


def _header(file: IO[bytes]) -> dict[str, Any]:
    """Return what a .safetensors file says of its arrays, and leave the file where their numbers begin."""
    length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"its header has more than {_LONGEST_HEADER:,} bytes")
    members: dict[str, Any] = parse_json(file.read(length))
    conform(members, dict[str, dict[str, Any]], "its header")
    return members


def _check_names(names: Sequence[str], members: Sequence[str] | dict[str, Any]) -> None:
    missing = [name for name in names if name not in members]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}; it holds {', '.join(members) or 'nothing'}")


def _mapped(file: IO[bytes], kind: "np.dtype[Any]", shape: tuple[int, ...]) -> Array:
    """Map an array that begins at the present place of a file. Raises `ValueError` if it does not fit there."""
    if kind.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"it holds {kind} {shape}: wanted are numbers")
    whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(shape) > 1 and hasattr(mmap, "MADV_RANDOM"):
        whole.madvise(mmap.MADV_RANDOM)  # else the system reads 128 KB around each image that is asked for
    return np.frombuffer(whole, kind, math.prod(shape), file.tell()).reshape(shape)
