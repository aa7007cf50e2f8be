"""`sparring analyze`, with one module per kind of analysis."""

import importlib
from pathlib import Path

from ...core.errors import UserError, nearest
from ...records.locking import locked
from ..common import argument
from .common import KINDS, USAGE, options_for


def analyze(args: list[str]) -> int:
    target, rest = argument(args, "RUN", USAGE)
    kind, rest = argument(rest, "KIND", USAGE)
    if kind not in KINDS:
        raise UserError(f"no analysis {kind!r}: {nearest(kind, KINDS)}")
    module = importlib.import_module(f".{kind}", __name__)
    options = options_for(module.Options, target, kind, rest)
    if not Path(target).is_dir():
        raise UserError(f"{target} is no run folder")
    with locked(Path(target)):
        done: int = module.run(target, options)
    return done
