"""Reads all files: their size, depth and types are checked.

Files come from other people, other versions and crashed machines. Any fault of a file becomes one `UserError` that
names the file. Needs no torch.
"""

import collections.abc
import contextlib
import io
import json
import math
import os
import re
import stat
import types
import typing
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from .errors import UserError

Array: TypeAlias = "np.ndarray[Any, Any]"

LARGEST_JSON = 256 * 2**20  # bytes; a long run writes some hundred bytes per step
DEEPEST_JSON = 64


@contextlib.contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turn any exception while `path` is read into one `UserError` that names the file and the remedy.

    The readers of JSON, zip, npz, safetensors, tar and pictures raise errors without a common type.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
        raise UserError(f"{path} cannot be read ({reason}): {remedy}") from error


def _first_line(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    lines, kind = str(error).strip().splitlines(), type(error)
    message = lines[0][:200] if lines else kind.__name__
    return message if kind is ValueError or not lines else f"{kind.__name__}: {message}"


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; a pipe or a device, which may never end, is refused."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise ValueError("it is no regular file")
    return os.fdopen(file, "rb")


def read_bytes(path: Path, most: float = math.inf) -> bytes:
    """Return the content of a regular file of at most `most` bytes. Raises `ValueError` for any other file."""
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise ValueError(f"it has more than {most:,} bytes")
        return file.read()


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises `ValueError` if it is nested more than 64 levels deep."""
    value = json.loads(text)
    if _deeper(value, DEEPEST_JSON):
        raise ValueError(f"it is nested more than {DEEPEST_JSON} deep")
    return value


def _deeper(value: Any, most: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return most == 0 or any(_deeper(part, most - 1) for part in parts)


REMEDY = "restore it, or start a new run in another folder"


def read_json(path: Path, remedy: str = REMEDY, hint: Any = dict[str, Any]) -> dict[str, Any]:
    """Read a JSON object of the type `hint` from a file. Raises `UserError` for anything else."""
    with reading(path, remedy):
        value: dict[str, Any] = parse_json(read_bytes(path, LARGEST_JSON))
        conform(value, hint, "it")
        return value


def conform(value: object, hint: Any, where: str) -> None:
    """Raise `ValueError`, with `where` in its message, if a value or a part of it is not of a type.

    Lists, tuples, mappings and `TypedDict` are checked with their parts; a `TypedDict` may have more keys than its type
    names. An int is accepted as a float, but a bool is not accepted as an int, nor a fraction. An instance of a class
    matches the class; a protocol is matched by any object with its methods.
    """
    origin, arguments, fits = typing.get_origin(hint), typing.get_args(hint), True
    if origin in (typing.Union, types.UnionType):
        fits = any(_conforms(value, option) for option in arguments)
    elif origin is typing.Literal:
        fits = value in arguments
    elif typing.is_typeddict(hint):
        _conform_fields(value, hint, where)
    elif origin in (list, tuple, dict) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        _conform_parts(value, hint, origin, arguments, where)
    else:
        fits = _is_a(value, origin or hint)
    if not fits:
        raise ValueError(_unlike(value, hint, where))


def _conforms(value: object, hint: Any) -> bool:
    try:
        conform(value, hint, "")
    except ValueError:
        return False
    return True


_FROM_JSON = (int, float, str, list, tuple, dict, type(None))


def _is_a(value: object, kind: Any) -> bool:
    """Return True if a value is of a type without parts; a type that cannot be checked, as a variable, accepts all."""
    if kind is float or kind is int:
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if kind in (typing.Any, collections.abc.Callable):
        return kind is typing.Any or callable(value)
    if getattr(kind, "_is_protocol", False):
        methods = [name for name in dir(kind) if name == "__call__" or not name.startswith("_")]
        return not isinstance(value, _FROM_JSON) and all(hasattr(value, name) for name in methods)
    return isinstance(value, type(None) if kind is None else kind) if isinstance(kind, type | None) else True


def _conform_fields(value: object, hint: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(_unlike(value, dict, where))
    for name, option in typing.get_type_hints(hint).items():
        if name in value:
            conform(value[name], option, f"{where}.{name}")
        elif name in hint.__required_keys__:
            raise ValueError(f"{where} lacks {name!r}")


def _conform_parts(value: object, hint: Any, origin: Any, arguments: tuple[Any, ...], where: str) -> None:
    if not isinstance(value, Mapping if issubclass(origin, Mapping) else origin):
        raise ValueError(_unlike(value, hint, where))
    if isinstance(value, Mapping):
        for name, part in value.items():
            conform(name, arguments[0], f"a name in {where}")
            conform(part, arguments[1], f"{where}.{name}")
        return
    assert isinstance(value, list | tuple)
    options = arguments[:1] * len(value) if origin is list or arguments[-1:] == (...,) else arguments
    if len(value) != len(options):
        raise ValueError(_unlike(value, hint, where))
    for number, (part, option) in enumerate(zip(value, options, strict=True)):
        conform(part, option, f"{where}[{number}]")


def _unlike(value: object, hint: Any, where: str) -> str:
    whole = getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
    wanted = re.sub(r"(?:\w+\.)+(\w+)", r"\1", whole)  # without the modules
    shown = " ".join(repr(value).split())
    return f"{where} is {shown if len(shown) <= _LONGEST else f'of type {type(value).__name__}'}, wanted is {wanted}"


_LONGEST = 60  # letters of a value in a message; of a longer one only the type is said


def read_arrays(path: Path, remedy: str, *needed: str) -> dict[str, Array]:
    """Read the arrays of an .npz file. Raises `UserError` if it is damaged or lacks one of `needed`.

    The unpacked size that the archive states is compared with the memory of this machine before it is unpacked.
    """
    with reading(path, remedy), open_file(path) as file:
        return load_arrays(file, *needed)


def load_arrays(file: IO[bytes], *needed: str) -> dict[str, Array]:
    """Read the arrays of an open .npz file. Raises any exception of the readers of zip files and arrays."""
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > memory_of_machine():
        raise ValueError(f"it would unpack to {unpacked / 2**30:.3g} GiB, more than this machine has memory")
    file.seek(0)
    with np.load(file, allow_pickle=False) as held:
        missing = [name for name in needed if name not in held.files]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}; it holds {', '.join(held.files) or 'nothing'}")
        found = {name: held[name] for name in held.files}
        strange = [name for name, each in found.items() if not isinstance(each, np.ndarray)]
        if strange:  # numpy returns members that are no arrays as bytes
            raise ValueError(f"{', '.join(strange)} is no array: write it with numpy.savez")
        return found


def check_arrays(arrays: Mapping[str, Array], count: int, kinds: Mapping[str, str]) -> None:
    """Raise `ValueError` for an array that is not `[count]`, or not of its kind or type of number (numpy's names).

    `kinds` names arrays or groups of arrays: `margin` applies to `margin/clean`, too.
    """
    for name, values in arrays.items():
        kind = kinds.get(name.partition("/")[0])
        if kind is not None and (kind not in (values.dtype.kind, values.dtype.name) or values.shape != (count,)):
            raise ValueError(f"{name} is {values.dtype} {values.shape}, wanted is {kind} ({count},)")


def gunzip(content: bytes, most: int) -> bytes:
    """Unpack gzip data. Raises `ValueError` if it unpacks to more than `most` bytes or ends too early."""
    unpacker = zlib.decompressobj(wbits=31)
    found = unpacker.decompress(content, most + 1)
    if len(found) > most:
        raise ValueError(f"it unpacks to more than {most:,} bytes")
    if not unpacker.eof:
        raise ValueError("it ends too early")
    return found


def memory_of_machine() -> float:
    """Return the bytes of memory of this machine, infinite if the system does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return math.inf
