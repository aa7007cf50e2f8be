"""Fast adaptive boundary attack: the nearest point beyond the decision boundary (https://arxiv.org/abs/1907.02044)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.errors import UserError, need_whole
from ..core.rng import Rng
from ..core.types import PerExampleLoss, Threat, each
from .gradients import values_and_grads
from .losses import Boundaries, Microbatched, named
from .minimum_norm import NearestAdversarial
from .pgd import CleanStart, Start
from .threats import L1, L2, Linf, rescaled

_TINY = 1e-12
_NEWTON = 50
_SELDOM = 4  # steps of Newton's method after which a GPU is asked whether all are done; mostly two are enough
_FAR = 1e30


@dataclass(frozen=True, slots=True)
class FAB:
    """Fast adaptive boundary attack (FAB): steps to the linearised decision boundary, biased towards the example.

    From a point beyond the boundary, it moves back towards the example. It needs a loss that gives its differences to
    the boundaries: `Margin(model, y)` for the nearest of all (one backward pass per other class and step), or
    `Margin(model, y, target)` for one (two forward passes and one backward pass per step). As an attack, it drops an
    example once a point within eps fools; `closest` takes every step and finds the nearest fooling point at any
    distance.

    The released code has `bring_back=False` and no final search, and it restarts at random points half of eps away:
    `Restarts(FAB(threat, start=SphereStart(0.5)))`.

    Args:
        threat: Perturbation set: `Linf`, `L2` or `L1`.
        steps: Number of steps, at least 1.
        alpha_max: Largest weight of the projection of the example against that of the current point.
        eta: Factor by which steps overshoot the boundary.
        beta: Factor by which the distance of a fooling point to the example is multiplied after a step.
        final_search: Number of steps along the line from the example to its nearest fooling point; 3 in the paper, 0
            for none. As an attack, FAB takes them only where that point is farther than eps.
        bring_back: If True, a nearest point farther than eps is projected to eps, where it may still fool since steps
            overshoot; if False, such an example is returned unchanged.
        start: Start of the search; the example itself by default.

    Raises:
        UserError: If the threat is another set or a number is out of range; in a call, if `loss` has no `differences`.

    References:
        FAB: https://arxiv.org/abs/1907.02044.
    """

    stops_when_fooled: ClassVar[bool] = True

    threat: Threat
    steps: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    final_search: int = 3
    bring_back: bool = True
    start: Start = CleanStart()  # noqa: RUF009

    def __post_init__(self) -> None:
        if not isinstance(self.threat, Linf | L2 | L1):
            raise UserError(f"FAB is defined for Linf, L2 and L1, not for {self.threat!r}")
        need_whole("steps", self.steps)
        need_whole("final_search", self.final_search, 0)

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        """Return a fooling point within eps, or else, with `bring_back`, the nearest fooling point brought to eps."""
        x = x.detach()
        found = self._search(loss, x, rng, leave_at=self.threat.eps)
        if self.bring_back:
            return self.threat.project(found.points, x)
        return x.where(each(found.norm > self.threat.eps, x), found.points)  # a norm of NaN has to be seen

    def closest(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> NearestAdversarial:
        """Return the nearest fooling point of each example, at any distance."""
        return self._search(loss, x.detach(), rng, leave_at=0.0)

    def _search(self, loss: PerExampleLoss, x: Tensor, rng: Rng, leave_at: float) -> NearestAdversarial:
        if not hasattr(loss, "differences"):
            raise UserError(f"FAB needs a loss that gives its decision boundaries: use Margin, not {named(loss)}")
        found, rows = NearestAdversarial.none(x), torch.arange(len(x), device=x.device)
        near, z = x, self.start(self.threat, x, rng)
        bounds: Boundaries = loss  # type: ignore[assignment]
        for _ in range(self.steps):
            z = self._step(bounds, near, z)
            with torch.no_grad():
                fooled = _fooled(bounds, z)
            found.keep(rows, fooled, z, self.threat.norm(z - near))
            z = (near + self.beta * (z - near)).where(each(fooled, z), z)
            going = (found.norm[rows] > leave_at).nonzero()[:, 0]  # the one place where a step waits for a GPU
            if len(going) < len(rows):
                rows, near, z, bounds = rows[going], near[going], z[going], bounds[going]
                if not len(rows):
                    break
        return self._searched(loss, x, found, leave_at)

    def _step(self, loss: Boundaries, x: Tensor, z: Tensor) -> Tensor:
        """Step from `z` and from the example `x` to just beyond the nearest linearised boundary, inside [0, 1]."""
        if isinstance(loss, Microbatched):  # saves memory: each batch keeps the gradient of one boundary per example
            both = zip(loss.parts(x), loss.parts(z), strict=True)
            return torch.cat([self._step(part, near, there) for (part, near), (_, there) in both])  # type: ignore[arg-type]
        values, grads = values_and_grads(loss, z)
        if values.shape[1] == 1:
            value, w = values[:, 0], grads[:, 0].flatten(1)
        else:
            least = torch.finfo(values.dtype).tiny
            nearest = (values.abs() / _dual(self.threat, grads).clamp_min(least)).argmin(1)
            rows = torch.arange(len(x), device=x.device)
            value, w = values[rows, nearest], grads[rows, nearest].flatten(1)
        gap_of_x = value + (w * (x - z).flatten(1)).sum(1)
        start = torch.cat([z.flatten(1), x.flatten(1)])
        move = to_hyperplane(self.threat, start, w.repeat(2, 1), torch.cat([value, gap_of_x]))
        from_z, from_x = move.view(2, *z.shape)
        near, far = (self.threat.norm(part).clamp_min(1e-8) for part in (from_z, from_x))
        alpha = each((near / (near + far)).clamp_max(self.alpha_max), z)
        return ((z + self.eta * from_z) * (1 - alpha) + (x + self.eta * from_x) * alpha).clamp_(0, 1)

    @torch.no_grad()
    def _searched(
        self, loss: PerExampleLoss, x: Tensor, found: NearestAdversarial, leave_at: float
    ) -> NearestAdversarial:
        """Search the line from each example to its nearest fooling point, as if the loss were linear along it.

        A point that is near enough stays: nearer to the boundary, it may fool an accelerated copy and not the model.
        """
        rows = (found.norm.isfinite() & (found.norm > leave_at)).nonzero()[:, 0]
        if not len(rows) or not self.final_search:
            return found
        loss, inner, outer = loss[rows], x[rows], found.points[rows]
        low = loss(inner).value
        for _ in range(self.final_search):
            high = loss(outer).value
            share = each((-low / (high - low).clamp_min(_TINY)).clamp(0, 1), x)
            middle = inner + share * (outer - inner)
            value, fooled = loss(middle)
            fooled = torch.zeros_like(value, dtype=torch.bool) if fooled is None else fooled
            found.keep(rows, fooled, middle, self.threat.norm(middle - x[rows]))
            beyond = each(fooled, x)
            outer, inner = middle.where(beyond, outer), inner.where(beyond, middle)
            low = torch.where(fooled, low, value)
        return found


def _fooled(loss: PerExampleLoss, z: Tensor) -> Tensor:
    fooled = loss(z).fooled
    assert fooled is not None
    return fooled


def _dual(threat: Threat, grads: Tensor) -> Tensor:
    """Return the dual norm of the gradients, `[B, K]`: the increase of a linear function per unit of the set's norm."""
    flat = grads.flatten(2).abs()
    if isinstance(threat, Linf):
        return flat.sum(2)
    return torch.linalg.vector_norm(flat, dim=2) if isinstance(threat, L2) else flat.amax(2)


