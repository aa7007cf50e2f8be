"""Other people's code in files: names of functions and classes, the modules that may be imported, changed sources.

A recipe may hold a model, a method or a data set that is not of this package. A file then names it, as
`package.module:name`, with a hash of the source of the module. Since a file may come from anybody, a name in a file is
imported only if the user trusts its module: by `trust`, by `--trust`, by the variable SPARRING_TRUST, or because the
user handed the object itself to this process before. Needs no torch.
"""

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import sys
import types
import warnings
from collections.abc import Container
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from .errors import UserError, nearest

_NAME = re.compile(r"\w+(?:\.\w+)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_TRUSTED: set[str] = set()
_GIVEN: set[str] = set()
"""Names of objects that the user handed to this process."""


def trust(*modules: str) -> None:
    """Allows files to name functions and classes of these modules, which are then imported.

    Importing a module runs its code: trust what you would import yourself.

    Args:
        *modules: Names of modules or packages; a package includes its modules.
    """
    _TRUSTED.update(modules)


Known = tuple[frozenset[str], frozenset[str]]


def known() -> Known:
    """Return what this process may import, for `know` in another process."""
    return frozenset(_TRUSTED), frozenset(_GIVEN)


def know(known: Known) -> None:
    """Allow what another process of the same user may import."""
    trusted, given = known
    _TRUSTED.update(trusted)
    _GIVEN.update(given)


def is_trusted(module: str) -> bool:
    """Return True if the user allows files to name members of this module."""
    named = {part.strip() for part in os.environ.get("SPARRING_TRUST", "").split(",")} - {""}
    return any(module == each or module.startswith(f"{each}.") for each in _TRUSTED | named)


def is_foreign(thing: Any) -> bool:
    """Return True for a function or class of another package than this."""
    return _module_of(thing).partition(".")[0] != __name__.partition(".")[0]


def name_of(thing: Any) -> str:
    """Return the name under which a file can hold a function or class: `package.module:name`.

    Raises `UserError` for what cannot be imported by a name: a lambda, a local function, or code typed into a console.
    """
    module, name = _module_of(thing), thing.__qualname__
    if "<" in name:
        raise UserError(
            f"{name} cannot be named in a file, because it is defined inside a function: define it at the top level of "
            "a module"
        )
    if not module:
        raise UserError(f"{name} cannot be named in a file, because it was typed into a console: define it in a module")
    found = f"{module}:{name}"
    _GIVEN.add(found)
    return found


def modules_in(plain: Any) -> list[str]:
    """Return the modules of other packages that plain data name."""
    if isinstance(plain, dict):
        names = [plain[key] for key in ("$", "$call", "$name") if isinstance(plain.get(key), str)]
        found = [name.partition(":")[0] for name in names if ":" in name]
        return list(dict.fromkeys([*found, *(each for value in plain.values() for each in modules_in(value))]))
    return list(dict.fromkeys(each for value in plain for each in modules_in(value))) if isinstance(plain, list) else []


def source_of(thing: Any) -> str:
    """Return a hash of the source file of a function or class, or "" if it has none."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(thing))  # not that of a decorator
    except TypeError:
        path = None
    return "" if path is None or not Path(path).is_file() else _hash(path)


@functools.cache
def _hash(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def find(name: str, source: object, where: str) -> Any:
    """Return the function or class that a file names, if the user trusts its module.

    Args:
        name: The name, `package.module:name`.
        source: Hash of its source when the file was written; a warning says if it has changed.
        where: Name of the data, for messages.

    Raises:
        UserError: If the module is not trusted or cannot be imported, or does not define the name itself.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{where} names {name!r}, which is no name of a function or class, as package.module:name")
    module, _, member = name.partition(":")
    if name not in _GIVEN and not is_trusted(module):
        package = module.partition(".")[0]
        raise UserError(
            f"{where} names {name}, which is code of another package: to import it, say that you trust it, with "
            f"--trust {package}, sparring.trust({package!r}) or SPARRING_TRUST={package}"
        )
    found: Any = imported(module, f"{where} names {name}")
    for part in member.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type | types.FunctionType) or _module_of(found) != module or found.__qualname__ != member:
        raise UserError(f"{where} names {name}, but {module} defines no such function or class: has it been renamed?")
    if source and source_of(found) != source:
        warnings.warn(f"the source of {name} has changed since {where} was written", stacklevel=2)
    return found


