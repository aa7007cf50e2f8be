"""A few evaluated examples with their images, for a reader to look at. Needs no torch."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LARGE = 64 * 64
"""Number of pixels above which an image is large."""
SMALL_IMAGES, LARGE_IMAGES = 24, 8
"""Number of images of each fate."""


@dataclass(frozen=True, slots=True)
class Gallery:
    """A few of the evaluated examples with their images, for a reader to look at.

    It holds the first few examples that each stage of an adversary broke, the first few that are wrong without an
    attack, and of the robust ones those with the smallest margins.

    Args:
        adversary: Name of the adversary.
        row: The place of each example in the result, `[G]`.
        clean: Clean images `[G, C, H, W]` in [0, 1], in half precision.
        adversarial: Adversarial images `[G, C, H, W]` in [0, 1], in half precision; the clean image where no attack
            broke the example.
        clean_confidence: Probability of the predicted class of the clean image, `[G]`.
        adversarial_confidence: Probability of the predicted class of the adversarial image, `[G]`.
    """

    adversary: str
    row: Array
    clean: Array
    adversarial: Array
    clean_confidence: Array
    adversarial_confidence: Array

    def arrays(self) -> dict[str, Array]:
        """All fields as arrays by name."""
        return {each.name: np.array(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def from_arrays(cls, held: Mapping[str, Array]) -> "Gallery":
        """The gallery that `arrays` turned into arrays."""
        return cls(**{**held, "adversary": str(held["adversary"])})  # type: ignore[arg-type]


def gallery_size(shape: Iterable[int]) -> int:
    """Return how many images of each fate a gallery of images of a shape `[C, H, W]` holds."""
    return SMALL_IMAGES if math.prod(list(shape)[1:]) <= LARGE else LARGE_IMAGES


def chosen(rows: Array, fates: Array, margin: Array, few: int) -> Array:
    """Choose at most `few` examples of each fate.

    Args:
        rows: Places of the examples to choose from, `[R]`.
        fates: What broke each example, `[N]`, as of `EvaluationResult.broken_by`; "" for a robust one.
        margin: Lowest margin of each example, `[N]`.
        few: How many of each fate.

    Returns:
        The chosen places in ascending order: the first of each fate, and of robust examples those with the smallest
        margins.
    """
    rows = np.unique(rows).astype(np.int64)
    kept = []
    for fate in np.unique(fates[rows]):
        own = rows[fates[rows] == fate]
        kept.append((own[np.argsort(margin[own], kind="stable")] if fate == "" else own)[:few])
    return np.sort(np.concatenate([*kept, rows[:0]]))