def to_hyperplane(threat: Threat, z: Tensor, w: Tensor, gap: Tensor) -> Tensor:
    """Return the smallest move, in the norm of the set, from `z` onto `gap + w . move = 0` that stays in [0, 1].

    `z` (in [0, 1]) and `w` are `[B, D]`, `gap` is `[B]`. Where the hyperplane does not meet [0, 1], the move leads to
    the corner nearest to it. Linf and L2 use Newton's method on a concave, piecewise linear function, which is exact
    and needs no sorting.
    """
    w, gap = rescaled(w, gap)
    way = w.sign() * torch.where(gap >= 0, -1.0, 1.0).to(w)[:, None]
    room = way * (0.5 - z) + 0.5  # 1 - z upwards, z downwards; on the CPU, a comparison would take five times as long
    size, need = w.abs(), gap.abs()[:, None]
    if isinstance(threat, L1):
        return way * _greedy(size, room, need)
    return way * _newton(size, None if isinstance(threat, Linf) else size, room, need)


def _newton(size: Tensor, rate: Tensor | None, room: Tensor, need: Tensor) -> Tensor:
    """Return `min(t * rate, room)` for the least t at which its product with `size` sums to `need`, else all of `room`.

    A `rate` of None is 1.
    """
    gain = size if rate is None else size * rate
    t = need / gain.sum(1, keepdim=True).clamp_min(_TINY)
    every = 1 if size.is_cpu else _SELDOM
    for step in range(_NEWTON):
        reach = t if rate is None else t * rate
        free = (room - reach).clamp_min_(0).sign_()
        lack = need - (size * torch.minimum(reach, room)).sum(1, keepdim=True)
        slope = free.mul_(gain).sum(1, keepdim=True)
        going = (lack > 1e-6 * need).logical_and_(slope > 0)
        if step % every == every - 1 and not bool(going.any()):
            break
        t = t + (lack / slope.clamp_min(_TINY)).where(going, 0.0)  # an example that is done rests, whatever others do
    t = t.masked_fill((slope <= 0) & (lack > 0), _FAR)
    return torch.minimum(t if rate is None else t * rate, room)


def _greedy(size: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """Return a move that uses all the room of the coordinates of largest `size`, until the products sum to `need`."""
    largest, order = size.sort(1, descending=True)
    gain = largest * room.gather(1, order)
    used = torch.minimum((need - (gain.cumsum(1) - gain)).clamp_min(0), gain)
    move = torch.where(used >= gain, room.gather(1, order), used / largest.clamp_min(_TINY))
    move = move * (used > 0)
    return torch.zeros_like(size).scatter_(1, order, move)
