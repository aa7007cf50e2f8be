"""A lock on a folder that keeps a second process out. Needs no torch."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import UserError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second process out of a folder, which is made if need be.

    The lock ends with the process, however that ends. Raises `UserError` where another has it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _opened(folder / ".lock")
    except OSError as error:
        raise UserError(f"{folder} cannot be a run folder: {error.strerror or error}") from error
    try:
        if not _lock(handle):
            raise UserError(f"{folder} is in use: another process works there. Wait for its end, or stop it")
        yield
    finally:
        os.close(handle)


def _opened(path: Path) -> int:
    """Neither empties the file nor follows a link: the folder may come from somebody else."""
    safe = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if path.is_symlink():
        raise UserError(f"{path} is a link, and a lock is a file of its own: remove it")
    handle = os.open(path, os.O_RDWR | os.O_CREAT | safe, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path} is no regular file, and a lock is one: remove it")
    return handle


def _lock(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
