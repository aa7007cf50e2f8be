"""Fingerprint of a model: it detects changes that make a copy stale, and parts that a copy cannot follow.

A copy shares functions, classes and hooks with its model, so their state is the same in both. Modules, tensors,
containers and other objects are copied: a change to one of these makes a copy stale, so the fingerprint reads them all.
"""

import functools
import types
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.types import Reference

_DEEPEST = 12
_LONGEST = 1000  # entries of a container that are read; of a longer one, such as a vocabulary, identity and length are
_LARGEST = 4 * 2**20  # bytes of a numpy array that is read
_OWN = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SCALARS = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device})
_SHARED = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)
_GLOBAL_HOOKS = tuple(name for name in vars(nn.modules.module) if name.startswith("_global_") and "hooks" in name)


def hooks_of(module: nn.Module) -> tuple[dict[int, Any], ...]:
    """Return the forward and backward hooks of a module."""
    return tuple(getattr(module, name) for name in _HOOKS)


def global_hooks() -> list[Any]:
    """Return the hooks that torch calls for every module."""
    return [hook for name in _GLOBAL_HOOKS for hook in (getattr(nn.modules.module, name) or {}).values()]


@contextmanager
def without_new_global_hooks() -> Iterator[None]:
    """Remove the hooks for all modules that are set inside and still there at the end."""
    kinds = [hooks for name in _GLOBAL_HOOKS if (hooks := getattr(nn.modules.module, name)) is not None]
    known = [dict(hooks) for hooks in kinds]
    try:
        yield
    finally:
        for hooks, before in zip(kinds, known, strict=True):
            for number in hooks.keys() - before.keys():
                del hooks[number]


def patched(module: nn.Module) -> str | None:
    """Return the name of a method that was replaced on the module itself, as in `module.forward = mine`, or None."""
    return next((name for name in vars(module) if callable(getattr(type(module), name, None))), None)


@dataclass(frozen=True, slots=True)
class _Identity:
    """Wrapper that compares an object by identity, and keeps it alive so that no other can reuse its address."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


@dataclass(slots=True)
class Fingerprint:
    """State of a model: two fingerprints of one model have equal `marks` unless a change would make a copy stale.

    Values of weights and buffers are left out, since a copy reloads them at each use; their names, shapes and types
    are included.
    """

    marks: list[Any] = field(default_factory=list)
    aliases: bool = False
    """True if a module is also held in a list, an attribute of another kind or a bound method."""
    loose: str | None = None
    """Attribute that holds a trainable tensor or a module that `model.modules()` does not find."""
    places: dict[int, int] = field(default_factory=dict)
    """Number of each weight and buffer by its identity, which tells those that are tied."""

    @classmethod
    def of(cls, model: nn.Module) -> "Fingerprint":
        found = cls()
        for hook in global_hooks():
            found.marks.append(id(hook))
        modules = list(model.modules())
        known = {id(module) for module in modules}
        for module in modules:
            found._module(module, known)
        return found

    def _module(self, module: nn.Module, known: set[int]) -> None:
        self.marks += [id(module), type(module), *((name, id(part)) for name, part in module._modules.items())]
        for held in hooks_of(module):
            if held:
                self.marks += [id(hook) for hook in held.values()]
        registered = {**module._parameters, **module._buffers}
        for name, tensor in registered.items():
            place = None if tensor is None else self.places.setdefault(id(tensor), len(self.places))  # tied: the first
            self.marks.append((name, None if tensor is None else (tensor.shape, tensor.dtype, tensor.device, place)))
        if isinstance(module, Reference):
            self.marks += [id(tensor) for tensor in module._buffers.values()]
        walk = None
        for name, value in vars(module).items():
            if name in _OWN:
                continue
            if _is_plain(value):  # a fast path for nearly all values: this loop runs in every training step
                self.marks.append((name, value))
                continue
            walk = walk or _Walk(self, known, {id(tensor) for tensor in registered.values()})
            walk.attribute = name
            walk.read(value, 0)


@dataclass(slots=True)
class _Walk:
    """Reads the attributes of one module."""

    found: Fingerprint
    known: set[int]
    registered: set[int]
    attribute: str = ""
    seen: set[int] = field(default_factory=set)

    def read(self, value: Any, depth: int) -> None:
        marks = self.found.marks
        if _is_plain(value):
            marks.append(value)
        elif isinstance(value, nn.Module):
            marks.append(id(value))
            if id(value) in self.known:
                self.found.aliases = True
            else:
                self.found.loose = self.found.loose or self.attribute
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, _SHARED) or depth > _DEEPEST or id(value) in self.seen:
            marks.append(id(value))
        else:
            self.seen.add(id(value))
            marks.append((type(value), id(value)))
            for part in self._parts(value):
                self.read(part, depth + 1)

    def _tensor(self, value: Tensor) -> None:
        if id(value) in self.registered:
            self.found.marks.append(id(value))
            return
        if value.requires_grad:
            self.found.loose = self.found.loose or self.attribute
        version = None if value.is_inference() else value._version
        self.found.marks.append((_Identity(value), version))

    def _parts(self, value: Any) -> Iterable[Any]:
        if isinstance(value, np.ndarray):
            return (zlib.crc32(value.tobytes()),) if value.nbytes <= _LARGEST else ()
        if isinstance(value, types.MethodType):
            return (value.__func__, value.__self__)
        if isinstance(value, functools.partial):
            return (value.func, value.args, value.keywords)
        if isinstance(value, Mapping):
            return (len(value),) if len(value) > _LONGEST else (*value.keys(), *value.values())
        if isinstance(value, list | tuple | set | frozenset):
            return (len(value),) if len(value) > _LONGEST else (len(value), *value)
        slots = (name for kind in type(value).__mro__ for name in _slots(kind))
        held = [getattr(value, name, None) for name in slots]
        return (*held, *vars(value).values()) if hasattr(value, "__dict__") else held


def _is_plain(value: Any) -> bool:
    """Return True for a scalar or a tuple of scalars, such as sizes and strides."""
    kind = type(value)
    return kind in _SCALARS or (kind is tuple and all(type(part) in _SCALARS for part in value))


def _slots(kind: type) -> tuple[str, ...]:
    found = vars(kind).get("__slots__", ())
    return (
        (found,) if isinstance(found, str) else tuple(name for name in found if name not in ("__dict__", "__weakref__"))
    )
