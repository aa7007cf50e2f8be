"""Values made of values: attacks in schedules in methods in recipes."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def children(value: object) -> list[Any]:
    """The values that a dataclass, a mapping, a tuple or a list holds; of classes, models and tensors none."""
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
    """The value and all that it holds, depth first, in order. What is `within` decides where to go on."""
    yield value
    if within(value):
        for child in children(value):
            yield from walk(child, within)
