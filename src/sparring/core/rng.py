"""Chance, of a batch or of each example by itself.

Training draws from a `torch.Generator`, which is saved with the state. Evaluation draws from `PerExample`, where every
example has a stream of its own: then batch size, order, sharding and resuming change no result. Attacks and threats do
not ask which: they call `uniform`, `normal` and `exponential`, and hand on `some(rng, rows)` with some of the examples.
"""

import hashlib
import math
from typing import TypeAlias

import torch
from torch import Tensor


class PerExample:
    """A stream of random numbers for each example, from a seed and the example's own `index` `[B]` (int64).

    It is counter-based (the mixing function of splitmix64, https://doi.org/10.1145/2660193.2660195): a number depends
    on the seed, the index, how often this example has drawn, and the place in the draw; on nothing else.
    """

    def __init__(self, seed: int, index: Tensor) -> None:
        self._keys = _mixed(_mixed(index + 1) + seed)
        self._counts = torch.zeros_like(index)
        self._rows = torch.arange(len(index), device=index.device)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Tensor) -> "PerExample":
        """The streams of some examples; what is drawn from them is drawn here too."""
        some = object.__new__(PerExample)
        some._keys, some._counts, some._rows = self._keys, self._counts, self._rows[rows]
        return some

    def uniform(self, size: int) -> Tensor:
        """Numbers in [0, 1) with 53 random bits, `[B, size]`, float64."""
        counts = self._counts[self._rows]
        self._counts[self._rows] += 1
        place = torch.arange(size, device=counts.device) * _STRIDE
        bits = _mixed(_mixed(self._keys[self._rows] + counts * _STRIDE)[:, None] + place)
        return _shifted(bits, 11).double() * 2.0**-53


Rng: TypeAlias = torch.Generator | PerExample


def some(rng: Rng, rows: Tensor) -> Rng:
    """What the examples `rows` draw from."""
    return rng[rows] if isinstance(rng, PerExample) else rng


def uniform(like: Tensor, rng: Rng, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform numbers in [low, high) of the shape, type and device of `like` `[B, ...]`."""
    if isinstance(rng, torch.Generator):
        return torch.empty_like(like).uniform_(low, high, generator=rng)
    return _shaped(low + (high - low) * rng.uniform(_size(like)), like)


def normal(like: Tensor, rng: Rng) -> Tensor:
    """Standard normal numbers; for single examples by Box and Muller, in double precision."""
    if isinstance(rng, torch.Generator):
        return torch.empty_like(like).normal_(generator=rng)
    radius = (-2 * torch.log1p(-rng.uniform(_size(like)))).sqrt()
    return _shaped(radius * (2 * math.pi * rng.uniform(_size(like))).cos(), like)


def exponential(like: Tensor, rng: Rng) -> Tensor:
    """Exponential numbers of mean 1."""
    if isinstance(rng, torch.Generator):
        return torch.empty_like(like).exponential_(generator=rng)
    return _shaped(-torch.log1p(-rng.uniform(_size(like))), like)


def make_rng(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def mixed_seed(*parts: int | str) -> int:
    """One seed out of several things. Torch's CPU generator reads 32 bits of a seed, so shifting would lose some."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def seed_of_step(step: int) -> int:
    """For what an objective draws: the same however often it is asked in a step, another for another seed of torch.

    That seed is part of torch's generator, and saved with it.
    """
    return mixed_seed(torch.initial_seed(), step)


_STRIDE = -0x61C8864680B583EB  # 2^64 divided by the golden ratio, as a signed number


def _mixed(z: Tensor) -> Tensor:
    """The finalizer of splitmix64 on int64, whose products wrap around."""
    z = (z ^ _shifted(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shifted(z, 27)) * -0x6B2FB644ECCEEE15
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """To the right with zeros coming in: torch shifts in the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _size(like: Tensor) -> int:
    return like.numel() // max(1, len(like))


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    return values.view(like.shape).to(like.dtype)
