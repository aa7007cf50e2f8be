"""Minimum-norm attacks: the nearest fooling point of each example and its distance."""

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


class NearestAdversarial(NamedTuple):
    """Nearest fooling point found for each example, and its distance.

    An example without a fooling point has the example itself as its point and inf as its distance.
    """

    points: Tensor
    """Nearest fooling points, of the shape of the examples."""
    norm: Tensor
    """Distances `[B]`, in pixel units and the norm of the attack."""

    @classmethod
    def none(cls, x: Tensor) -> "NearestAdversarial":
        """Return the state before any fooling point is found."""
        return cls(x.clone(), torch.full((len(x),), math.inf, dtype=x.dtype, device=x.device))

    def keep(self, rows: Tensor | slice, fooled: Tensor, points: Tensor, norm: Tensor) -> None:
        """Store, in place, those `points` of `rows` that are `fooled` and nearer than the known ones.

        Where none is known, a point of NaN is stored and stays, or a gradient of NaN would look like robustness.
        Nothing is chosen by a mask: a GPU would have to tell the processor how many there are, which waits.
        """
        known = self.norm[rows]
        nearer = (fooled & (norm < known)) | (norm.isnan() & known.isinf())
        self.points[rows] = points.where(each(nearer, points), self.points[rows])
        self.norm[rows] = norm.where(nearer, known)


class MinimumNormAttack(Protocol):
    """Attack that searches the nearest fooling point inside [0, 1], at any distance.

    `closest(loss, x, rng)` returns a `NearestAdversarial` for examples `x` `[B, C, H, W]`.
    """

    def closest(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> NearestAdversarial: ...


@dataclass(frozen=True, slots=True)
class DDN:
    """Decoupled direction and norm (DDN), an L2 minimum-norm attack with one forward and backward pass per step.

    The radius of a ball shrinks by the share `gamma` while its point fools, and grows by it while it does not; the
    length of the steps along the gradient falls from 1 to 0.01 on a cosine. Any loss that reports fooled examples can
    be used, for example `CE`.

    Args:
        steps: Number of steps, at least 1.
        gamma: Share by which the radius changes in a step, in (0, 1).
        first_radius: Radius of the ball at the first step, in pixel units, above 0.

    Raises:
        UserError: If an argument is out of range; in `closest`, if the loss does not report fooled examples.

    References:
        DDN: https://arxiv.org/abs/1811.09600.
    """

    steps: int = 100
    gamma: float = 0.05
    first_radius: float = 1.0

    def __post_init__(self) -> None:
        need_whole("steps", self.steps)
        if not 0 < self.gamma < 1 or self.first_radius <= 0:
            raise UserError(f"DDN needs gamma in (0, 1) and first_radius above 0, unlike {self!r}")

    def closest(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> NearestAdversarial:
        del rng
        x = x.detach()
        found = NearestAdversarial.none(x)
        ball = L2(math.sqrt(x[0].numel()))
        delta = torch.zeros_like(x)
        radius = torch.full((len(x),), self.first_radius, dtype=x.dtype, device=x.device)
        for step in range(self.steps):
            z = (x + delta).clamp_(0, 1)
            seen = value_and_grad(loss, z)
            fooled = need_fooled(loss, seen.fooled)
            found.keep(slice(None), fooled, z, ball.norm(z - x))
            length = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
            delta = (z - x) + length * ball.ascent(seen.grad)
            radius = radius * torch.where(fooled, 1 - self.gamma, 1 + self.gamma)
            delta = delta * each(radius / ball.norm(delta).clamp_min(1e-12), delta)
        return found


@dataclass(frozen=True, slots=True)
class CWL2:
    """Carlini and Wagner's L2 minimum-norm attack.

    With the loss `Margin`, as in the paper, it minimises `|z - x|^2 + c max(-margin, 0)` by Adam over `arctanh`,
    `searches` times, with a bisection over c for each example. It is slow, `searches` x `steps` forward and backward
    passes, and serves as the reference for the faster attacks.

    Args:
        steps: Number of Adam steps of one minimisation, at least 1.
        searches: Number of minimisations, at least 1; each has another c.
        lr: Learning rate of Adam, above 0.
        first_c: First value of c, above 0.

    Raises:
        UserError: If an argument is out of range; in `closest`, if the loss does not report fooled examples.

    References:
        Carlini and Wagner: https://arxiv.org/abs/1608.04644.
    """

    steps: int = 1000
    searches: int = 9
    lr: float = 0.01
    first_c: float = 0.01

    def __post_init__(self) -> None:
        need_whole("steps", self.steps)
        need_whole("searches", self.searches)
        if self.lr <= 0 or self.first_c <= 0:
            raise UserError(f"CWL2 needs lr and first_c above 0, unlike {self!r}")

    def closest(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> NearestAdversarial:
        del rng
        x = x.detach()
        found = NearestAdversarial.none(x)
        c = torch.full((len(x),), self.first_c, dtype=x.dtype, device=x.device)
        low, high = torch.zeros_like(c), torch.full_like(c, math.inf)
        for _ in range(self.searches):
            fooled = self._descend(loss, x, c, found)
            high = torch.where(fooled, torch.minimum(high, c), high)
            low = torch.where(fooled, low, torch.maximum(low, c))
            c = torch.where(high.isinf(), c * 10, (low + high) / 2)
        return found

    def _descend(self, loss: PerExampleLoss, x: Tensor, c: Tensor, found: NearestAdversarial) -> Tensor:
        """Minimise once for the constants `c`, and return True where an example was fooled at any step."""
        ever = torch.zeros_like(c, dtype=torch.bool)
        hidden = torch.atanh((2 * x - 1) * (1 - 1e-6)).requires_grad_()
        adam = torch.optim.Adam([hidden], lr=self.lr)
        for _ in range(self.steps):
            z = (hidden.tanh() + 1) / 2
            delta = z - x
            seen = value_and_grad(loss, z)
            fooled = need_fooled(loss, seen.fooled)
            ever = ever | fooled
            norm = delta.detach().flatten(1).norm(dim=1)
            found.keep(slice(None), fooled, z.detach(), norm)
            uphill = seen.grad * each(c * ~fooled, x)
            hidden.grad = None
            (hidden.grad,) = torch.autograd.grad((delta.square() - uphill * z).sum(), hidden)
            adam.step()
        return ever


def need_fooled(loss: PerExampleLoss, fooled: Tensor | None) -> Tensor:
    """Return `fooled`, or raise `UserError` if the loss does not report it."""
    if fooled is None:
        raise UserError(
            f"a minimum-norm attack needs a loss that reports which examples are fooled, and {named(loss)} does not: "
            "use Margin"
        )
    return fooled
