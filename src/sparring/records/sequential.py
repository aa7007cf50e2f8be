"""Claims that are looked at again as seeds are added: how much of the error each look may spend. Needs no torch."""

import math
from functools import lru_cache

import numpy as np

from ..core.errors import UserError
from .results import Array

MOST = 18
"""Most seeds of a training that a study adds by itself."""
_PATHS = 2**18


def looks(first: int, most: int = MOST) -> tuple[int, ...]:
    """Return the numbers of seeds at which claims are looked at: each is half as large again as the one before.

    Args:
        first: Number of seeds at the first look, at least 2.
        most: Number of seeds at the last look.

    Raises:
        UserError: If the first look has fewer than two seeds, or more than the last.
    """
    if not 2 <= first <= most:
        raise UserError(
            f"claims are looked at again and again from {first} seeds on, which must be 2 to {most}: set --seeds"
        )
    found = [first]
    while found[-1] < most:
        found.append(min(most, math.ceil(1.5 * found[-1])))
    return tuple(found)


@lru_cache
def levels(looks: tuple[int, ...], tail: float) -> tuple[float, ...]:
    """Return the probability with which a bound may be wrong at each look, so that over all looks it is `tail`.

    At a share t of all seeds, tail x log(1 + (e - 1) t) may have been spent (Lan and DeMets' function like Pocock's
    boundary). The levels are simulated with normal numbers and a fixed seed.

    References:
        Lan and DeMets, https://doi.org/10.1093/biomet/70.3.659
    """
    p, found, spent = _paths(looks), [], 0
    left = np.ones(len(p), dtype=bool)
    for look, seeds in enumerate(looks):
        allowed = round(tail * math.log(1 + (math.e - 1) * seeds / looks[-1]) * len(p)) - spent
        ranked = np.sort(p[left, look])
        found.append(float(ranked[max(0, allowed - 1)]))
        crossed = left & (p[:, look] <= found[-1])
        spent, left = spent + int(crossed.sum()), left & ~crossed
    return tuple(found)


@lru_cache(maxsize=2)
def _paths(looks: tuple[int, ...]) -> Array:
    """Return one-sided p-values of Student's t at each look `[R, looks]`, where nothing is to be found."""
    from scipy.stats import t

    drawn = np.random.default_rng(0).standard_normal((_PATHS, looks[-1]), dtype=np.float32)
    found = []
    for seeds in looks:
        each = drawn[:, :seeds]
        found.append(t.sf(each.mean(1) / each.std(1, ddof=1) * math.sqrt(seeds), seeds - 1))
    return np.stack(found, axis=1)
