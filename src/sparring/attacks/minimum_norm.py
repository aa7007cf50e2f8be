"""Minimum-norm attacks: how far an example is from the nearest point that fools."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.errors import UserError, need_whole
from ..core.rng import Rng
from ..core.types import PerExampleLoss, each
from .gradients import value_and_grad
from .losses import named
from .threats import L2


class Closest(NamedTuple):
    """The nearest fooling point of each example and its distance `[B]`; the example itself and inf where none is."""

    points: Tensor
    norm: Tensor

    @classmethod
    def none(cls, x: Tensor) -> "Closest":
        return cls(x.clone(), torch.full((len(x),), math.inf, dtype=x.dtype, device=x.device))

    def keep(self, rows: Tensor, points: Tensor, norm: Tensor) -> None:
        """Takes over, in place, the `points` that are nearer than those known for `rows`."""
        nearer = norm < self.norm[rows]
        self.points[rows[nearer]], self.norm[rows[nearer]] = points[nearer], norm[nearer]


class MinimumNormAttack(Protocol):
    """Finds the nearest fooling point inside [0, 1], however far it is."""

    def closest(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Closest: ...


@dataclass(frozen=True, slots=True)
class DDN:
    """Decoupled direction and norm, L2 (https://arxiv.org/abs/1811.09600): a forward and a backward pass a step.

    The radius of a ball shrinks by `gamma` while its point fools and grows by it while not; the steps along the
    gradient fall from 1 to 0.01 on a cosine. Any loss will do that can tell who is fooled, `CE` for one.
    """

    steps: int = 100
    gamma: float = 0.05
    first_radius: float = 1.0

    def __post_init__(self) -> None:
        need_whole("steps", self.steps)
        if not 0 < self.gamma < 1 or self.first_radius <= 0:
            raise UserError(f"DDN needs gamma in (0, 1) and a radius above 0, unlike {self!r}")

    def closest(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Closest:
        del rng
        x = x.detach()
        found, rows = Closest.none(x), torch.arange(len(x), device=x.device)
        ball = L2(math.sqrt(x[0].numel()))
        delta = torch.zeros_like(x)
        radius = torch.full((len(x),), self.first_radius, dtype=x.dtype, device=x.device)
        for step in range(self.steps):
            z = (x + delta).clamp_(0, 1)
            seen = value_and_grad(loss, z)
            fooled = told(loss, seen.fooled)
            found.keep(rows[fooled], z[fooled], ball.norm(z - x)[fooled])
            length = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
            delta = (z - x) + length * ball.ascent(seen.grad)
            radius = radius * torch.where(fooled, 1 - self.gamma, 1 + self.gamma)
            delta = delta * each(radius / ball.norm(delta).clamp_min(1e-12), delta)
        return found


@dataclass(frozen=True, slots=True)
class CWL2:
    """Carlini and Wagner's attack, L2 (https://arxiv.org/abs/1608.04644), on `Margin`.

    Minimises `|z - x|^2 + c max(-margin, 0)` by Adam over `arctanh`, `searches` times, with a bisection over c for each
    example. It is slow, `searches` x `steps` forward and backward passes, and the oracle for the faster ones.
    """

    steps: int = 1000
    searches: int = 9
    lr: float = 0.01
    first_c: float = 0.01

    def __post_init__(self) -> None:
        need_whole("steps", self.steps)
        need_whole("searches", self.searches)
        if self.lr <= 0 or self.first_c <= 0:
            raise UserError(f"CWL2 needs a step size and a constant above 0, unlike {self!r}")

    def closest(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Closest:
        del rng
        x = x.detach()
        found = Closest.none(x)
        c = torch.full((len(x),), self.first_c, dtype=x.dtype, device=x.device)
        low, high = torch.zeros_like(c), torch.full_like(c, math.inf)
        for _ in range(self.searches):
            fooled = self._descend(loss, x, c, found)
            high = torch.where(fooled, torch.minimum(high, c), high)
            low = torch.where(fooled, low, torch.maximum(low, c))
            c = torch.where(high.isinf(), c * 10, (low + high) / 2)
        return found

    def _descend(self, loss: PerExampleLoss, x: Tensor, c: Tensor, found: Closest) -> Tensor:
        """One minimisation for the constants `c`; who was fooled on the way."""
        ever, rows = torch.zeros_like(c, dtype=torch.bool), torch.arange(len(x), device=x.device)
        hidden = torch.atanh((2 * x - 1) * (1 - 1e-6)).requires_grad_()
        adam = torch.optim.Adam([hidden], lr=self.lr)
        for _ in range(self.steps):
            z = (hidden.tanh() + 1) / 2
            delta = z - x
            seen = value_and_grad(loss, z)
            fooled = told(loss, seen.fooled)
            ever = ever | fooled
            norm = delta.detach().flatten(1).norm(dim=1)
            found.keep(rows[fooled], z.detach()[fooled], norm[fooled])
            uphill = seen.grad * each(c * (seen.value < 0), x)
            hidden.grad = None
            (hidden.grad,) = torch.autograd.grad((delta.square() - uphill * z).sum(), hidden)
            adam.step()
        return ever


def told(loss: PerExampleLoss, fooled: Tensor | None) -> Tensor:
    """Who is fooled. Raises `UserError` if the loss cannot tell."""
    if fooled is None:
        raise UserError(f"a minimum-norm attack needs a loss that tells who is fooled: {named(loss)} does not")
    return fooled
