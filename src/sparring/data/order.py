"""A random order of a training set, computed where it is asked for instead of held in memory."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..core.errors import need_seed, need_whole
from ..core.rng import PerExample, mixed_seed

_ROUNDS = 12
"""With 8 rounds, 4,000 seeds show that some orders of 5 numbers are more frequent than others; with 10 they do not."""


class Order:
    """A random order of the numbers 0 .. `count` - 1, which depends on `seed` alone.

    It is a generalised Feistel cipher: a position is a cell of a rectangle of about sqrt(count) x sqrt(count) cells,
    and each round moves it along one axis by a random number that depends on its place on the other axis. The few
    cells beyond `count` are passed by: what falls on one is moved again. Only the random numbers of the rounds are in
    memory, about 700 KB for 50 million positions.

    Args:
        count: number of positions, at least 1.
        seed: seed of the order, from 0 on.

    Raises:
        UserError: when `count` or `seed` is out of its range.

    References:
        Black and Rogaway, Ciphers with Arbitrary Finite Domains: https://doi.org/10.1007/3-540-45760-7_9.
        Luby and Rackoff, How to Construct Pseudorandom Permutations: https://doi.org/10.1137/0217022.
    """

    def __init__(self, count: int, seed: int) -> None:
        need_whole("count", count)
        need_seed(seed)
        self.count, self.seed = count, seed
        high = math.isqrt(count - 1) + 1
        self._sides = high, (count - 1) // high + 1
        drawn = PerExample(seed, torch.arange(high)).uniform(_ROUNDS).T
        self._moves = [(self._sides[number % 2] * row).long() for number, row in enumerate(drawn)]

    def __len__(self) -> int:
        return self.count

    def rows(self, positions: Tensor) -> Tensor:
        """Return the numbers at some positions of the order.

        Args:
            positions: positions from 0 to `count` - 1, `[B]` (int64), on the CPU.

        Returns:
            Numbers from 0 to `count` - 1, `[B]` (int64); different ones at different positions.
        """
        found = self._moved(positions)
        while len(beyond := (found >= self.count).nonzero()[:, 0]):
            found[beyond] = self._moved(found[beyond])
        return found

    def _moved(self, cells: Tensor) -> Tensor:
        """Return where the rounds move cells of the whole rectangle."""
        places = [cells // self._sides[1], cells % self._sides[1]]
        for number, moves in enumerate(self._moves):
            along, across = number % 2, 1 - number % 2
            places[along] = (places[along] + moves.take(places[across])) % self._sides[along]
        return places[0] * self._sides[1] + places[1]


class Passes:
    """Positions without end: one pass after another over the numbers 0 .. `count` - 1, each pass in a new order.

    Args:
        count: number of positions of a pass, at least 1.
        seed: seed of the orders, from 0 on.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self._order = lru_cache(2)(lambda number: Order(count, mixed_seed(seed, number)))

    def rows(self, positions: Tensor) -> Tensor:
        """Return the numbers at some positions from 0 on, `[B]` (int64), on the CPU."""
        found = torch.empty_like(positions)
        passes = positions // self.count
        for number in passes.unique().tolist():
            there = passes == number
            found[there] = self._order(number).rows(positions[there] % self.count)
        return found
