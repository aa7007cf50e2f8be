"""Studies by name: every module here with a function `study` that returns a `Study`. Listing them imports no torch."""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import foreign
from ..core.errors import UserError, nearest

if TYPE_CHECKING:
    from .study import Study

SCALES = ("smoke", "cpu", "gpu")


def entries() -> dict[str, str]:
    """List all studies without importing them.

    Returns:
        The name of each study with the first line of its docstring, read from the source text.
    """
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "study" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def find(name: str) -> "Callable[[str], Study]":
    """Return the function that builds a study.

    Args:
        name: Name of the study; or `file.py:function` or `module:function`, which imports and trusts that module.

    Returns:
        A function from a scale (see `SCALES`) to the study.

    Raises:
        UserError: If there is no such study; the message gives the nearest names.
    """
    if ":" in name:
        return foreign.member(name, "a study, such as mystudies.py:study")
    known = entries()
    if name not in known:
        raise UserError(f"no study {name!r}: {nearest(name, known)}")
    function: Callable[[str], Study] = importlib.import_module(f"{__name__}.{name}").study
    return function
