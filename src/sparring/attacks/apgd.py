"""Auto-PGD: gradient ascent with adaptive step sizes (https://arxiv.org/abs/2003.01690, Linf and L2).

For L1, the steps are sparse and the schedule is a different one (https://arxiv.org/abs/2103.01208). The examples of a
batch are attacked in parallel, independently of each other, and leave the batch when they are fooled.
"""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from ..core.errors import UserError, need_whole
from ..core.rng import Rng, normal
from ..core.types import PerExampleLoss, Threat, each
from .gradients import ValueAndGrad, value_and_grad
from .pgd import SphereStart, Start
from .threats import L1, need_threat


def checkpoints(steps: int) -> list[int]:
    """Return the steps after which the step size is reviewed: 22, 41, 57, 70, 80, 87, 93 and 99 of 100."""
    shares = [0, 22]
    while shares[-1] < 100:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 3, 6))
    return sorted({-(-share * steps // 100) for share in shares[1:-1]})


@dataclass(frozen=True, slots=True)
class APGD:
    """Auto-PGD with at most `steps` + 1 forward and backward passes (L1: `steps` + 3).

    An example leaves the batch at its first fooling point; an example that is never fooled gets its point of highest
    loss. The released code differs from the paper in three details of when a step is halved; they are the options
    `ties_halve`, `first_from_zero` and `first_no_stall`. It also rounds the numbers of steps between reviews down, to
    at least 1, where the paper rounds the steps of the reviews up, as here; both are the same for up to 4 steps and for
    100. L1 has no momentum, and for it `rho`, `start` and these options do not apply.

    Args:
        threat: Perturbation set.
        steps: Number of steps, at least 1.
        rho: Share of the steps since the last checkpoint, in (0, 1), that must increase the loss; with fewer, the step
            size is halved.
        start: Start of the search for Linf and L2; a random direction of length eps by default.
        to_the_end: If True, every example takes all steps and gets its point of highest loss.
        ties_halve: If True, a step is also halved when exactly `rho` of the steps increased the loss.
        first_from_zero: If True, the first step counts as an increase if its loss is positive.
        first_no_stall: If True, a best loss that has stalled does not halve the step at the first checkpoint.

    Raises:
        UserError: If `threat` is not a set, `steps` is not a whole number above 0, or `rho` is not in (0, 1).

    References:
        Auto-PGD: https://arxiv.org/abs/2003.01690.
        Auto-PGD for L1: https://arxiv.org/abs/2103.01208.
    """

    threat: Threat
    steps: int = 100
    rho: float = 0.75
    start: Start = field(default_factory=SphereStart)
    to_the_end: bool = False
    ties_halve: bool = False
    first_from_zero: bool = False
    first_no_stall: bool = False

    def __post_init__(self) -> None:
        need_threat(self.threat)
        need_whole("steps", self.steps)
        if not 0 < self.rho < 1:
            raise UserError(
                f"rho = {self.rho:g} is not in (0, 1): it is the share of steps that must increase the loss"
            )

    @property
    def stops_when_fooled(self) -> bool:
        """True if an example takes no further steps once it is fooled, so that its loss is not the largest."""
        return not self.to_the_end

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        x = x.detach()
        if isinstance(self.threat, L1):
            return _sparse(self.threat, self.steps, self.to_the_end, loss, x, rng)
        z = self.start(self.threat, x, rng)
        path = _Momentum.begin(self, x, z, value_and_grad(loss, z))
        return _climb(loss, path, self.steps, frozenset(checkpoints(self.steps)), leaving=not self.to_the_end)


class _Search(Protocol):
    """State of a search for a batch. All tensors are `[B, ...]`; `path[rows]` is the state of some."""

    @property
    def z(self) -> Tensor: ...
    @property
    def best(self) -> Tensor: ...
    @property
    def first_fooled(self) -> Tensor | None: ...
    def move(self) -> Tensor: ...
    def see(self, z: Tensor, seen: ValueAndGrad) -> None: ...
    def adapt(self) -> None: ...
    def __getitem__(self, rows: Tensor) -> Self: ...


def _climb(loss: PerExampleLoss, path: _Search, steps: int, checks: frozenset[int], leaving: bool) -> Tensor:
    """Return the first fooling point of each example, or else its best; fooled examples leave, to save passes."""
    out, rows = path.best.clone(), torch.arange(len(path.z), device=path.z.device)
    z, fooled = path.z, path.first_fooled
    for step in range(steps + 1):
        if leaving and fooled is not None and len(gone := fooled.nonzero()[:, 0]):
            stay = (~fooled).nonzero()[:, 0]
            out[rows[gone]] = z[gone]
            rows, loss, path = rows[stay], loss[stay], path[stay]
        if step == steps or not len(rows):
            break
        if step in checks:
            path.adapt()
        z = path.move()
        seen = value_and_grad(loss, z)
        path.see(z, seen)
        fooled = seen.fooled
    out[rows] = path.best
    return out


@dataclass(slots=True)
class _Path:
    """State that both kinds of search share."""

    x: Tensor
    z: Tensor
    grad: Tensor
    best: Tensor
    best_grad: Tensor
    best_value: Tensor
    size: Tensor
    """Length of the next step, `[B, 1, ...]`."""
    first_fooled: Tensor | None

    def __getitem__(self, rows: Tensor) -> Self:
        parts = (getattr(self, f.name) for f in fields(self))
        return type(self)(*(part[rows] if isinstance(part, Tensor) else part for part in parts))

    def _keep_best(self, z: Tensor, seen: ValueAndGrad) -> None:
        better = (seen.value > self.best_value) | seen.value.isnan()  # a loss of NaN must not look like robustness
        self.best_value = seen.value.where(better, self.best_value)
        better = each(better, z)
        self.best = z.where(better, self.best)
        self.best_grad = seen.grad.where(better, self.best_grad)

    def _go_back(self, rows: Tensor) -> None:
        rows = each(rows, self.z)
        self.z = self.best.where(rows, self.z)
        self.grad = self.best_grad.where(rows, self.grad)


@dataclass(slots=True)
class _Momentum(_Path):
    """Search for Linf and L2, with momentum."""

    rules: APGD
    old: Tensor
    value: Tensor
    """Loss at the last point, with which the loss at the next is compared."""
    ups: Tensor
    """Number of steps since the last checkpoint that increased the loss."""
    steps: int
    window: int
    """Number of steps since the last checkpoint."""
    marked: Tensor
    """Best loss at the last checkpoint."""
    halved: Tensor
    """True where the step was halved at the last checkpoint."""

    @classmethod
    def begin(cls, rules: APGD, x: Tensor, z: Tensor, seen: ValueAndGrad) -> "_Momentum":
        value = seen.value
        size = torch.full_like(each(value, x), 2 * rules.threat.eps)
        before = torch.zeros_like(value) if rules.first_from_zero else value
        halved = torch.full_like(value, rules.first_no_stall, dtype=torch.bool)
        ups = torch.zeros_like(value)
        best = (z, seen.grad, value)
        return cls(x, z, seen.grad, *best, size, seen.fooled, rules, z, before, ups, 0, 0, value, halved)

    def move(self) -> Tensor:
        threat, ahead = self.rules.threat, 0.75 if self.steps else 1.0
        target = threat.project(self.z + self.size * threat.ascent(self.grad), self.x)
        carried = self.z + ahead * (target - self.z) + (1 - ahead) * (self.z - self.old)
        return threat.project(carried, self.x)

    def see(self, z: Tensor, seen: ValueAndGrad) -> None:
        self._keep_best(z, seen)
        self.ups = self.ups + (seen.value > self.value)
        self.steps, self.window = self.steps + 1, self.window + 1
        self.old, self.z, self.grad, self.value = self.z, z, seen.grad, seen.value

    def adapt(self) -> None:
        """Halve the step if too few steps increased the loss, or if the best loss stalled and was not just halved."""
        enough = self.rules.rho * self.window
        too_few = self.ups <= enough if self.rules.ties_halve else self.ups < enough
        self.halved = too_few | (~self.halved & (self.best_value <= self.marked))
        self.marked, self.ups, self.window = self.best_value, torch.zeros_like(self.ups), 0
        self.size = torch.where(each(self.halved, self.size), self.size / 2, self.size)
        self._go_back(self.halved)


# -- L1: sparse steps; their sparsity follows that of the best point


def _sparse(threat: L1, steps: int, to_the_end: bool, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
    """Take 30 % of the steps in the ball of 3 eps, 30 % in that of 2 eps and the rest in that of eps.

    Only fooling points of the last phase count, since those of the others may lie outside the set.
    """
    early = math.ceil(0.3 * steps)
    phases = ((3, early), (2, early), (1, steps - 2 * early)) if steps - 2 * early > 0 else ((1, steps),)
    z = x + normal(x, rng)
    for factor, count in phases:
        ball = replace(threat, eps=min(factor * threat.eps, float(x[0].numel())))
        z = ball.project(z, x)
        path = _Sparse.begin(ball, x, z, value_and_grad(loss, z))
        every = max(1, int(0.04 * count))
        leaving = factor == 1 and not to_the_end
        z = _climb(loss, path, count, frozenset(range(every, count, every)), leaving)
    return z


@dataclass(slots=True)
class _Sparse(_Path):
    """Search for L1, with sparse steps."""

    ball: L1
    support: Tensor
    """Number of pixels changed in the best point at the last checkpoint."""
    share: Tensor
    """Share of the pixels that a step moves."""

    @classmethod
    def begin(cls, ball: L1, x: Tensor, z: Tensor, seen: ValueAndGrad) -> "_Sparse":
        size = torch.full_like(each(seen.value, x), ball.eps)
        support = _support(z - x)
        best = (z, seen.grad, seen.value)
        return cls(x, z, seen.grad, *best, size, seen.fooled, ball, support, support / x[0].numel() / 1.5)

    def move(self) -> Tensor:
        steepest = self.grad.flatten(1).abs()
        count = steepest.shape[1]
        place = ((1 - self.share) * count).clamp(0, count - 1).long()
        least = steepest.sort(1).values.gather(1, place[:, None])
        step = self.grad.sign() * each((steepest >= least), steepest).view_as(self.grad)
        step = step / (each(self.ball.norm(step), step) + 1e-10)
        return self.ball.project(self.z + self.size * (step + 0 * self.grad), self.x)  # NaN stays NaN

    def see(self, z: Tensor, seen: ValueAndGrad) -> None:
        self._keep_best(z, seen)
        self.z, self.grad = z, seen.grad

    def adapt(self) -> None:
        """Return to the best point with full steps where it became sparser; shorten the steps elsewhere."""
        support = _support(self.best - self.x)
        sparser = support / self.support.clamp_min(1) < 0.95
        shorter = (self.size / 1.5).clamp(self.ball.eps / 10, self.ball.eps)
        self.size = torch.where(each(sparser, self.size), torch.full_like(self.size, self.ball.eps), shorter)
        self.share, self.support = support / self.x[0].numel() / 1.5, support
        self._go_back(sparser)


def _support(delta: Tensor) -> Tensor:
    return (delta != 0).flatten(1).sum(1).to(delta.dtype)
