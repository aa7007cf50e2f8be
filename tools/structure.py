"""Prints the structure of the package: rooms, the imports between them, cycles, and the shape of the code.

    python tools/structure.py [SOURCE]

SOURCE is the folder of the package, src/sparring by default. A room is a package or module directly below it. To
measure another version, name its folder and put the folder above it into PYTHONPATH.
"""

import ast
import statistics
import sys
import tempfile
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parent.parent


def modules(source: Path) -> dict[str, Path]:
    """The modules of a package by their dotted names without the package's own; the package itself is ""."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that a module imports, inside functions too."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            for alias in node.names:
                inner = f"{target}.{alias.name}".strip(".")
                yield inner if inner in known else target


def path_of_a_recipe(folder: Path) -> list[str]:
    """The rooms in which a training enters functions for the first time, in order, without repeats in a row.

    From the call of `fit` with a short recipe to the end of the run, by the package that Python imports.
    """
    from dataclasses import replace

    import sparring
    from sparring.data import Digits
    from sparring.recipes import find

    source, seen, rooms = Path(sparring.__file__).parent, set(), []

    def enter(frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if event == "call" and code not in seen and code.co_filename.startswith(str(source)):
            seen.add(code)
            room = Path(code.co_filename).relative_to(source).parts[0].removesuffix(".py")
            if not rooms or rooms[-1] != room:
                rooms.append(room)

    recipe = replace(find("quickstart")(), epochs=1, data=Digits())
    sys.setprofile(enter)
    try:
        sparring.fit(recipe, folder / "run")
    finally:
        sys.setprofile(None)
    return rooms


def shape(paths: list[Path]) -> dict[str, float]:
    """Lengths of function bodies and files, and comments per 100 lines of code."""
    bodies, lines, comments = [], 0, 0
    for path in paths:
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                bodies.append((node.end_lineno or 0) - first.lineno + 1)
        lines += sum(1 for line in text.splitlines() if line.strip())
        comments += sum(1 for line in text.splitlines() if line.strip().startswith("#") or "  # " in line)
    return {
        "functions": len(bodies),
        "median body, lines": statistics.median(bodies),
        "90th percentile": sorted(bodies)[int(0.9 * len(bodies))],
        "longest body": max(bodies),
        "longest file": max(len(path.read_text().splitlines()) for path in paths),
        "lines": lines,
        "comments per 100 lines": round(100 * comments / lines, 2),
    }


def main(source: Path) -> None:
    """Prints the figures."""
    known = modules(source)
    room = {name: name.split(".")[0] for name in known}
    graph = {name: {t for t in imports(name, path, known) if t in known} for name, path in known.items()}
    arrows = {(room[a], room[b]) for a, targets in graph.items() for b in targets if a and b and room[a] != room[b]}
    rooms = sorted({room[name] for name in known if name})
    print(f"{len(rooms)} rooms: {' '.join(rooms)}")
    print(f"{len(arrows)} import arrows between rooms")
    try:
        order = TopologicalSorter({r: {b for a, b in arrows if a == r} for r in rooms}).static_order()
        print(f"no cycle; from below: {' '.join(order)}")
    except CycleError as error:
        print(f"a cycle: {' -> '.join(error.args[1])}")
    with tempfile.TemporaryDirectory() as folder:
        stays = path_of_a_recipe(Path(folder))
    print(f"a training enters {len(set(stays))} rooms in {len(stays)} stays: {len(stays) - len(set(stays))} returns")
    for name, value in shape([path for name, path in known.items() if name]).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "src" / "sparring")
