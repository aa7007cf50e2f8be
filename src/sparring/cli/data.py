"""The command `sparring data`."""

import sys
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UserError
from .common import argument, read, say

_SHRINK = """\
usage: sparring data shrink FOLDER --to PIXELS [--out DIR] [--workers N]

Writes the pictures below FOLDER to another folder, with a shorter side of at most PIXELS, so that training need not
decode large ones again in every epoch. Folders are kept; files are JPEG of quality 95. What is there already is not
written again: the same command continues one that was interrupted. Exit status: 0 if all files are pictures, 1 if some
cannot be read, which are named, 2 for a mistake in the command.

  sparring data shrink imagenet --to 320"""

_NAMED = 20  # unreadable files that are named


@dataclass(frozen=True, kw_only=True)
class _Options:
    to: int
    """Largest shorter side of the written pictures, in pixels; for training at 224 pixels, 256 to 320."""
    out: str | None = None
    """Folder to write to; by default FOLDER-PIXELS, next to FOLDER."""
    workers: int | None = None
    """Number of pictures that are worked on at the same time; by default one per core."""


def data(args: list[str]) -> int:
    kind, rest = argument(args, "shrink FOLDER", _SHRINK)
    if kind != "shrink":
        raise UserError(f"no command data {kind!r}: write sparring data shrink FOLDER --to PIXELS")
    name, rest = argument(rest, "FOLDER", _SHRINK)
    options = read(_Options, rest, f"sparring data shrink {name}", _SHRINK)
    from ..data import shrink_pictures

    folder = Path(name)
    out = Path(options.out or f"{folder}-{options.to}")
    done = shrink_pictures(folder, out, options.to, options.workers, _show)
    for reason in done.unreadable[:_NAMED]:
        say(f"sparring: {reason}", sys.stderr)
    more = len(done.unreadable) - _NAMED
    if more > 0:
        say(f"sparring: {more:,} more files are no pictures that can be read", sys.stderr)
    say(f"{out}: {done.written:,} written, {done.kept:,} there before, {len(done.unreadable):,} that cannot be read")
    return 1 if done.unreadable else 0


def _show(done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done:,} of {total:,} pictures" + ("\n" if done == total else ""))
        sys.stderr.flush()
