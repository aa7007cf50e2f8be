"""Results of trainings by seed, and estimates of what can be computed from them. Needs no torch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from ..core.errors import UserError
from .estimates import Mean
from .results import Array

Cell: TypeAlias = tuple[str, str, str]  # training, which of its weights, adversary or name of a number

_DRAWS = 2000
_FEW = 10  # from so many on, a share of images is roughly normal
_SAME = 1e-6  # of an image: what two images may differ by in what they change


@dataclass(frozen=True, slots=True)
class Cells:
    """Accuracies, 0 to 1, and other numbers of trainings, each `[.., S]`, by seed; `asked` are those that were used."""

    values: Mapping[Cell, Array]
    asked: set[Cell] = field(default_factory=set)

    def __call__(self, arm: str, under: str, which: str = "last") -> Array:
        cell = arm, which, under
        self.asked.add(cell)
        try:
            return self.values[cell]
        except KeyError:
            known = ", ".join(sorted({name for owner, kind, name in self.values if (owner, kind) == (arm, which)}))
            what = f"{under!r} of {arm!r} ({which}) was not measured"
            raise UserError(f"{what}: take one of {known or 'another training'}") from None


Statistic: TypeAlias = Callable[[Cells], Array]
"""A number of each seed, computed from the accuracies and other numbers of that seed alone."""


class Outcomes:
    """Results of all trainings, which may have different numbers of seeds: they are compared on those in common.

    Args:
        flags: Which test images are classified correctly, `[S, N]`, by cell.
        numbers: Other numbers, `[S]`, by cell.
        margins: Numbers of every test image, `[S, N]`, by cell.
        shares: Names of numbers that are shares of examples, and of how many examples at least.
    """

    def __init__(
        self,
        flags: Mapping[Cell, Array],
        numbers: Mapping[Cell, Array] | None = None,
        margins: Mapping[Cell, Array] | None = None,
        shares: Mapping[str, int] | None = None,
    ) -> None:
        self.flags, self._of_images = flags, {**flags, **(margins or {})}
        self.by_seed = {**{cell: each.mean(1) for cell, each in self._of_images.items()}, **(numbers or {})}
        known = shares or {}
        of_numbers = {cell: known[cell[2]] for cell in numbers or {} if cell[2] in known}
        self._examples = {**of_numbers, **{cell: each.shape[1] for cell, each in flags.items()}}
        self._drawn: dict[Cell, Array] = {}

    def asked(self, statistic: Statistic) -> frozenset[Cell]:
        """Return the cells that a statistic uses."""
        cells = Cells({cell: each[:1] for cell, each in self.by_seed.items()})
        statistic(cells)
        return frozenset(cells.asked)

    def seeds(self, statistic: Statistic) -> int:
        """Return the number of seeds that all trainings have that a statistic uses."""
        return min(len(self.by_seed[cell]) for cell in self.asked(statistic))

    def estimate(self, statistic: Statistic, seeds: int | None = None, *, cautious: bool = False) -> Mean:
        """Return a statistic of the first `seeds` seeds, by default of all that its trainings have in common.

        The variance that seeds share is the covariance between seeds as test images are drawn anew, the same for all
        seeds and trainings (bootstrap). What varies by seed and image is in the variance between seeds already.

        Where few images decide, the bootstrap sees less than a binomial distribution would say: nothing at all if N
        images agree, although 3 in N of all images may be others (rule of three). If it is to be `cautious`, what three
        images change is added as a standard deviation where fewer than ten make a difference, or where another share of
        examples is the same for all seeds.

        Raises:
            UserError: If the statistic compares accuracies on different test images, or is not one number of each seed.
        """
        used = self.asked(statistic)
        seeds = seeds or min(len(self.by_seed[cell]) for cell in used)
        given = {cell: self.by_seed[cell][:seeds] for cell in used}
        values = np.asarray(statistic(Cells(given)), dtype=float)
        if values.shape != (seeds,):
            raise UserError(
                f"a number of a claim is one of each seed, [{seeds}]: this is {list(values.shape)}. Compute it "
                "elementwise, as in cells(arm, under) - cells(other, under)"
            )
        mean = Mean(values, self._shared(statistic, used, seeds))
        if cautious and (mean.alike or self._deciding(statistic, used, seeds) < _FEW):
            return mean._replace(shared=mean.shared + (3 * self._of_an_example(statistic, given, values)) ** 2)
        return mean

    def _deciding(self, statistic: Statistic, used: frozenset[Cell], seeds: int) -> float:
        """Return how many images make a difference: those that the number of a seed would change without, unlike most.

        It is infinite for numbers that are not of images.
        """
        images = {cell: self._of_images[cell][:seeds] for cell in used if cell in self._of_images}
        if not images:
            return math.inf
        count = len(next(iter(images.values()))[0])
        others = {cell: ((each.sum(1, keepdims=True) - each) / max(count - 1, 1)).T for cell, each in images.items()}
        kept = {cell: np.broadcast_to(self.by_seed[cell][:seeds], (count, seeds)) for cell in used}
        without = np.asarray(statistic(Cells({**kept, **others})))
        return float((np.abs(without - np.median(without, axis=0)) > _SAME / count).any(1).sum())

    def _of_an_example(self, statistic: Statistic, given: Mapping[Cell, Array], values: Array) -> float:
        """Return how far a single example moves the statistic at most; 0 if no number that it uses is a share."""
        shares = {cell: self._examples[cell] for cell in given if cell in self._examples}
        moved = [
            statistic(Cells({**given, cell: given[cell] + way / examples})) - values
            for cell, examples in shares.items()
            for way in (-1, 1)
        ]
        return float(np.max(np.abs(moved), initial=0.0))

    def _shared(self, statistic: Statistic, used: frozenset[Cell], seeds: int) -> float:
        """Return the variance that seeds share because of the test images, 0 for numbers that are not of images."""
        images = {self._of_images[cell].shape[1] for cell in used if cell in self._of_images}
        if not images:
            return 0.0
        if len(images) > 1:
            raise UserError(f"a paired comparison needs the same test images everywhere, not {sorted(images)} of them")
        drawn = np.asarray(statistic(Cells({cell: self._draws(cell)[:, :seeds] for cell in used})))
        together, single = float(drawn.mean(1).var()), float(drawn.var(0).mean())
        return max(0.0, (seeds * together - single) / (seeds - 1) if seeds > 1 else single)

    def _draws(self, cell: Cell) -> Array:
        """Return a cell for each draw of the test images, `[R, S]`."""
        if cell not in self._of_images:
            return np.broadcast_to(self.by_seed[cell], (_DRAWS, len(self.by_seed[cell])))
        if cell not in self._drawn:
            images = self._of_images[cell]
            self._drawn[cell] = _weights(images.shape[1]) @ images.T.astype(np.float32)
        return self._drawn[cell]


@lru_cache(maxsize=2)
def _weights(images: int) -> Array:
    """Return the share of each image in each draw, `[R, N]`."""
    drawn = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=_DRAWS)
    return drawn.astype(np.float32) / np.float32(images)
