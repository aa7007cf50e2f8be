"""Changes one operator, constant or condition of the core at a time, and counts how many changes the tests catch.

    python tools/mutants.py --count 25 --seed 1 [--rooms attacks objectives] [--out report.json]

A sample of all changes is drawn by `--seed`. Each is written into a copy of the package. The tests of its file run
against the copy until the first failure, and if they pass, those of its room, the fast tests of all rooms and those of
whole runs. A change that no test catches is printed with its line: either a test is missing, or the change means
nothing, which somebody has to judge.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
ROOMS = ("core", "attacks", "objectives", "training", "evaluation", "records")
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


class Mutant(NamedTuple):
    """A change: the file, the line, the text before and after, and the whole new source."""

    path: Path
    line: int
    before: str
    after: str
    source: str


def count_of(path: Path) -> int:
    """The number of single changes that a file can have."""
    return sum(1 for _ in _places(ast.parse(path.read_text())))


def mutant(path: Path, number: int) -> Mutant:
    """A single change of a file, by its number."""
    tree = ast.parse(path.read_text())
    node, change = list(_places(tree))[number]
    before = _shown(node)
    change()
    return Mutant(path, getattr(node, "lineno", 0), before, _shown(node), ast.unparse(tree))


def _shown(node: ast.AST) -> str:
    return ast.unparse(node.test if isinstance(node, ast.If) else node)


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, "object"]]:
    """The nodes that can be changed, and for each a call that changes it."""
    skipped = {id(part) for node in ast.walk(tree) for part in _strings_and_hints(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in OPERATORS:
            yield node, lambda node=node: setattr(node, "op", OPERATORS[type(node.op)]())
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
            yield node, lambda node=node: node.ops.__setitem__(0, OPERATORS[type(node.ops[0])]())
        elif isinstance(node, ast.If | ast.IfExp) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield node, lambda node=node: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))
        elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
            yield node, lambda node=node: setattr(node, "value", _other(node.value))


def _other(value: float) -> float:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value * 2 + 0.5


def _strings_and_hints(node: ast.AST) -> Iterator[ast.AST]:
    """What a change of means nothing at run time: annotations, parts of f-strings, options of `@dataclass`."""
    hints = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    parts = [*hints, *(node.values if isinstance(node, ast.JoinedStr) else getattr(node, "decorator_list", ()))]
    for part in parts:
        if part is not None:
            yield from ast.walk(part)


def tests_of(path: Path) -> list[list[str]]:
    """The tests for a change of a file, in order: of its name, of its room, all fast ones, and those of whole runs."""
    room = ROOT / "tests" / path.relative_to(ROOT / "src" / "sparring").parts[0]
    own = room / f"test_{path.stem}.py"
    return [*([[str(own)]] if own.exists() else []), [str(room)], ["-m", "not slow"], ["tests/runs"]]


def caught(change: Mutant, seconds: float) -> str:
    """How a change ends: "caught" by the tests of its file or later ones, "caught by time", or "survived"."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "sparring"
        shutil.copytree(ROOT / "src" / "sparring", package, ignore=shutil.ignore_patterns("__pycache__"))
        (package / change.path.relative_to(ROOT / "src" / "sparring")).write_text(change.source)
        for tests in tests_of(change.path):
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
            try:
                done = subprocess.run(
                    command,
                    cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
                    capture_output=True,
                    timeout=seconds,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return "caught by time"
            if done.returncode:
                return "caught"
    return "survived"


def main() -> None:
    """Draws, runs and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rooms", nargs="+", default=ROOMS, choices=ROOMS)
    parser.add_argument("--seconds", type=float, default=600.0, help="limit for the tests of one change")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    files = [path for room in args.rooms for path in sorted((ROOT / "src" / "sparring" / room).rglob("*.py"))]
    every = [(path, number) for path in files for number in range(count_of(path))]
    drawn = [mutant(*place) for place in random.Random(args.seed).sample(every, min(args.count, len(every)))]
    found = []
    for change in drawn:
        began, end = time.monotonic(), caught(change, args.seconds)
        where = f"{change.path.relative_to(ROOT)}:{change.line}"
        found.append({"where": where, "before": change.before, "after": change.after, "end": end})
        seconds = time.monotonic() - began
        print(f"{end:14} {where}  {change.before[:60]!r} -> {change.after[:60]!r}  {seconds:.0f} s", flush=True)
    count = sum(each["end"] != "survived" for each in found)
    print(f"{count} of {len(found)} caught; drawn from {len(every)} changes in {len(files)} files, seed {args.seed}")
    if args.out:
        args.out.write_text(json.dumps({"seed": args.seed, "of": len(every), "changes": found}, indent=1))


if __name__ == "__main__":
    main()
