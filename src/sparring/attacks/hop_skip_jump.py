"""HopSkipJump: an attack that sees only the predicted class (https://arxiv.org/abs/1904.02144)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.errors import UserError, need_whole
from ..core.rng import Rng, normal, some, uniform
from ..core.types import PerExampleLoss, Threat, each
from .minimum_norm import NearestAdversarial, need_fooled
from .threats import L2, Linf

_TRIES = 100  # random images among which a first one that fools is looked for
_HALVINGS = 12  # of a step that ends where the model is not fooled
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class HopSkipJump:
    """HopSkipJump, a decision-based attack: it asks which class wins and nothing else, neither logits nor gradients.

    It begins at a random image that fools and walks along the decision boundary towards the example. At each step it
    estimates the normal of the boundary from the decisions at random points near it, moves along the normal, and
    bisects back to the boundary. Any loss that reports fooled examples can be used.

    As an attack it stops when a fooling point is inside the threat; `closest` uses all steps. The released code sets
    the first radius of the random points to 0.1 of the range of pixels, and so does this one. It differs in that each
    example draws its own numbers, and in that steps are halved 12 times at most.

    Args:
        threat: Perturbation set: `Linf` or `L2`. Distances are measured in its norm.
        steps: Number of steps along the boundary, at least 1.
        samples: Number of random points at the first step; at step t it is the square root of t times as many.

    Raises:
        UserError: If the threat is another set, or a number is below 1; when it runs, if the loss does not report
            fooled examples.

    References:
        HopSkipJump: https://arxiv.org/abs/1904.02144.
    """

    stops_when_fooled: ClassVar[bool] = True

    threat: Threat
    steps: int = 20
    samples: int = 100

    def __post_init__(self) -> None:
        if not isinstance(self.threat, Linf | L2):
            raise UserError(f"HopSkipJump is defined for Linf and L2, not for {self.threat!r}")
        need_whole("steps", self.steps)
        need_whole("samples", self.samples)

    @property
    def queries(self) -> int:
        """The largest number of decisions on an image of 32 x 32 pixels in colour."""
        bisections = (self.steps + 1) * self.bisections(3 * 32 * 32)
        return _TRIES + bisections + sum(self.samples_at(t) + _HALVINGS for t in range(1, self.steps + 1))

    def samples_at(self, step: int) -> int:
        """Return the number of random points at a step, counted from 1."""
        return int(self.samples * math.sqrt(step))

    def bisections(self, size: int) -> int:
        """Return the number of bisections, for an image of `size` numbers: to the published share of the distance."""
        return min(24, math.ceil(math.log2(size) * (1.5 if isinstance(self.threat, L2) else 2)))

    @torch.no_grad()
    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        found = self._walked(loss, x.detach(), rng, self.threat.eps)
        return self.threat.project(found.points, x.detach())

    @torch.no_grad()
    def closest(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> NearestAdversarial:
        return self._walked(loss, x.detach(), rng, 0.0)

    def _walked(self, loss: PerExampleLoss, x: Tensor, rng: Rng, enough: float) -> NearestAdversarial:
        """Walk towards the examples until a fooling point is no farther than `enough`."""
        found = NearestAdversarial.none(x)
        z, rows = _first(loss, x, rng)
        for step in range(self.steps + 1):
            if not len(rows):
                break
            loss_here, near = loss[rows], x[rows]
            if step:
                z = self._moved(loss_here, near, z, step, some(rng, rows))
            z = self._bisected(loss_here, near, z)
            norm = self.threat.norm(z - near)
            found.keep(rows, torch.ones_like(norm, dtype=torch.bool), z, norm)
            left = norm > enough
            z, rows = z[left], rows[left]
        return found

    def _between(self, x: Tensor, z: Tensor, share: Tensor) -> Tensor:
        """Return the point on the way from `x` to `z` whose distance from `x` is a share of that of `z`, `[B]`."""
        if isinstance(self.threat, L2):
            return x + each(share, x) * (z - x)
        bound = each(share * self.threat.norm(z - x), x)
        return torch.minimum(torch.maximum(z, x - bound), x + bound)

    def _bisected(self, loss: PerExampleLoss, x: Tensor, z: Tensor) -> Tensor:
        """Return points that fool, next to the boundary on the way from `x` to the fooling points `z`."""
        low, high, best = torch.zeros(len(x), dtype=x.dtype, device=x.device), torch.ones_like(x[:, 0, 0, 0]), z
        for _ in range(self.bisections(x[0].numel())):
            middle = (low + high) / 2
            point = self._between(x, z, middle)
            fooled = _fooled(loss, point)
            best = torch.where(each(fooled, x), point, best)
            low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
        return best

    def _moved(self, loss: PerExampleLoss, x: Tensor, z: Tensor, step: int, rng: Rng) -> Tensor:
        """Return fooling points one step along the estimated normal of the boundary; `z` where none is found."""
        distance = self.threat.norm(z - x)
        normals = self._normals(loss, z, self._radius(distance, step, x[0].numel()), step, rng)
        length, moved = distance / math.sqrt(step), z
        todo = torch.ones_like(distance, dtype=torch.bool)
        for _ in range(_HALVINGS):
            point = (z + each(length, z) * normals).clamp_(0, 1)
            fooled = _fooled(loss, point) & todo
            moved = torch.where(each(fooled, z), point, moved)
            todo, length = todo & ~fooled, length / 2
            if not bool(todo.any()):
                break
        return moved

    def _radius(self, distance: Tensor, step: int, size: int) -> Tensor:
        """Return the distance of the random points from the boundary point, `[B]`: in L2, of the whole vector."""
        if step == 1:
            return torch.full_like(distance, 0.1)
        return distance / size

    def _normals(self, loss: PerExampleLoss, z: Tensor, radius: Tensor, step: int, rng: Rng) -> Tensor:
        """Estimate the normals of the boundary at `z`, as unit steps in the norm, from the decisions at random points.

        The mean decision is subtracted, so that it has no influence on the estimate.
        """
        count, sphere = self.samples_at(step), L2(1.0)
        points, weighted, votes = torch.zeros_like(z), torch.zeros_like(z), torch.zeros_like(radius)
        for _ in range(count):
            way = normal(z, rng) if isinstance(self.threat, L2) else uniform(z, rng, -1.0, 1.0)
            way = way / each(sphere.norm(way) + _TINY, way)
            point = (z + each(radius, z) * way).clamp_(0, 1)
            way, vote = (point - z) / each(radius, z), 2.0 * _fooled(loss, point).to(z.dtype) - 1.0
            points, weighted, votes = points + way, weighted + each(vote, way) * way, votes + vote
        mean = votes / count
        alike = mean.abs() == 1
        estimate = torch.where(each(alike, z), each(mean, z) * points, weighted - each(mean, z) * points)
        return self.threat.ascent(estimate)


def _first(loss: PerExampleLoss, x: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """Return random images that fool, with the rows of their examples; an example for which none is found has none."""
    z, todo = x.clone(), torch.arange(len(x), device=x.device)
    for _ in range(_TRIES):
        if not len(todo):
            break
        point = uniform(x[todo], some(rng, todo))
        fooled = _fooled(loss[todo], point)
        z[todo[fooled]] = point[fooled]
        todo = todo[~fooled]
    found = torch.ones(len(x), dtype=torch.bool, device=x.device)
    found[todo] = False
    return z[found], found.nonzero()[:, 0]


def _fooled(loss: PerExampleLoss, z: Tensor) -> Tensor:
    return need_fooled(loss, loss(z).fooled)
