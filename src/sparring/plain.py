"""Recipes on disk. A value is written as what it is: a class of ours and its fields, as plain JSON.

`{"$": "attacks.gradient:PGD", "steps": 10, ..}` is a value, `{"$call": "models.resnet:resnet18", ..}` a call to be
made later, `{"$name": "views:eval_mode"}` a function or class. Names of this package alone are written and read.
"""

import dataclasses
import importlib
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

from .errors import UserError, nearest

T_co = TypeVar("T_co", covariant=True)
Scalar: TypeAlias = "str | int | float | bool | tuple[Scalar, ...] | None"
ROOT = __name__.partition(".")[0]


@dataclasses.dataclass(frozen=True, slots=True, init=False, repr=False)
class Build(Generic[T_co]):
    """A call to be made later, as data: `Build(preact_resnet18, width=0.25)`.

    Raises `UserError` for an option that the function does not take.
    """

    function: Callable[..., T_co]
    options: Mapping[str, Scalar]

    def __init__(self, function: Callable[..., T_co], /, **options: Scalar) -> None:
        known = inspect.signature(function).parameters
        for name in options:
            if name not in known:
                raise UserError(f"{function.__name__} takes no {name!r}: {nearest(name, known)}")
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "options", options)

    def __call__(self, **rest: object) -> T_co:
        return self.function(**{**rest, **self.options})

    def __repr__(self) -> str:
        return f"Build({', '.join([self.function.__name__, *(f'{k}={v!r}' for k, v in self.options.items())])})"


def to_plain(value: object) -> Any:
    """Nested dicts, lists and scalars. Raises `UserError` for what has no place in a recipe."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, Build):
        return {"$call": _name(value.function), **{k: to_plain(v) for k, v in value.options.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"$": _name(type(value)), **fields}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, type | types.FunctionType):
        return {"$name": _name(value)}
    raise UserError(f"{value!r} has no place in a recipe: it is no number, string, tuple, or value of this package")


def from_plain(plain: Any) -> Any:
    """The value again. Raises `UserError` for names that are not ours and fields that do not exist."""
    if isinstance(plain, list):
        return tuple(from_plain(v) for v in plain)
    if not isinstance(plain, dict):
        return plain
    if "$name" in plain:
        return _find(plain["$name"], (type, types.FunctionType))
    fields = {k: from_plain(v) for k, v in plain.items() if k not in ("$", "$call")}
    if "$call" in plain:
        return Build(_find(plain["$call"], types.FunctionType), **fields)
    if "$" not in plain:
        return fields
    target = _find(plain["$"], type)
    known = [f.name for f in dataclasses.fields(target)] if dataclasses.is_dataclass(target) else []
    for name in fields:
        if name not in known:
            raise UserError(f"{plain['$']} has no field {name!r}: the recipe is of another version, or misspelt")
    try:
        return target(**fields)
    except TypeError as error:  # a field without default is missing
        raise UserError(f"{plain['$']} is incomplete: {error}") from error


def _name(thing: Any) -> str:
    name = f"{getattr(thing, '__module__', '')}:{thing.__qualname__}"
    if not name.startswith(ROOT + ".") or "<" in name:
        raise UserError(
            f"{name} is not of this package, so a recipe on disk cannot name it: train it in a loop of your own, with "
            "sparring.train_step"
        )
    return name.removeprefix(ROOT + ".")


def _find(name: object, kind: type | tuple[type, ...]) -> Any:
    module, _, attribute = str(name).partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise UserError(f"{name!r} is no name of this package")
    try:
        found = getattr(importlib.import_module(f"{ROOT}.{module}"), attribute)
        ours = isinstance(found, kind) and _name(found) == name
    except (ImportError, AttributeError, UserError):
        ours = False
    if not ours:
        raise UserError(f"{name!r} is no name of this package")
    return found


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two plain values differ, as `method.attack.steps: 10 -> 20`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}".lstrip("."))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{path}.{i}")]
    return [] if old == new else [f"{path}: {old} -> {new}"]
