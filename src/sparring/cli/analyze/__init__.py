"""`sparring analyze`: one module a kind."""

import importlib

from ...errors import UserError, nearest
from ..common import argument
from .common import KINDS, USAGE, options_for


def analyze(args: list[str]) -> int:
    target, rest = argument(args, "RUN", USAGE)
    kind, rest = argument(rest, "KIND", USAGE)
    if kind not in KINDS:
        raise UserError(f"no analysis {kind!r}: {nearest(kind, KINDS)}")
    module = importlib.import_module(f".{kind}", __name__)
    done: int = module.run(target, options_for(module.Options, target, kind, rest))
    return done
