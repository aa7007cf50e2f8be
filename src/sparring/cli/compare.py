"""The command `sparring compare`."""

import shlex
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
difference in accuracy with its 95 % interval, and McNemar's exact test. A note says where attacks of one name differ
("alike" in JSON). A and B are run folders that were evaluated (their best weights, or else the last), or the .npz files
of per-example results that an evaluation writes."""


def compare(args: list[str]) -> int:
    first, rest = argument(args, "A", _COMPARE)
    second, rest = argument(rest, "B", _COMPARE)
    if rest and not rest[0].startswith("-"):
        raise UserError(
            f"two are compared, {first} and {second}: sparring report shows more side by side, {rest[0]} too"
        )
    from .flags import parse

    options, _, _ = parse(_CompareOptions, None, {}, rest, f"sparring compare {first} {second}", _COMPARE)
    (a, weights), (b, others) = _read(first), _read(second)
    if {weights, others} == {"best", "last"}:
        say(f"note: of {first} the {weights} weights were evaluated, and of {second} the {others} ones", sys.stderr)
    common = [name for name in a.robust if name in b.robust]
    names = [options.attack] if options.attack else [name for name in common if "/" not in name]
    pairs = {name: a.paired(b, name) for name in names}
    if options.json:
        print_json({name: {**pair.plain(), "alike": not a.differs(b, name)} for name, pair in pairs.items()})
        return 0
    for name, pair in pairs.items():
        if a.differs(b, name):
            said = [f"{each.about.get(name)} by {each.settings.get(f'adversary {name}', name)}" for each in (a, b)]
            say(f"note: {name} differs in the two: {said[0]}, and {said[1]}", sys.stderr)
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


def _read(target: str) -> "tuple[EvaluationResult, str]":
    """Read an evaluation, and which weights of the folder it is of."""
    from ..records.run_folder import RunFolder, read_evaluated

    path = Path(target)
    if not path.is_dir():
        return read_evaluated(path), ""
    for which in ("best", "weights", "model", "last"):
        if RunFolder(path).flags(which).exists():
            return RunFolder(path).read_flags(which), which
    raise UserError(f"{path} holds no evaluation: run {shlex.join(['sparring', 'evaluate', target])} first")
