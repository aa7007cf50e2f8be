"""A lock that lets only one process work in a folder. Needs no torch."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import UserError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against a second process; the folder is made if it is missing.

    The lock ends with the process, however the process ends. Raises `UserError` if another process has the lock, or if
    the folder or the lock cannot be made.
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
    """Open the lock file without emptying it or following a link: the folder may come from somebody else."""
    safe = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if path.is_symlink():
        raise UserError(f"{path} is a link, and a lock is a file of its own: remove it")
    handle = os.open(path, os.O_RDWR | os.O_CREAT | safe, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path} is no regular file, as a lock has to be: remove it")
    return handle


def _lock(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems that keep no locks, as some network file systems: there, nobody can have the lock."""
