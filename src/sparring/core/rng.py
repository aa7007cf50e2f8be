"""Random numbers, drawn for each example separately or for a batch.

Training and evaluation draw from `PerExample`, where every example has its own stream, so that the order, the batch
size, the number of processes and an interruption do not change what an example draws. A `torch.Generator` will do where
none of this matters. Attacks and threats work with both: they call `uniform`, `normal` and `exponential`, and pass on
`some(rng, rows)` for a part of the examples.
"""

import hashlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

import torch
from torch import Tensor

from .devices import finest


class PerExample:
    """A separate stream of random numbers for each example.

    The generator is counter-based (the mixing function of splitmix64): a number depends on the seed, the index of the
    example, how often this example has drawn, and the position in the draw, and on nothing else.

    Args:
        seed: Seed of all streams.
        index: Index of each example, `[B]` (int64), from 0 on, which selects its stream.
        together: Whether `uniform_of_batch` draws one number for all examples, as in training, instead of one for each.

    References:
        splitmix64: https://doi.org/10.1145/2660193.2660195.
    """

    def __init__(self, seed: int, index: Tensor, together: bool = False) -> None:
        self._keys = _mixed(_mixed(index + 1) + seed)
        self._counts = torch.zeros_like(index)
        self._rows = torch.arange(len(index), device=index.device)
        self.batch = PerExample(seed, torch.full_like(index[:1], -1)) if together else None
        """The stream that all examples share; None if they share none."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Tensor) -> "PerExample":
        """Return the streams of some examples; drawing from them advances the original streams too."""
        some = object.__new__(PerExample)
        some._keys, some._counts, some._rows, some.batch = self._keys, self._counts, self._rows[rows], self.batch
        return some

    def uniform(self, size: int) -> Tensor:
        """Return numbers in [0, 1), `[B, size]`: with 53 random bits in float64, or with 24 in float32."""
        counts = self._counts[self._rows]
        self._counts[self._rows] += 1
        keys, device = _mixed(self._keys[self._rows] + counts * _STRIDE)[:, None], counts.device
        place = torch.arange(size, device=device) * _STRIDE
        kind = finest(device)
        count = 53 if kind == torch.float64 else 24  # what the type can hold
        out = torch.empty(len(keys), size, dtype=kind, device=device)
        at_once = max(1, _IN_CACHE // max(1, size)) if device.type == "cpu" else max(1, len(keys))
        for some, drawn in zip(keys.split(at_once), out.split(at_once), strict=True):
            bits, spare = some + place, torch.empty(len(some), size, dtype=torch.int64, device=device)
            drawn.copy_(_shifted(_mix_(bits, spare), 64 - count, spare))
        return out.mul_(2.0**-count)


class Drawn:
    """Random numbers that are drawn before the code that uses them, which may then be recorded and replayed.

    The first time it is used it draws from `source`. After `rewind` it gives the same numbers again, at the same place
    in memory, where `refill` puts new ones.

    Args:
        source: Source of the random numbers.
    """

    def __init__(self, source: "Rng") -> None:
        self.source = source
        self._held: list[tuple[Callable[[Rng], Tensor], Tensor]] = []
        self._next: int | None = None

    def take(self, draw: "Callable[[Rng], Tensor]") -> Tensor:
        """Return the numbers that `draw` draws."""
        if self._next is None:
            held = draw(self.source)
            self._held.append((draw, held.clone()))
            return held
        self._next += 1
        return self._held[self._next - 1][1]

    def rewind(self) -> None:
        """Begin again with the first numbers."""
        self._next = 0

    def refill(self, source: "Rng") -> None:
        """Draw new numbers, in the order in which the first were drawn."""
        for draw, held in self._held:
            held.copy_(draw(source))


Rng: TypeAlias = torch.Generator | PerExample | Drawn


def some(rng: Rng, rows: Tensor) -> Rng:
    """Selects the random numbers of some examples.

    Args:
        rng: Random numbers of a batch.
        rows: Rows of the examples, as an index or a mask.

    Returns:
        The streams of these examples; a `torch.Generator` is returned as it is.
    """
    if isinstance(rng, Drawn) and not of_batch(rng):
        raise RuntimeError("a recorded search takes no rows out of a batch")
    return rng[rows] if isinstance(rng, PerExample) else rng


def of_batch(rng: Rng) -> bool:
    """Tells whether the examples of a batch have no streams of their own.

    Args:
        rng: Random numbers of a batch.

    Returns:
        True for a `torch.Generator`, False for `PerExample`.
    """
    return of_batch(rng.source) if isinstance(rng, Drawn) else isinstance(rng, torch.Generator)


def uniform_of_batch(like: Tensor, rng: Rng) -> Tensor:
    """Draws uniform numbers for a whole batch in training, and for each example in evaluation.

    Args:
        like: Tensor `[B, ...]` that gives the shape, type and device.
        rng: Source of the random numbers.

    Returns:
        Numbers in [0, 1), `[B, ...]`, the same in every row in training.
    """
    if isinstance(rng, Drawn):
        like = like.detach()
        return rng.take(lambda source: uniform_of_batch(like, source))
    if isinstance(rng, PerExample) and rng.batch is None:
        return uniform(like, rng)
    return uniform(like[:1], rng.batch if isinstance(rng, PerExample) and rng.batch else rng).expand_as(like)


def integers(count: int, high: int, rng: Rng, device: torch.device) -> Tensor:
    """Draws whole numbers.

    Args:
        count: Number of examples, B.
        high: Upper bound, excluded.
        rng: Source of the random numbers.
        device: Device of the numbers.

    Returns:
        Numbers in 0 .. `high` - 1, `[B]` (int64).
    """
    return (uniform(torch.empty(count, dtype=finest(device), device=device), rng) * high).long().clamp_(max=high - 1)


def uniform(like: Tensor, rng: Rng, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draws uniform numbers.

    Args:
        like: Tensor `[B, ...]` that gives the shape, type and device.
        rng: Source of the random numbers.
        low: Lower bound, included.
        high: Upper bound, excluded.

    Returns:
        Numbers in [low, high), `[B, ...]`.
    """
    if isinstance(rng, Drawn):
        like = like.detach()
        return rng.take(lambda source: uniform(like, source, low, high))
    if isinstance(rng, torch.Generator):
        return torch.empty_like(like).uniform_(low, high, generator=rng)
    return _shaped(low + (high - low) * rng.uniform(_size(like)), like)


