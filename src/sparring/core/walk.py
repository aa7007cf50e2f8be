"""Iteration over nested values, such as attacks in schedules in methods in recipes."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def children(value: object) -> list[Any]:
    """Return the values in a dataclass, mapping, tuple or list; classes, models and tensors have none."""
    if isinstance(value, type | nn.Module | Tensor):
        return []
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, tuple | list):
        return list(value)
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return []


def walk(value: object, within: Callable[[Any], bool] = lambda value: True) -> Iterator[Any]:
    """Yield the value and all values in it, depth first and in order; a value is entered if `within` returns True."""
    yield value
    if within(value):
        for child in children(value):
            yield from walk(child, within)
