"""Turns a value into command-line flags: each scalar in it becomes `--path.to.field`, with its value as the default.

Structure (which attack, which objective) is chosen in Python; the command line changes the numbers. tyro parses the
flags and prints the help; this module makes the dataclass that tyro needs from a value, and puts the parsed numbers
back.
"""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Container, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

from ..core.errors import UserError
from ..core.numbers import parse_number
from ..core.serialization import Build

Options = TypeVar("Options")
T = TypeVar("T")

_NUMBER = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="FLOAT",
    instance_from_str=lambda args: parse_number(args[0]),
    is_instance=lambda value: isinstance(value, float | int),
    str_from_instance=lambda value: [f"{value:.6g}"],
)
Number = Annotated[float, _NUMBER]  # 0.1 or 8/255


def parse(
    options: type[Options],
    value: T,
    extra: Mapping[str, Any],
    args: list[str],
    prog: str,
    description: str,
    fields: Container[str] | None = None,
    about: Mapping[str, str] = types.MappingProxyType({}),
) -> tuple[Options, T, dict[str, Any]]:
    """Parse `args` as flags for the fields of `options`, for `fields` of `value` (None: all) and for `extra` scalars.

    Returns the options, the changed value and the changed extras. Prints help or an error and exits as command-line
    programs do. `about` describes flags that no docstring describes.
    """
    parts = {**{name: (each, type(each)) for name, each in extra.items()}, **_parts(value)}
    parts = {name: part for name, part in parts.items() if fields is None or name in fields}
    known = {**about, **_described(type(value)), **_arguments(description)}
    mirror = _mirror("Options", parts, description, known, (options,))
    parsed = tyro.cli(mirror, args=args, prog=prog, description=description, config=(tyro.conf.FlagCreatePairsOff,))
    return parsed, _restore(value, parsed), {name: getattr(parsed, name) for name in extra}


def _field(name: str) -> str:
    return "_" + name if name.isdigit() else name.replace("-", "_")


def _parts(value: Any) -> dict[str, tuple[Any, Any]]:
    """Return the named parts of a value, each with its type hint."""
    if isinstance(value, Build):
        hints = get_type_hints(value.function)
        defaults = {n: p.default for n, p in inspect.signature(value.function).parameters.items()}
        given = {**{n: d for n, d in defaults.items() if d is not inspect.Parameter.empty}, **value.options}
        return {n: (v, hints.get(n)) for n, v in given.items() if n not in ("num_classes", "shape", "normalize")}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        return {f.name: (getattr(value, f.name), hints.get(f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(n): (v, None) for n, v in value.items()}
    if isinstance(value, tuple):
        return {str(i): (v, None) for i, v in enumerate(value)}
    return {}


def _mirror(
    name: str, parts: Mapping[str, tuple[Any, Any]], doc: str, about: Mapping[str, str], bases: tuple[type, ...] = ()
) -> Any:
    """Make a dataclass with a field for each scalar of a value, and a nested dataclass for each part with scalars.

    `about` describes the fields by name.
    """
    fields: list[Any] = []
    for part, (value, hint) in parts.items():
        kind = _scalar(value, hint)
        if kind is not None:
            text = about.get(part, "")
            told = f"{text} This flag turns it off." if value is True and text else text
            described = Annotated[kind, tyro.conf.arg(help=told)] if told else kind
            fields.append((_field(part), described, dataclasses.field(default=value)))
        elif inner := _parts(value):
            documented = value.function if isinstance(value, Build) else type(value)
            nested: Any = _mirror(type(value).__name__, inner, _summary(value), _described(documented))
            if dataclasses.fields(nested):
                named = Annotated[nested, tyro.conf.arg(name=part, help=nested.__doc__)]
                fields.append((_field(part), named, dataclasses.field(default_factory=nested)))
    return dataclasses.make_dataclass(name, fields, bases=bases, frozen=True, namespace={"__doc__": doc})


def _described(thing: Any) -> Mapping[str, str]:
    """Return the descriptions of the arguments of a function or class, by name, from its docstring."""
    return _arguments(inspect.cleandoc(thing.__doc__ or ""))


@functools.cache
def _arguments(text: str) -> Mapping[str, str]:
    found = docstring_parser.parse(text, docstring_parser.DocstringStyle.GOOGLE).params
    return {each.arg_name: " ".join((each.description or "").split()) for each in found}


def _summary(value: Any) -> str:
    """Return the first sentence of the documentation of a value, for the help."""
    thing = value.function if isinstance(value, Build) else type(value)
    ours = (thing.__module__ or "").startswith(__name__.partition(".")[0])
    first = inspect.cleandoc(thing.__doc__ or "").split("\n")[0]
    return f"{thing.__name__}: {first}" if ours and not first.startswith(thing.__name__ + "(") else thing.__name__


def _scalar(value: Any, hint: Any) -> Any:
    """Return the type to parse a scalar as, or None if the value is no scalar."""
    if isinstance(value, bool):
        return bool
    if isinstance(value, tuple) and value and all(isinstance(v, float | int) for v in value):
        members = get_args(hint) if get_origin(hint) is tuple else (float, ...)
        kinds: Any = tuple(Number if member is float else member for member in members)
        return tuple[kinds]
    if isinstance(value, str | int | float) or value is None:
        return _from_hint(hint, value)
    return None


def _from_hint(hint: Any, value: Any) -> Any:
    if get_origin(hint) is Literal:
        return hint
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    known = {int: int, float: Number, str: str, bool: bool}
    wanted = [known[m] for m in members if m in known]
    if value is None:
        return Union[(*wanted, None)] if wanted else None
    kind = Number if isinstance(value, float) or Number in wanted else type(value)
    return Union[kind, None] if type(None) in members else kind  # noqa: UP007


def _restore(value: T, parsed: Any) -> T:
    """Return `value` with the parts that differ in `parsed`; the same object if none differs."""
    if not dataclasses.is_dataclass(parsed):
        return parsed
    changed = {}
    for name, (part, _) in _parts(value).items():
        if hasattr(parsed, _field(name)):
            new = _restore(part, getattr(parsed, _field(name)))
            if new is not part and new != part:
                changed[name] = new
    return _replaced(value, changed) if changed else value


def _replaced(value: Any, changed: dict[str, Any]) -> Any:
    if isinstance(value, Build):
        return Build(value.function, **{**value.options, **changed})
    if isinstance(value, Mapping):
        return {**value, **changed}
    if isinstance(value, tuple):
        return tuple(changed.get(str(i), part) for i, part in enumerate(value))
    return dataclasses.replace(value, **changed)


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the parameters of a recipe function with their defaults."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            raise UserError(f"{function.__name__} has a parameter {name!r} without a default")
        found[name] = parameter.default
    return found
