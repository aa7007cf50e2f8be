"""The command `sparring compare`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UserError
from .common import argument, print_json, say

if TYPE_CHECKING:
    from ..records.results import EvaluationResult

_COMPARE = """\
usage: sparring compare A B [--attack NAME] [--json]

Compares two evaluations of the same images, paired: the number of images that only one of the models gets right, the
difference in accuracy with its 95 % interval, and McNemar's exact test. A and B are run folders that were evaluated
(their best weights), or the .npz files of per-example results that an evaluation writes."""


def compare(args: list[str]) -> int:
    first, rest = argument(args, "A", _COMPARE)
    second, rest = argument(rest, "B", _COMPARE)
    from .flags import parse

    options, _, _ = parse(_CompareOptions, None, {}, rest, f"sparring compare {first} {second}", _COMPARE)
    a, b = _read(first), _read(second)
    common = [name for name in a.robust if name in b.robust]
    names = [options.attack] if options.attack else [name for name in common if "/" not in name]
    pairs = {name: a.paired(b, name) for name in names}
    if options.json:
        print_json({name: pair.plain() for name, pair in pairs.items()})
        return 0
    for name, pair in pairs.items():
        if a.about.get(name) != b.about.get(name):
            say(f"note: {name} differs in the two: {a.about.get(name)} and {b.about.get(name)}", sys.stderr)
        left, right = a.table()[name], b.table()[name]
        say(f"{name}: {left} against {right}; difference {pair}")
        say(f"  only {first} is right on {pair.only_first} images, only {second} on {pair.only_second}")
    return 0


@dataclass(frozen=True, kw_only=True)
class _CompareOptions:
    attack: str | None = None
    """Compare under this attack only; by default under all attacks that both evaluations have."""
    json: bool = False
    """Print one JSON object on standard output instead of sentences."""


def _read(target: str) -> "EvaluationResult":
    from ..records.run_folder import RunFolder, read_evaluated

    path = Path(target)
    if path.is_dir():
        found = [RunFolder(path).flags(which) for which in ("best", "weights", "model", "last")]
        known = next((each for each in found if each.exists()), None)
        if known is None:
            raise UserError(f"{path} holds no evaluation: run sparring evaluate {path} first")
        path = known
    return read_evaluated(path)