def normal(like: Tensor, rng: Rng) -> Tensor:
    """Draws standard normal numbers.

    With `PerExample` they are made by the Box-Muller method, in float64 where the device has it.

    Args:
        like: Tensor `[B, ...]` that gives the shape, type and device.
        rng: Source of the random numbers.

    Returns:
        Numbers of mean 0 and variance 1, `[B, ...]`.
    """
    if isinstance(rng, Drawn):
        like = like.detach()
        return rng.take(lambda source: normal(like, source))
    if isinstance(rng, torch.Generator):
        return torch.empty_like(like).normal_(generator=rng)
    radius = (-2 * torch.log1p(-rng.uniform(_size(like)))).sqrt()
    return _shaped(radius * (2 * math.pi * rng.uniform(_size(like))).cos(), like)


def exponential(like: Tensor, rng: Rng) -> Tensor:
    """Draws exponential numbers of mean 1.

    Args:
        like: Tensor `[B, ...]` that gives the shape, type and device.
        rng: Source of the random numbers.

    Returns:
        Numbers of at least 0 with mean 1, `[B, ...]`.
    """
    if isinstance(rng, Drawn):
        like = like.detach()
        return rng.take(lambda source: exponential(like, source))
    if isinstance(rng, torch.Generator):
        return torch.empty_like(like).exponential_(generator=rng)
    return _shaped(-torch.log1p(-rng.uniform(_size(like))), like)


def make_rng(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Makes a torch generator from a seed.

    Args:
        seed: The seed.
        device: Device of the tensors that the generator will fill.

    Returns:
        The seeded generator.
    """
    return torch.Generator(device).manual_seed(seed)


def draws_kept(device: torch.device) -> AbstractContextManager[None]:
    """Keep what is drawn within the context from torch's own generators from changing what is drawn after it.

    Args:
        device: Device whose generator is kept, beside that of the CPU.

    Returns:
        A context manager; after it, the generators are in the state from before.
    """
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def seed_draws(seed: int, device: torch.device) -> None:
    """Seeds torch's own generators that computations on a device draw from: the CPU's, and for a GPU those of all.

    For each kind of device that is missing, `torch.manual_seed` keeps a call with its stack trace, which takes up to a
    millisecond.

    Args:
        seed: The seed.
        device: Device of the computations.
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


def mixed_seed(*parts: int | str) -> int:
    """Makes one seed from several numbers and words.

    The parts are hashed, because torch's CPU generator reads only 32 bits of a seed: shifting would lose some.

    Args:
        *parts: Numbers and words that decide the seed.

    Returns:
        A seed of 32 bits.
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


_STRIDE = -0x61C8864680B583EB  # 2^64 divided by the golden ratio, as a signed number


_IN_CACHE = 2**15
"""Number of numbers that a processor mixes at a time; more at once are slower, as they do not stay in its cache."""


def _mixed(z: Tensor) -> Tensor:
    """Apply the finalizer of splitmix64 to int64 numbers, whose products wrap around."""
    return _mix_(z.clone(), torch.empty_like(z))


def _mix_(z: Tensor, spare: Tensor) -> Tensor:
    z.bitwise_xor_(_shifted(z, 30, spare)).mul_(-0x40A7B892E31B1A47)
    z.bitwise_xor_(_shifted(z, 27, spare)).mul_(-0x6B2FB644ECCEEE15)
    return z.bitwise_xor_(_shifted(z, 31, spare))


def _shifted(z: Tensor, by: int, out: Tensor) -> Tensor:
    """Shift to the right and fill with zeros; torch's own shift fills with the sign bit."""
    return torch.bitwise_right_shift(z, by, out=out).bitwise_and_((1 << (64 - by)) - 1)


def _size(like: Tensor) -> int:
    return like.numel() // max(1, len(like))


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    return values.view(like.shape).to(like.dtype)
