"""Attacks made of attacks. `Cycle`, which changes the attack over time, is a schedule and lives with those."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.errors import UserError, need_whole
from ..core.rng import Rng, some, uniform
from ..core.types import Attack, PerExampleLoss
from .pgd import PGD, CleanStart


@dataclass(frozen=True, slots=True)
class Split:
    """Sends each example to one of several attacks, drawn by share; the shares sum to one."""

    parts: tuple[tuple[float, Attack], ...]

    def __post_init__(self) -> None:
        shares = [share for share, _ in self.parts]
        if any(share < 0 for share in shares) or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
            raise UserError(f"the shares of a split are not negative and sum to 1, unlike {shares}")

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
    """Repeats an attack and keeps, for each example, a point that fools or else the one of highest loss.

    Examples that are fooled take no further part, so restarts cost less the better the attack is.
    """

    attack: Attack
    times: int = 10

    def __post_init__(self) -> None:
        need_whole("times", self.times)

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        return keep_worst(lambda rows: self.attack(loss[rows], x[rows], some(rng, rows)), self.times, loss, x)


@dataclass(frozen=True, slots=True)
class Worst:
    """Each attack in turn on the examples that still stand; per example the worst point found."""

    parts: tuple[Attack, ...]

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        turn = iter(self.parts)
        return keep_worst(lambda rows: next(turn)(loss[rows], x[rows], some(rng, rows)), len(self.parts), loss, x)


@dataclass(frozen=True, slots=True)
class CoarseToFine:
    """PGD again and again from where it ended, each time with steps `factor` as long.

    The set lies around each beginning: this is for sets that hold all images, as inversions search.
    """

    attack: PGD
    times: int = 4
    factor: float = 0.4

    def __post_init__(self) -> None:
        need_whole("times", self.times)
        if not 0 < self.factor <= 1:
            raise UserError(f"factor = {self.factor:g} is not in (0, 1]: steps get shorter each time")

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        first = self.attack
        size = first.step_size if first.step_size is not None else 2.5 * first.threat.eps / first.steps
        x = first(loss, x, rng)
        for i in range(1, self.times):
            x = replace(first, step_size=size * self.factor**i, start=CleanStart())(loss, x, rng)
        return x


def keep_worst(run: Callable[[Tensor], Tensor], times: int, loss: PerExampleLoss, x: Tensor) -> Tensor:
    """Calls `run` so many times with the rows that still stand, and keeps the worst point of each example.

    A point that fools is the worst, then the one of highest `loss`. `x` is where nothing is found.
    """
    x = x.detach()
    out = x.clone()
    rows = torch.arange(len(x), device=x.device)
    highest = torch.full((len(x),), -math.inf, device=x.device)
    for _ in range(times):
        z = run(rows)
        with torch.no_grad():
            value, fooled = loss[rows](z)
        # NaN is kept as the worst, to be seen and refused: left out, it would pass for an example that stands
        lost = value.isnan() if fooled is None else fooled | value.isnan()
        value = value.to(highest).masked_fill(lost, math.inf)
        better = value > highest
        out[rows[better]], highest = z[better], torch.where(better, value, highest)
        standing = highest < math.inf
        rows, highest = rows[standing], highest[standing]
        if not len(rows):
            break
    return out
