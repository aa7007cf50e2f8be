"""Lays out the documentation site for mkdocs, and checks what mkdocs made of it.

    python tools/documentation.py          # writes .site: the pages in their places, and the API reference
    python tools/documentation.py check    # exits with 1 if a public name has no anchor, or a page needs a network

The pages keep the places that they have in the repository, so that a link leads to the same page here and there.
"""

import ast
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from docstrings import NAMES, PACKAGES

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
LAID_OUT, BUILT = ROOT / ".site", ROOT / "site"
KEPT = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**/*.*", "examples/*.py", "notebooks/*.ipynb"),
    *("results/*/table.md", "results/*/*.png", "results/*/*.svg", "benchmarks/results/*.png", "tools/theme/*"),
)
TYPE = re.compile(r"[A-Z][A-Za-z]*[a-z][A-Za-z]*")
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def tree(module: str, suffix: str = ".py") -> ast.Module:
    """The parsed source of a module of the package."""
    path = SOURCE / module.replace(".", "/")
    file = path / f"__init__{suffix}" if path.is_dir() else path.with_suffix(suffix)
    return ast.parse(file.read_text(encoding="utf-8"))


def exported(module: str) -> list[str]:
    """The names in `__all__` of a module, or else the classes, functions and types that it defines."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    names = [named(node) for node in tree(module).body]
    return [name for name in names if name and not name.startswith("_")]


def named(node: ast.stmt) -> str | None:
    """The name of a class, a function or a type alias."""
    if isinstance(node, DEFINITIONS):
        return node.name
    if isinstance(node, ast.Assign | ast.AnnAssign) and not isinstance(node.value, ast.Call):  # a call makes a TypeVar
        name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        return name if TYPE.fullmatch(name) else None
    return None


def imported(module: str, suffix: str = ".py") -> dict[str, str]:
    """Where the names come from that a module imports from the package, as `sparring.room.module.name`."""
    package = module if (SOURCE / module.replace(".", "/")).is_dir() else module.rpartition(".")[0]
    found = {}
    for node in tree(module, suffix).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            origin = ".".join([*base, *filter(None, [node.module])])
            found |= {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names}
    return found


def defined(name: str) -> str:
    """The name of the same thing in the module that defines it."""
    module, _, last = name.rpartition(".")
    origin = imported(module).get(last)
    return defined(origin) if origin else name


def surface() -> dict[str, str]:
    """The public name of each public thing, by the name in the module that defines it; top-level names are apart."""
    rooms = [f"sparring.{package}" for package in PACKAGES]
    names = [f"{room}.{name}" for room in rooms for name in exported(room)] + [f"sparring.{name}" for name in NAMES]
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(defined(name), name)
    for name in top_level().values():
        found.setdefault(name, name)
    return found


def top_level() -> dict[str, str]:
    """What `from sparring import ..` gives, without the rooms: where each name is defined."""
    stub = imported("sparring", ".pyi")
    return {name: defined(origin) for name, origin in stub.items() if origin != f"sparring.{name}" or not is_room(name)}


def is_room(name: str) -> bool:
    """Whether a name of the package is a module of it."""
    return (SOURCE / "sparring" / name).is_dir() or (SOURCE / "sparring" / f"{name}.py").is_file()


def summary(name: str) -> str:
    """The first line of the docstring of a class or function, by the name in the module that defines it."""
    module, _, last = name.rpartition(".")
    things = {node.name: node for node in tree(module).body if isinstance(node, DEFINITIONS)}
    text = ast.get_docstring(things[last]) if last in things else ""
    return (text or "").partition("\n")[0].replace("|", "\\|")


def reference() -> Iterator[tuple[str, str]]:
    """The pages of the API reference by name: one a room, and one of the names in `sparring` itself."""
    things, names = surface(), top_level()
    rooms: dict[str, list[str]] = defaultdict(list)
    for name in sorted(things.values()):
        rooms[name.split(".")[1]].append(name)
    for room, members in rooms.items():
        yield (
            f"{room}.md",
            "\n\n".join([f"# sparring.{room}", about(room), *(f"::: {name}" for name in members)]) + "\n",
        )
    short = [
        f"| [`{name}`][{things[names[name]]}]{{#sparring.{name}}} | {summary(names[name])} |"
        for name in sorted(names, key=str.lower)
    ]
    listed = [f"| [`sparring.{room}`]({room}.md) | {about(room).partition(chr(10))[0]} |" for room in rooms]
    parts = ["# sparring", "`from sparring import NAME`:", table("name", short), "The rooms:", table("room", listed)]
    yield "index.md", "\n\n".join(parts) + "\n"


def about(room: str) -> str:
    """The docstring of a room."""
    return ast.get_docstring(tree(f"sparring.{room}")) or ""


def table(what: str, rows: list[str]) -> str:
    """A table of names and what they are."""
    return "\n".join([f"| {what} | |", "|---|---|", *rows])


def lay_out(target: Path = LAID_OUT) -> None:
    """Write the source of the site into a folder, which is emptied first."""
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted(path for pattern in KEPT for path in ROOT.glob(pattern)):
        place = target / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)
    (target / "reference").mkdir()
    for name, text in reference():
        (target / "reference" / name).write_text(text, encoding="utf-8")


def faults(site: Path = BUILT) -> Iterator[str]:
    """What the built site lacks: anchors of public names, its search index, independence of the network."""
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    anchors = {anchor for text in pages.values() for anchor in re.findall(r'\bid="([^"]+)"', text)}
    for name in sorted({*surface().values(), *(f"sparring.{name}" for name in top_level())} - anchors):
        yield f"{name} has no anchor"
    for page, text in pages.items():
        for address in re.findall(r'<(?:script|link|img)\b[^>]*\b(?:src|href)="(https?://[^"]+)"', text):
            yield f"{page.relative_to(site)} loads {address}, which is not there without a network"
    if "sparring.attacks.PGD" not in (site / "search" / "search_index.js").read_text(encoding="utf-8"):
        yield "the search index does not know sparring.attacks.PGD"


def main(args: list[str]) -> int:
    """Lays out the site, or checks it."""
    if args != ["check"]:
        lay_out()
        return 0
    found = list(faults())
    print(*found, f"{len(surface())} public names, {len(found)} faults", sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
