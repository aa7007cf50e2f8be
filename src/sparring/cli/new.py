"""The command `sparring new`: writes a file to begin with."""

import keyword
from pathlib import Path

from ..core.errors import UserError
from .common import argument, only, say

_NEW = """\
usage: sparring new method NAME

Writes NAME.py in the present folder: a complete training method of your own, with its attack, a recipe, a study that
compares it, and checks. NAME is the name of its class, such as MyMethod."""


def new(args: list[str]) -> int:
    kind, rest = argument(args, "method NAME", _NEW)
    if kind != "method":
        raise UserError(f"nothing new called {kind!r}: write sparring new method NAME")
    name, rest = argument(rest, "NAME", _NEW)
    only(rest, _NEW)
    path = Path(f"{name.lower()}.py")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"{name!r} is no name of a class in Python: write it as MyMethod")
    if path.exists():
        raise UserError(f"{path} is already there: choose another name, or remove it")
    path.write_text(written(name, path.stem), encoding="utf-8")
    say(f"{path}: next, python {path}")
    return 0


def written(name: str, module: str) -> str:
    """Return the file of a method of this name, for a module of this name."""
    text = (Path(__file__).parent / "templates" / "method.py").read_text(encoding="utf-8")
    named = text.replace("MyMethod", name).replace("mymethod", module.lower())
    return named.replace("FILE", f"{module}.py").replace("MODULE", module)
