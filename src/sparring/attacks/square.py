"""Square attack: random search with squares, without gradients (https://arxiv.org/abs/1912.00049; L1: 2103.01208)."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..core.errors import UserError, need_whole
from ..core.rng import Rng, some, uniform
from ..core.types import PerExampleLoss, Threat, each
from .threats import L1, L2, Linf

_BLOCK = 50  # queries for which random numbers are drawn at once
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Square:
    """Square attack: random search by one forward pass per query, without gradients.

    A proposal is kept if it increases the loss or fools. AutoAttack maximises `Margin` with it. Each example draws its
    own squares. The released code differs from the paper in three details. Two are the options `rescale` and
    `last_place`, both False there. The third, one square for the whole batch, is not offered, since results would
    depend on the batch.

    Args:
        threat: Perturbation set: `Linf`, `L2` or `L1`.
        queries: Number of queries after the start, at least 1.
        share: Share of the image, in (0, 1], that the first squares cover. It is halved after 10, 50, 200, 500, 1000,
            2000, 4000, 6000 and 8000 of 10,000 queries.
        rescale: If True, that schedule is rescaled to the number of queries.
        last_place: If False, no square is placed at the last row or column.

    Raises:
        UserError: If the threat is another set, or `queries` or `share` is out of range.

    References:
        Square: https://arxiv.org/abs/1912.00049.
        Square for L1: https://arxiv.org/abs/2103.01208.
    """

    stops_when_fooled: ClassVar[bool] = True

    threat: Threat
    queries: int = 5000
    share: float = 0.8
    rescale: bool = True
    last_place: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.threat, Linf | L2 | L1):
            raise UserError(f"Square is defined for Linf, L2 and L1, not for {self.threat!r}")
        need_whole("queries", self.queries)
        if not 0 < self.share <= 1:
            raise UserError(f"Square needs a share in (0, 1], not {self.share:g}")

    @torch.no_grad()
    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        x = x.detach()
        squares: _Squares = _Stripes(self) if isinstance(self.threat, Linf) else _Pyramids(self)
        z = squares.start(x, rng)
        out, rows = z.clone(), torch.arange(len(x), device=x.device)
        value, fooled = loss(z)
        numbers = x[:, :0]
        for query in range(self.queries):
            if fooled is not None and len(gone := fooled.nonzero()[:, 0]):
                out[rows[gone]] = z[gone]
                stay = (~fooled).nonzero()[:, 0]
                rows, x, z, value, numbers, loss = rows[stay], x[stay], z[stay], value[stay], numbers[stay], loss[stay]
            if not len(rows):
                break
            if query % _BLOCK == 0:
                numbers = uniform(x.new_empty(len(x), _BLOCK, squares.numbers(x)), some(rng, rows))
            new = squares.propose(x, z, self.side(query, x), numbers[:, query % _BLOCK])
            seen, fooled = loss(new)
            better = seen > value if fooled is None else (seen > value) | fooled
            z = torch.lerp(z, new, each(better.to(z.dtype), z))  # weights are 0 or 1; faster than `where`
            value = torch.where(better, seen, value)
        out[rows] = z
        return out

    def side(self, query: int, x: Tensor) -> int:
        """Return the side of the square of a query, in pixels."""
        done = query * 10_000 // self.queries if self.rescale else query
        halvings = sum(done > bound for bound in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        height, width = x.shape[2:]
        side = round(math.sqrt(self.share / 2**halvings * height * width))
        return min(max(1, side), height, width)


class _Squares(Protocol):
    """Shape and colours of the squares of one norm."""

    def numbers(self, x: Tensor) -> int:
        """Return the number of uniform random numbers that a proposal takes."""
        ...

    def start(self, x: Tensor, rng: Rng) -> Tensor: ...
    def propose(self, x: Tensor, z: Tensor, side: int, numbers: Tensor) -> Tensor: ...


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0).to(numbers.dtype)


def _places(rules: Square, numbers: Tensor, room: int) -> Tensor:
    """Return the first row or column of a square: 0 to `room`, or to `room` - 1 as in the released code."""
    count = room + rules.last_place
    return (numbers * count).long().clamp_(0, max(0, count - 1))


@dataclass(frozen=True, slots=True)
class _Stripes:
    """Linf: every pixel is at +eps or -eps, first in vertical stripes; a square sets each channel to +eps or -eps."""

    rules: Square

    def numbers(self, x: Tensor) -> int:
        return 2 + x.shape[1]

    def start(self, x: Tensor, rng: Rng) -> Tensor:
        signs = _signs(uniform(x[:, :, :1], rng))
        return (x + self.rules.threat.eps * signs).clamp_(0, 1)

    def propose(self, x: Tensor, z: Tensor, side: int, numbers: Tensor) -> Tensor:
        height, width = x.shape[2:]
        down, across = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        top = _places(self.rules, numbers[:, 0], height - side)[:, None]
        left = _places(self.rules, numbers[:, 1], width - side)[:, None]
        rows = ((down >= top) & (down < top + side)).to(x.dtype)[:, None, :, None]
        columns = ((across >= left) & (across < left + side)).to(x.dtype)[:, None, None, :]
        signs = _signs(numbers[:, 2:])[:, :, None, None]
        return torch.lerp(z, (x + self.rules.threat.eps * signs).clamp_(0, 1), rows * columns)


@dataclass(frozen=True, slots=True)
class _Pyramids:
    """L2 and L1: a proposal moves mass from one window to another and adds two pyramids of opposite sign there."""

    rules: Square

    @property
    def _order(self) -> int:
        return 2 if isinstance(self.rules.threat, L2) else 1

    def numbers(self, x: Tensor) -> int:
        return 5 + x.shape[1]

    def start(self, x: Tensor, rng: Rng) -> Tensor:
        """Start at a grid of about 5 x 5 pyramids."""
        height, width = x.shape[2:]
        side, delta = max(1, height // 5), torch.zeros_like(x)
        first = (height - 5 * side) // 2 if height >= 5 else 0
        for top in range(first, height - side + 1, side):
            for left in range(first, width - side + 1, side):
                numbers = uniform(x.new_empty(len(x), 1 + x.shape[1]), rng)
                delta[:, :, top : top + side, left : left + side] = self._pyramids(side, numbers)
        return self._in_ball(x, delta)

    def propose(self, x: Tensor, z: Tensor, side: int, numbers: Tensor) -> Tensor:
        height, width = x.shape[2:]
        side = min(max(3, side) | 1, height, width)
        delta = (z - x).flatten(2)
        tops, lefts = (_places(self.rules, numbers[:, i : i + 2], room - side) for i, room in ((0, height), (2, width)))
        here, there = (self._window(tops[:, i], lefts[:, i], side, x) for i in (0, 1))
        old = delta.gather(2, here)
        spent = self._norm(delta.flatten(1)[:, None])
        union = torch.zeros_like(delta).scatter_(2, here, 1.0).scatter_(2, there, 1.0)
        freed = self._norm(delta * union)
        new = self._pyramids(side, numbers[:, 4:]).flatten(2) + old / (self._norm(old) + _TINY)
        new = new / (self._norm(new) + _TINY) * self._budget(spent, freed, x.shape[1])
        delta = delta.scatter(2, there, 0.0).scatter(2, here, new)
        return self._in_ball(x, delta.view_as(x))

    def _window(self, top: Tensor, left: Tensor, side: int, x: Tensor) -> Tensor:
        """Return the flat indices of a square's pixels, `[B, C, side * side]`."""
        steps = torch.arange(side, device=x.device)
        places = (top[:, None] + steps)[:, :, None] * x.shape[3] + (left[:, None] + steps)[:, None, :]
        return places.flatten(1)[:, None].expand(-1, x.shape[1], -1)

    def _budget(self, spent: Tensor, freed: Tensor, channels: int) -> Tensor:
        """Return the norm that the new window may have in each channel."""
        eps = self.rules.threat.eps
        if self._order == 2:
            return ((eps**2 - spent**2).clamp_min(0) / channels + freed**2).sqrt()
        return ((eps - spent).clamp_min(0) / channels + freed) * channels

    def _norm(self, t: Tensor) -> Tensor:
        return torch.linalg.vector_norm(t, ord=self._order, dim=2, keepdim=True)

    def _pyramids(self, side: int, numbers: Tensor) -> Tensor:
        """Return two pyramids, side by side or one above the other, with a sign per channel: `[B, C, side, side]`."""
        shape = _two_pyramids(side, self._order, numbers.device, numbers.dtype)
        turned = torch.where((numbers[:, :1] > 0.5)[:, None, None], shape.T, shape)
        return turned * _signs(numbers[:, 1:])[:, :, None, None]

    def _in_ball(self, x: Tensor, delta: Tensor) -> Tensor:
        threat = self.rules.threat
        if isinstance(threat, L1):
            return threat.project(x + delta, x)
        return (x + threat.eps * delta / each(threat.norm(delta) + _TINY, delta)).clamp_(0, 1)


@lru_cache(maxsize=64)
def _two_pyramids(side: int, order: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return two pyramids of opposite sign, the positive one above the negative one, with unit norm."""
    upper = side // 2
    halves = [sign * _pyramid(rows, side, order) for sign, rows in ((1, upper), (-1, side - upper)) if rows]
    both = torch.cat(halves)
    return (both / torch.linalg.vector_norm(both, ord=order)).to(device, dtype)


def _pyramid(height: int, width: int, order: int) -> Tensor:
    """Return rings about the centre: the value at distance d is the sum of 1 / (k + 1)^(2 or 4) over k >= d."""
    count = max(height // 2, width // 2) + 1
    power = 2 if order == 2 else 4
    rings = (1 / torch.arange(1, count + 1, dtype=torch.float64) ** power).flip(0).cumsum(0).flip(0)
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    heights = rings[torch.maximum(down[:, None], across[None]).clamp_max(count - 1)]
    return heights / torch.linalg.vector_norm(heights, ord=order)
