"""Labels that follow the names of classes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..core.errors import UserError
from ..core.types import LabelledData


def with_classes(data: Any, classes: Sequence[str], what: str, known: str) -> LabelledData:
    """Give data the classes of others: a label follows the name of its class, if it has one.

    Args:
        data: Labelled data, as `sparring.core.types.LabelledData`.
        classes: Names of the classes.
        what: What the data are, for messages.
        known: What the data are whose classes are given.

    Returns:
        The data with these classes.

    Raises:
        UserError: If the data have more classes, or one of another name.
    """
    ours, theirs = tuple(classes), tuple(data.classes)
    if len(theirs) > len(ours):
        raise UserError(f"the {what} have {len(theirs)} classes, the {known} {len(ours)}")
    if ours[: len(theirs)] != theirs and not (numbered(ours) or numbered(theirs)):
        unknown = [name for name in theirs if name not in ours]
        if unknown:
            raise UserError(
                f"the {what} have the class {unknown[0]!r}, which the {known} lack: they have "
                f"{', '.join(ours[:5])}{', ..' if len(ours) > 5 else ''}"
            )
        data = data.relabelled(torch.tensor([ours.index(name) for name in theirs], device=data.y.device)[data.y])
    return replace(data, classes=ours)


def numbered(classes: Sequence[str]) -> bool:
    """Return True if classes have no names but their numbers."""
    return tuple(classes) == tuple(map(str, range(len(classes))))
