"""`sparring analyze`, with one module per kind of analysis."""

import importlib

from ...core.errors import UserError, nearest
from ...records.locking import locked
from ..common import argument
from ..report import rewrite
from .common import KINDS, USAGE, folder_of, options_for


def analyze(args: list[str]) -> int:
    target, rest = argument(args, "TARGET", USAGE)
    kind, rest = argument(rest, "KIND", USAGE)
    if kind not in KINDS:
        raise UserError(f"no analysis {kind!r}: {nearest(kind, KINDS)}")
    module = importlib.import_module(f".{kind}", __name__)
    options = options_for(module.Options, target, kind, rest)
    folder = folder_of(target, options)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        done: int = module.run(target, options)
        rewrite(folder)
    return done
