"""An evaluation or a certification in shards: by several processes, or by several commands that share a folder."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..core.errors import UserError
from .common import say, value_of

R = TypeVar("R")
T = TypeVar("T")

if TYPE_CHECKING:
    from .evaluate import Options


def divided(
    args: list[str],
    device: str,
    evaluated: "Callable[..., tuple[Options, dict[str, R], T, str | None]]",
    merged: "Callable[[Iterable[R]], R]",
) -> "tuple[Options, dict[str, R], T, str | None] | None":
    """Return what `evaluated` gives, called with more flags: several processes divide the images between them.

    All processes but the first get None.
    """
    from ..core import ranks

    if ranks.world() == 1:
        return evaluated()
    if "--merge" in args or value_of("--shard", args) is not None:
        raise UserError("several processes divide the images between them: leave out --shard and --merge")
    where = ("--device", device)
    options, found, attacks, out = evaluated(*where, "--shard", f"{ranks.rank() + 1}/{ranks.world()}")
    if out is not None:
        ranks.wait()
        return evaluated(*where, "--merge") if ranks.first() else None
    parts = ranks.each_of(found)
    if not ranks.first():
        return None
    return options, {each: merged(part[each] for part in parts) for each in found}, attacks, out


def say_shards(path: Path, which: list[str], shard: str) -> None:
    """Say how many shards are done, and what follows."""
    from ..records.run_folder import RunFolder

    of = int(shard.partition("/")[2])
    done = min(len(RunFolder(path).shards(each, of)) for each in which)
    then = "give --merge instead of --shard" if done == of else "evaluate the others, then give --merge"
    say(f"{done} of {of} shards are done: {then}")


def shard_of_flags(options: "Options", out: str | None) -> tuple[int, int] | None:
    """Return the number of the shard and the number of all, from `2/8`; None for all images."""
    if options.merge and options.shard is not None:
        raise UserError("--merge makes one result of all shards: give it without --shard")
    from ..core import ranks

    if (options.merge or options.shard is not None) and out is None and ranks.world() == 1:
        raise UserError("the results of shards are put together in a folder: name one with --out")
    if options.shard is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", options.shard)
    if found is None:
        raise UserError(f"--shard {options.shard}: write the number of the shard and the number of all, as 2/8")
    return int(found[1]), int(found[2])
