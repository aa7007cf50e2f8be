"""Recipes by name: every public function of this package that returns a `Recipe`. Listing them imports no torch."""

import ast
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import foreign
from ..core.errors import UserError, nearest
from ._parameters import PARAMETERS

if TYPE_CHECKING:
    from ..runs.recipe import Recipe

__all__ = ["PARAMETERS", "Entry", "entries", "find"]


@dataclass(frozen=True, slots=True)
class Entry:
    """Name and description of a recipe.

    Args:
        name: Name of the recipe.
        module: Name of the module of this package that holds it.
        summary: First line of its docstring, without the mark of a recipe that was not tested.
        text: The whole docstring.
        origin: Name of the package that registers the recipe.
        tested: False for a recipe that we could not train to its end.
    """

    name: str
    module: str
    summary: str
    text: str
    origin: str = "sparring"
    tested: bool = True


_UNTESTED = " (untested here: no data)"


def entries() -> dict[str, Entry]:
    """List all recipes without importing them: those of this package, and those that other packages register.

    Returns:
        Each recipe by name, with its docstring read from the source text, or with the package that registers it.
    """
    found = dict(_own())
    for name, point in foreign.plugins("recipes").items():
        package = point.dist.name if point.dist is not None else point.module
        text = f"{point.value}, of the package {package}."
        found.setdefault(name, Entry(name, point.module, text, text, package))
    return found


@cache
def _own() -> dict[str, Entry]:
    """The recipes of this package."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or node.returns is None:
                continue
            if ast.unparse(node.returns) == "Recipe":
                text = inspect.cleandoc(ast.get_docstring(node) or "")
                first = text.split("\n")[0]
                tested = _UNTESTED not in first
                found[node.name] = Entry(node.name, path.stem, first.replace(_UNTESTED, ""), text, tested=tested)
    return found


def find(name: str) -> Callable[..., "Recipe"]:
    """Return the function that builds a recipe.

    Args:
        name: Name of the recipe; or `file.py:function` or `module:function`, which imports and trusts that module.

    Returns:
        The function, whose arguments are the options of the recipe.

    Raises:
        UserError: If there is no such recipe; the message gives the nearest names.
    """
    if ":" in name:
        return foreign.member(name, "a recipe, such as myrecipes.py:mine")
    if name in _own():
        return getattr(importlib.import_module(f"{__name__}.{_own()[name].module}"), name)
    registered = foreign.plugins("recipes")
    if name not in registered:
        raise UserError(f"no recipe {name!r}: {nearest(name, entries())}")
    return foreign.plugin(registered[name])
