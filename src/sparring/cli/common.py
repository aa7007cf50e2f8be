"""Helpers shared by all commands."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from ..core.errors import UserError, need_seed
from ..core.writing import finite

if TYPE_CHECKING:
    from ..core.types import Threat
    from ..runs.recipe import Recipe

Options = TypeVar("Options")


def argument(args: list[str], what: str, usage: str) -> tuple[str, list[str]]:
    """Return the positional argument, which must come first, and the remaining arguments."""
    if args and args[0] in ("-h", "--help"):
        say(usage)
        raise SystemExit(0)
    if not args or args[0].startswith("-"):
        raise UserError(f"{what} is missing: give it as the first argument\n{usage}")
    return args[0], args[1:]


def read(options: type[Options], args: list[str], prog: str, description: str) -> Options:
    """Parse `args` as flags for the fields of `options`, or print help or an error and exit, as tyro does.

    Their help is in docstrings. tyro would look for comments, too, and parse the source anew for each class.
    """
    import tyro

    return tyro.cli(options, args=args, prog=prog, description=description, config=(tyro.conf.HelptextFromCommentsOff,))


TRUSTED: list[str] = []
"""The modules that `--trust` has named."""


def going_on(command: str, args: list[str]) -> str:
    """Return the command that goes on with one that was interrupted."""
    trusted = [word for module in TRUSTED for word in ("--trust", module)]
    return shlex.join([ourselves(), command, *(arg for arg in args if arg != "--overwrite"), *trusted])


def note_unfinished(target: str) -> None:
    """Say of a run whose training is not finished that its weights are not the last."""
    from ..records.run_folder import RunFolder

    run = RunFolder(target)
    if Path(target).is_dir() and run.recipe() is not None and not run.finished():
        say(f"note: the training of {target} is not finished: these are its weights so far", sys.stderr)


def ourselves() -> str:
    """Return the name by which this program was called, so that a printed command can be run as it is."""
    called = Path(sys.argv[0])
    found = shutil.which("sparring")
    elsewhere = called.name == "sparring" and not (found and called.resolve() == Path(found).resolve())
    return str(called) if elsewhere else "sparring"


def value_of(flag: str, args: list[str]) -> str | None:
    """Return the last value of a flag, given as `--flag value` or `--flag=value`; used before the flags are parsed."""
    found = None
    for arg, after in pairwise([*args, ""]):
        if arg == flag and after:
            found = after
        elif arg.startswith(f"{flag}="):
            found = arg.removeprefix(f"{flag}=")
    return found


def threat_for(recipe: "Recipe", given: str | None) -> "Threat":
    """Return the threat of a flag, or else of the recipe's evaluation. Raises `UserError` if there is none."""
    from ..attacks.threats import threat
    from ..evaluation import threat_of

    found = threat(given) if given else threat_of(dict(recipe.evaluation.adversaries))
    if found is None:
        raise UserError("the recipe names no threat: name one, as --threat linf:8/255")
    return found


def check_options(options: object) -> None:
    """Raise `UserError` for a number of images below 1 or an invalid seed; options that are left out are valid."""
    for name in ("examples", "images", "pictures"):
        count = getattr(options, name, None)
        if count is not None and count < 1:
            raise UserError(f"at least one image is needed, not {count} as --{name}")
    need_seed(getattr(options, "seed", 0))


def only(args: list[str], usage: str, *known: str) -> None:
    """Print the help if it is asked for; raise `UserError` for an unknown flag."""
    if "-h" in args or "--help" in args:
        say(usage)
        raise SystemExit(0)
    for arg in args:
        if arg not in known:
            raise UserError(f"unknown argument {arg!r}\n{usage}")


def plainly(value: object) -> str:
    """Return the text of a value, with classes and functions by their names alone."""
    return re.sub(r"<(?:class '(?:\w+\.)*(\w+)'|function (?:\w+\.)*(\w+) at 0x\w+)>", r"\1\2", repr(value))


def print_json(value: Mapping[str, Any]) -> None:
    say(json.dumps(finite(value), indent=2, allow_nan=False))


def say(text: str, file: TextIO | None = None) -> None:
    print(text, file=file or sys.stdout)
