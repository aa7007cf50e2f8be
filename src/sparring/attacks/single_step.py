"""Attacks of one step, or of a few gradients at one stage, made for training. None is meant to measure robustness."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.errors import UserError, need_whole
from ..core.rng import Rng, uniform
from ..core.types import PerExampleLoss
from .gradients import value_and_grad
from .pgd import parse_step_size
from .threats import Linf


@dataclass(frozen=True, slots=True)
class NFGSM:
    """One step of length `step_size` (eps if left out) from uniform noise of size `noise` x eps.

    https://arxiv.org/abs/2202.01181. It leaves the ball on purpose: the perturbation reaches
    `noise` x eps + `step_size`, 3 eps by default, inside [0, 1]. Use it to train, never to evaluate.
    """

    threat: Linf
    noise: float = 2.0
    step_size: float | None = None
    if TYPE_CHECKING:

        def __init__(self, threat: Linf, noise: float = 2.0, step_size: float | str | None = None) -> None: ...

    def __post_init__(self) -> None:
        _need_linf("N-FGSM", self.threat)
        if self.step_size is not None:
            object.__setattr__(self, "step_size", parse_step_size(self.step_size, self.threat))

    @property
    def reach(self) -> Linf:
        """The set that its points lie in."""
        return Linf(min(1.0, self.noise * self.threat.eps + self._length))

    @property
    def _length(self) -> float:
        return self.threat.eps if self.step_size is None else self.step_size

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        x, width = x.detach(), self.noise * self.threat.eps
        z = (x + uniform(x, rng, -width, width)).clamp_(0, 1)
        return (z + self._length * self.threat.ascent(value_and_grad(loss, z).grad)).clamp_(0, 1)


@dataclass(frozen=True, slots=True)
class ZeroGrad:
    """FGSM from a random point, where the smallest gradients of each image do not move their pixels.

    https://arxiv.org/abs/2103.15476. `quantile` is the share of an image's pixels that stay: 0.35 for CIFAR-10, 0.45
    for CIFAR-100, 0.7 for SVHN in that paper's code. `step_size` is 2 eps if left out.
    """

    threat: Linf
    quantile: float = 0.35
    step_size: float | None = None
    if TYPE_CHECKING:

        def __init__(self, threat: Linf, quantile: float = 0.35, step_size: float | str | None = None) -> None: ...

    def __post_init__(self) -> None:
        _need_linf("ZeroGrad", self.threat)
        if not 0 <= self.quantile < 1:
            raise UserError(f"quantile = {self.quantile:g} is not in [0, 1): some pixels must move")
        if self.step_size is not None:
            object.__setattr__(self, "step_size", parse_step_size(self.step_size, self.threat))

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        x = x.detach()
        z = self.threat.sample(x, rng)
        grad = value_and_grad(loss, z).grad.flatten(1)
        least = grad.abs().kthvalue(int(self.quantile * grad.shape[1]) + 1, dim=1, keepdim=True).values
        kept = torch.where(grad.abs() < least, 0.0, grad).view_as(x)
        size = 2 * self.threat.eps if self.step_size is None else self.step_size
        return self.threat.project(z + size * self.threat.ascent(kept), x)


@dataclass(frozen=True, slots=True)
class MultiGrad:
    """One step from the image along the signs on which the gradients at several random points agree.

    https://arxiv.org/abs/2103.15476: `points` 3, all of which must agree; `step_size` is 2 eps if left out, so every
    pixel that moves goes to the border of the set.
    """

    threat: Linf
    points: int = 3
    step_size: float | None = None
    if TYPE_CHECKING:

        def __init__(self, threat: Linf, points: int = 3, step_size: float | str | None = None) -> None: ...

    def __post_init__(self) -> None:
        _need_linf("MultiGrad", self.threat)
        need_whole("points", self.points)
        if self.step_size is not None:
            object.__setattr__(self, "step_size", parse_step_size(self.step_size, self.threat))

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        x = x.detach()
        grads = [value_and_grad(loss, self.threat.sample(x, rng)).grad for _ in range(self.points)]
        votes = torch.stack([self.threat.ascent(grad) for grad in grads]).sum(0)
        agreed = torch.where(votes.abs() < self.points, 0.0, votes / self.points)  # NaN stays, to be seen
        size = 2 * self.threat.eps if self.step_size is None else self.step_size
        return self.threat.project(x + size * agreed, x)


def _need_linf(name: str, threat: object) -> None:
    if not isinstance(threat, Linf):
        raise UserError(f"{name} is defined for Linf, not {threat!r}")