def imported(module: str, what: str) -> types.ModuleType:
    """Import a module, also from the present folder. Raises `UserError`, which begins with `what`, if that fails."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # last, so that a file in this folder cannot take the place of an installed module
    if getattr(sys.modules.get("__main__"), "__file__", None) and module == _module_of_main():
        return sys.modules["__main__"]
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{what}, but importing {module} fails ({type(error).__name__}: {reason})") from error


def member(spec: str, what: str) -> Any:
    """Return the function or class that the user names on the command line, and trust its module.

    Args:
        spec: `file.py:name` or `package.module:name`.
        what: What is wanted, with an example, for messages.

    Raises:
        UserError: If there is no such file, module or name.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise UserError(f"{spec!r} is not the name of {what}")
    if place.endswith(".py"):
        module = load_file(Path(place))
    else:
        module = imported(place, f"{spec} is asked for")
        trust(place)
    found = getattr(module, name, None)
    if not isinstance(found, type | types.FunctionType):
        own = {each: value for each, value in vars(module).items() if callable(value)}
        known = [each for each, value in own.items() if _module_of(value) == module.__name__]
        raise UserError(f"{place} has no function {name!r}: {nearest(name, known)}")
    return found


def split(spec: str, ours: Container[str] = ()) -> tuple[str, str] | None:
    """Return a name for `member` and the options after it, as in `mine.py:Attack:steps=5`; None for any other text.

    What begins with one of `ours` is no name of the user's, as `pgd:steps` is none.
    """
    found = _OWN.fullmatch(spec)
    return None if found is None or spec.partition(":")[0] in ours else (found[1], found[2] or "")


_OWN = re.compile(r"(.+:[A-Za-z_]\w*)(?::(\w+=.*))?")


def plugins(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    """Return what installed packages register, by name: their entry points in the group `sparring.GROUP`."""
    return {each.name: each for each in importlib.metadata.entry_points(group=f"sparring.{group}")}


def plugin(entry: importlib.metadata.EntryPoint) -> Any:
    """Return the function or class of an entry point, and trust its module, as the user has installed the package.

    Raises `UserError` if it fails to import, or if another file takes the place of the module of the package.
    """
    package = entry.dist.name if entry.dist is not None else "an unknown package"
    what = f"{entry.name} of the package {package} is {entry.value}"
    try:
        spec = importlib.util.find_spec(entry.module)
    except (ImportError, ValueError):
        spec = None
    origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
    if origin is not None and origin.is_relative_to(Path.cwd()) and not _is_installed(entry, origin):
        raise UserError(f"{what}, but the file {origin} takes the place of that module: rename it, or go elsewhere")
    imported(entry.module, what)
    trust(entry.module)
    try:
        return entry.load()
    except AttributeError as error:
        raise UserError(f"{what}, but {error}: its package is broken, or of another version") from error


def _is_installed(entry: importlib.metadata.EntryPoint, origin: Path) -> bool:
    """Return True if a file is one of those of the package that registers an entry point."""
    if entry.dist is None:
        return False
    where = json.loads(entry.dist.read_text("direct_url.json") or "{}")
    if where.get("dir_info", {}).get("editable") and where.get("url", "").startswith("file://"):
        return origin.is_relative_to(Path(url2pathname(urlsplit(where["url"]).path)).resolve())
    return any(Path(str(each.locate())).resolve() == origin for each in entry.dist.files or [])


def load_file(path: Path) -> types.ModuleType:
    """Import a file of Python code that the user named, as a module of its own name, and trust that module.

    Raises `UserError` if there is no such file, if another module has its name, or if it raises an error.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if not path.stem.isidentifier():
        raise UserError(f"{path} cannot be the name of a module: rename the file, to letters, digits and underscores")
    name, known = path.stem, sys.modules.get(path.stem)
    if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == path.resolve():
        trust(name)
        return known
    if known is not None or (importlib.util.find_spec(name) is not None and not _is_file_of(name, path)):
        raise UserError(f"{path} has the name of the module {name}, which is already there: rename the file")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # worker processes import it by its name
    trust(name)
    return imported(name, f"{path} is to be run")


def _is_file_of(name: str, path: Path) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path.resolve()


def _module_of(thing: Any) -> str:
    module = str(getattr(thing, "__module__", None) or "")
    return _module_of_main() if module == "__main__" else module


def _module_of_main() -> str:
    """Return the name by which the script of this process can be imported, or "" in a console."""
    main = sys.modules.get("__main__")
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return str(spec.name) if spec is not None else Path(path).stem if path else ""
