"""Attacks composed of other attacks. `Cycle`, which changes the attack over time, is in the room of schedules."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..core.errors import UserError, need_whole
from ..core.rng import Rng, some, uniform
from ..core.types import Attack, PerExampleLoss, recordable
from .pgd import PGD, CleanStart


@dataclass(frozen=True, slots=True)
class Split:
    """Attacks each example with one of several attacks, drawn at random by share.

    Args:
        parts: Pairs of a share and an attack; the shares are at least 0 and sum to 1.

    Raises:
        UserError: If a share is negative or the shares do not sum to 1.
    """

    parts: tuple[tuple[float, Attack], ...]

    def __post_init__(self) -> None:
        shares = [share for share, _ in self.parts]
        if any(share < 0 for share in shares) or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
            raise UserError(f"the shares of a Split must be at least 0 and sum to 1, unlike {shares}")

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        bounds = torch.tensor([share for share, _ in self.parts], device=x.device).cumsum(0)[:-1]
        owner = (uniform(bounds.new_empty(len(x)), rng)[:, None] >= bounds).sum(1)
        x = x.detach()
        out = x.clone()
        for i, (_, attack) in enumerate(self.parts):
            rows = (owner == i).nonzero().squeeze(1)
            if len(rows):
                out[rows] = attack(loss[rows], x[rows], some(rng, rows))
        return out


@dataclass(frozen=True, slots=True)
class Restarts:
    """Repeats an attack and keeps, for each example, a fooling point or else the point of highest loss.

    Fooled examples take no part in further restarts, so restarts cost less the better the attack is.

    Args:
        attack: The attack to repeat; it should have a random start.
        times: Number of runs, at least 1.

    Raises:
        UserError: If `times` is not a whole number above 0.
    """

    stops_when_fooled: ClassVar[bool] = True

    attack: Attack
    times: int = 10

    def __post_init__(self) -> None:
        need_whole("times", self.times)

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        return keep_worst(lambda rows: self.attack(loss[rows], x[rows], some(rng, rows)), self.times, loss, x)


@dataclass(frozen=True, slots=True)
class Worst:
    """Runs several attacks in turn, each on the examples that are not yet fooled, and keeps the worst points.

    The worst point of an example is a fooling point or else the point of highest loss.

    Args:
        parts: The attacks, in order.
    """

    stops_when_fooled: ClassVar[bool] = True

    parts: tuple[Attack, ...]

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        turn = iter(self.parts)
        return keep_worst(lambda rows: next(turn)(loss[rows], x[rows], some(rng, rows)), len(self.parts), loss, x)


@dataclass(frozen=True, slots=True)
class Highest:
    """Runs several attacks on all examples, and keeps the point of highest loss of each.

    Training with it against attacks in several norms is MAX: the worst norm of each image. `Worst`, for evaluation,
    stops at the first fooling point.

    Args:
        parts: The attacks.

    References:
        MAX: https://arxiv.org/abs/1904.13000.
    """

    parts: tuple[Attack, ...]

    @property
    def recordable(self) -> bool:
        """True if a search never waits for the device."""
        return all(recordable(part) for part in self.parts)

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        return highest(loss, [part(loss, x, rng) for part in self.parts])[0]


@dataclass(frozen=True, slots=True)
class PerView:
    """Attacks each view of the images of a batch with another attack.

    Training with it against attacks in several norms, with as many views, is AVG: the mean over the norms of each
    image. Different from the released code, which updates the weights after each norm, the norms share an update, and
    views are augmented apart. Without views, each part of a batch has an attack of its own.

    Args:
        parts: The attacks, one for each view.

    References:
        AVG: https://arxiv.org/abs/1904.13000.
    """

    parts: tuple[Attack, ...]

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        views = torch.arange(len(x), device=x.device).tensor_split(len(self.parts))
        pairs = [(rows, part) for rows, part in zip(views, self.parts, strict=True) if len(rows)]
        return torch.cat([part(loss[rows], x[rows].detach(), some(rng, rows)) for rows, part in pairs])


@dataclass(frozen=True, slots=True)
class CoarseToFine:
    """Repeats PGD from its last result, each time with steps that are shorter by `factor`.

    The perturbation set is centred on the start of each run: this is for sets that hold all images, as in inversion.

    Args:
        attack: The first run; later runs start from the result of the run before.
        times: Number of runs, at least 1.
        factor: Ratio of the step sizes of one run and the run before, in (0, 1].

    Raises:
        UserError: If `times` is not a whole number above 0, or `factor` is not in (0, 1].
    """

    attack: PGD
    times: int = 4
    factor: float = 0.4

    def __post_init__(self) -> None:
        need_whole("times", self.times)
        if not 0 < self.factor <= 1:
            raise UserError(f"factor = {self.factor:g} is not in (0, 1]: steps must get shorter with each run")

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        first = self.attack
        size = first.step_size if first.step_size is not None else 2.5 * first.threat.eps / first.steps
        x = first(loss, x, rng)
        for i in range(1, self.times):
            x = replace(first, step_size=size * self.factor**i, start=CleanStart())(loss, x, rng)
        return x


def highest(loss: PerExampleLoss, points: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return, for each example, the point of highest loss and that loss; a NaN is the highest, so that it is seen."""
    with torch.no_grad():
        values = torch.stack([loss(z).value for z in points])
    best = values.argmax(0)
    rows = torch.arange(len(best), device=best.device)
    return torch.stack(list(points))[best, rows], values[best, rows]


def keep_worst(run: Callable[[Tensor], Tensor], times: int, loss: PerExampleLoss, x: Tensor) -> Tensor:
    """Call `run` up to `times` times with the rows that are not yet fooled, and keep the worst point of each example.

    A fooling point is the worst, then the point of highest `loss`. An example for which nothing is found keeps `x`.
    """
    x = x.detach()
    out = x.clone()
    rows = torch.arange(len(x), device=x.device)
    highest = torch.full((len(x),), -math.inf, device=x.device)
    for _ in range(times):
        z = run(rows)
        with torch.no_grad():
            value, fooled = loss[rows](z)
        # A NaN loss is kept as the worst, so that the caller sees and refuses it: dropped, the example would pass for
        # robust.
        lost = value.isnan() if fooled is None else fooled | value.isnan()
        value = value.to(highest).masked_fill(lost, math.inf)
        better = value > highest
        out[rows[better]], highest = z[better], torch.where(better, value, highest)
        robust = highest < math.inf
        rows, highest = rows[robust], highest[robust]
        if not len(rows):
            break
    return out
