"""Single-step attacks, of one or a few gradients, for training. None is meant to measure robustness."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..core.errors import UserError, need_whole
from ..core.rng import Rng, uniform
from ..core.types import PerExampleLoss, Threat
from .gradients import input_grad
from .pgd import parse_step_size
from .threats import Linf


@dataclass(frozen=True, slots=True)
class SignStart:
    """Starts the search at a random corner of a cube: every pixel is moved by `share` x eps, up or down.

    Args:
        share: Half the side of the cube, in units of eps, in (0, 1]; GAT and NuAT take 0.5.

    Raises:
        UserError: If `share` is not in (0, 1]; in a call, if the threat is not `Linf`.

    References:
        GAT: https://arxiv.org/abs/2011.14969.
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"share = {self.share:g} of eps is not in (0, 1]")

    def __call__(self, threat: Threat, x: Tensor, rng: Rng) -> Tensor:
        _need_linf("SignStart", threat)
        up = uniform(x, rng) < 0.5
        return threat.project(x + self.share * threat.eps * torch.where(up, 1.0, -1.0).to(x), x)


@dataclass(frozen=True, slots=True)
class NFGSM:
    """N-FGSM: one gradient-sign step from uniform noise around the example, without projection onto the ball.

    It leaves the ball on purpose: the perturbation reaches `noise` x eps + `step_size`, 3 eps by default, inside
    [0, 1]. Use it to train, never to evaluate.

    Args:
        threat: Perturbation set.
        noise: Size of the noise in units of eps.
        step_size: Length of the step in pixel units, a number or text such as "8/255"; None is eps.

    Raises:
        UserError: If the threat is not `Linf`, or `step_size` is not above 0 or exceeds 20 eps.

    References:
        N-FGSM: https://arxiv.org/abs/2202.01181.
    """

    threat: Linf
    noise: float = 2.0
    step_size: float | None = None
    recordable: ClassVar[bool] = True
    if TYPE_CHECKING:

        def __init__(self, threat: Linf, noise: float = 2.0, step_size: float | str | None = None) -> None: ...

    def __post_init__(self) -> None:
        _need_linf("N-FGSM", self.threat)
        if self.step_size is not None:
            object.__setattr__(self, "step_size", parse_step_size(self.step_size, self.threat))

    @property
    def reach(self) -> Linf:
        """Set in which the perturbed points lie, larger than `threat`."""
        return Linf(min(1.0, self.noise * self.threat.eps + self._length))

    @property
    def _length(self) -> float:
        return self.threat.eps if self.step_size is None else self.step_size

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        x, width = x.detach(), self.noise * self.threat.eps
        z = (x + uniform(x, rng, -width, width)).clamp_(0, 1)
        return (z + self._length * self.threat.ascent(input_grad(loss, z))).clamp_(0, 1)


@dataclass(frozen=True, slots=True)
class ZeroGrad:
    """FGSM from a random start that sets the smallest gradients of each image to zero, so that their pixels stay.

    Args:
        threat: Perturbation set.
        quantile: Share of an image's pixels that stay, in [0, 1): 0.35 for CIFAR-10, 0.45 for CIFAR-100 and 0.7 for
            SVHN in the paper's code.
        step_size: Length of the step in pixel units, a number or text such as "8/255"; None is 2 eps.

    Raises:
        UserError: If the threat is not `Linf`, `quantile` is not in [0, 1), or `step_size` is not above 0 or exceeds
            20 eps.

    References:
        ZeroGrad: https://arxiv.org/abs/2103.15476.
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
        grad = input_grad(loss, z).flatten(1)
        least = grad.abs().kthvalue(int(self.quantile * grad.shape[1]) + 1, dim=1, keepdim=True).values
        kept = torch.where(grad.abs() < least, 0.0, grad).view_as(x)
        size = 2 * self.threat.eps if self.step_size is None else self.step_size
        return self.threat.project(z + size * self.threat.ascent(kept), x)


@dataclass(frozen=True, slots=True)
class MultiGrad:
    """One step from the image along the gradient signs on which several random points agree.

    All points must agree on the sign of a pixel; other pixels stay.

    Args:
        threat: Perturbation set.
        points: Number of random points, at least 1; 3 in the paper.
        step_size: Length of the step in pixel units, a number or text such as "8/255"; None is 2 eps, which moves every
            pixel that moves to the border of the set.

    Raises:
        UserError: If the threat is not `Linf`, `points` is not a whole number above 0, or `step_size` is not above 0 or
            exceeds 20 eps.

    References:
        MultiGrad: https://arxiv.org/abs/2103.15476.
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
        grads = [input_grad(loss, self.threat.sample(x, rng)) for _ in range(self.points)]
        votes = torch.stack([self.threat.ascent(grad) for grad in grads]).sum(0)
        agreed = torch.where(votes.abs() < self.points, 0.0, votes / self.points)  # a NaN stays visible
        size = 2 * self.threat.eps if self.step_size is None else self.step_size
        return self.threat.project(x + size * agreed, x)


def _need_linf(name: str, threat: object) -> None:
    if not isinstance(threat, Linf):
        raise UserError(f"{name} is defined for Linf, not {threat!r}")
