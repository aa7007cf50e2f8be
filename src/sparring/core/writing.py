"""Writes files atomically: after a crash they hold the old content or the new, never a part. Needs no torch."""

import contextlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any


def finite(value: Any) -> Any:
    """Return a value with None in place of numbers that are not finite, which JSON does not hold."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Mapping[str, Any], shared: bool = False) -> None:
    """Replace a file by JSON; `shared` as in `replacing`."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode(), shared)


def write_bytes(path: Path, content: bytes, shared: bool = False) -> None:
    """Replace a file by `content`; `shared` as in `replacing`."""
    with replacing(path, shared) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` once it is complete and on the disk.

    With `shared`, other processes or machines may replace the same path at the same time: the file is then the one that
    was completed last. What a killed process leaves of it stays in the folder.
    """
    mark = f".{uuid.uuid4().hex}" if shared else ""
    temporary = path.with_name(f".{path.name}{mark}.writing")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process, or a link made by somebody else
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # the error of a full disk does not name the file
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Write a folder to the disk, because a rename is only permanent once its folder is written."""
    with contextlib.suppress(OSError):  # some systems cannot open folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
