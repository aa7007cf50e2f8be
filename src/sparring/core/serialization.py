"""Recipes on disk: a value is written as plain JSON, with the name of its class and its fields.

`{"$": "PGD", "steps": 10, ..}` is a value, `{"$call": "resnet18", ..}` a call to be made later, `{"$name":
"eval_mode"}` a function or class. Of this package only names that `public_names.py` lists are written and read; those
of other packages are `{"$": "package.module:Name", "$source": "<hash>", ..}`, and are imported if the user trusts their
module (`foreign.py`). Fields and options that are read must have the types of their annotations.
"""

import dataclasses
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

from . import foreign
from .errors import UserError, nearest
from .public_names import CALLS, NAMES, VALUES
from .reading import conform

T_co = TypeVar("T_co", covariant=True)
Scalar: TypeAlias = "str | int | float | bool | tuple[Scalar, ...] | None"
ROOT = __name__.partition(".")[0]


@dataclasses.dataclass(frozen=True, slots=True, init=False, repr=False)
class Build(Generic[T_co]):
    """A function call to be made later, as data.

    For example `Build(preact_resnet18, width=0.25)`.

    Args:
        function: The function to call.
        **options: Keyword arguments of the call.

    Raises:
        UserError: If the function does not take one of the options.
    """

    function: Callable[..., T_co]
    options: Mapping[str, Scalar]

    def __init__(self, function: Callable[..., T_co], /, **options: Scalar) -> None:
        known = {name: each for name, each in inspect.signature(function).parameters.items() if each.kind not in _MANY}
        for name in options:
            if name not in known and not _takes_any(function):
                raise UserError(f"{function.__name__} takes no {name!r}: {nearest(name, known)}")
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "options", options)

    def __call__(self, **rest: object) -> T_co:
        """Make the call; arguments that the function does not take are left out."""
        taken = {name: value for name, value in rest.items() if self.takes(name)}
        return self.function(**{**taken, **self.options})

    def takes(self, name: str) -> bool:
        """Return True if the function has a parameter of this name, or accepts any keyword argument."""
        known = inspect.signature(self.function).parameters
        return (name in known and known[name].kind not in _MANY) or _takes_any(self.function)

    def __repr__(self) -> str:
        return f"Build({', '.join([self.function.__name__, *(f'{k}={v!r}' for k, v in self.options.items())])})"


_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _takes_any(function: Callable[..., object]) -> bool:
    """Return True if a function accepts any keyword argument."""
    return any(each.kind is each.VAR_KEYWORD for each in inspect.signature(function).parameters.values())


def to_plain(value: object) -> Any:
    """Converts a value to nested dicts, lists and scalars.

    Args:
        value: A scalar, tuple or mapping, or a value, call or function that a recipe may hold.

    Returns:
        The value as plain data, from which `from_plain` makes it again.

    Raises:
        UserError: If the value has no place in a recipe.
    """
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, Build):
        return _named("$call", value.function, CALLS) | {k: to_plain(v) for k, v in value.options.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _named("$", type(value), VALUES) | {name: to_plain(each) for name, each in stored(value).items()}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, type | types.FunctionType):
        return _named("$name", value, NAMES)
    raise UserError(
        f"{value!r} has no place in a recipe: a recipe holds numbers, strings, tuples, frozen dataclasses, and "
        "functions and classes by their names. Make it a frozen dataclass whose fields are of these kinds"
    )


def stored(value: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass that are written: those that its constructor takes.

    Args:
        value: The dataclass.

    Returns:
        Its values by name.
    """
    fields = [f.name for f in dataclasses.fields(value) if f.init and f.metadata.get("on_disk", True)]
    return {name: getattr(value, name) for name in fields}


def from_plain(plain: Any, where: str = "recipe") -> Any:
    """Makes a value from the plain data that `to_plain` writes.

    Args:
        plain: Nested dicts, lists and scalars.
        where: Name of the data, for messages.

    Returns:
        The value; lists become tuples.

    Raises:
        UserError: If a name, a field or a type is not one that a recipe may hold; the message contains `where`.
    """
    if isinstance(plain, list):
        return tuple(from_plain(v, f"{where}[{number}]") for number, v in enumerate(plain))
    if not isinstance(plain, dict):
        return plain
    source = plain.get("$source")
    if "$name" in plain:
        return _find(plain["$name"], NAMES, source, where)
    fields = {k: from_plain(v, f"{where}.{k}") for k, v in plain.items() if k not in ("$", "$call", "$source")}
    if "$call" in plain:
        build = Build(_find(plain["$call"], CALLS, source, where), **fields)
        check_types(build.function, fields, where, _DAMAGED)
        return build
    return _value(_find(plain["$"], VALUES, source, where), fields, where) if "$" in plain else fields


def _value(kind: Any, fields: Mapping[str, Any], where: str) -> Any:
    name = kind.__name__
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise UserError(f"{where} names {name} as a value with fields, but it is no dataclass")
    made: Callable[..., Any] = kind
    known = {field.name for field in dataclasses.fields(kind)}
    for field in fields:
        if field not in known:
            raise UserError(f"{name} has no field {field!r}: {nearest(field, known)}")
    check_types(kind, fields, where, _DAMAGED)
    try:
        return made(**fields)
    except UserError:
        raise
    except TypeError as error:  # a field without default is missing
        raise UserError(f"{name} is incomplete: {error}") from error
    except Exception as error:
        raise UserError(f"{where} makes no sense ({error}): restore the recipe") from error


_DAMAGED = "the recipe is of another version, or damaged"


def check_types(called: Any, given: Mapping[str, Any], where: str, remedy: str) -> None:
    """Checks that arguments have the types that a class or function is annotated with.

    Args:
        called: The class or function.
        given: The arguments by name.
        where: Name of the data, for messages.
        remedy: What the user should do, the end of the message.

    Raises:
        UserError: If an argument is of another type.
    """
    hints = _hints(called)
    for name, value in given.items():
        try:
            conform(value, hints.get(name, Any), f"{where}.{name}")
        except ValueError as error:
            raise UserError(f"{error}: {remedy}") from None


@functools.cache
def _hints(called: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(called)
    except Exception:
        if foreign.is_foreign(called):  # its annotations may need imports that are for type checkers alone
            return {}
        raise


def _named(key: str, thing: Any, known: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the name of a class or function under `key`, and the hash of its source if it is of another package."""
    if foreign.is_foreign(thing):
        return {key: foreign.name_of(thing), "$source": foreign.source_of(thing)}
    if thing.__qualname__ not in known.get(thing.__module__.partition(".")[2], ()):
        raise UserError(f"{thing.__module__}:{thing.__qualname__} has no place in a recipe on disk")
    return {key: str(thing.__qualname__)}


def _find(name: object, known: Mapping[str, tuple[str, ...]], source: object, where: str) -> Any:
    if isinstance(name, str) and ":" in name:
        return foreign.find(name, source, where)
    for module, names in known.items():
        if name in names:
            return getattr(importlib.import_module(f"{ROOT}.{module}"), str(name))
    raise UserError(f"{name!r} is no name of this package that a recipe may hold here")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Lists the differences of two plain values, as in `method.attack.steps: 10 -> 20`.

    Args:
        old: The first value.
        new: The second value.
        path: Path of both values within a larger one.

    Returns:
        One line per difference; empty if the values are equal.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}".lstrip("."))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{path}.{i}")]
    return [] if old == new else [f"{path}: {old} -> {new}"]
