"""Inner maximisation by gradients. An attack is a frozen dataclass: it prints, compares and can be varied."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..core.errors import UserError, need_whole
from ..core.numbers import parse_number
from ..core.rng import Rng, normal, uniform
from ..core.types import PerExampleLoss, Threat, each
from ..core.whole_batch import WholeBatch
from .gradients import ValueAndGrad, value_and_grad
from .losses import named
from .threats import Linf, need_threat


@dataclass(frozen=True, slots=True)
class Benign:
    """Leaves the input alone. Standard training is adversarial training with this attack."""

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        del loss, rng
        return x if not x.requires_grad else x.detach()  # itself, so that a clean term shares its forward pass


class Start(Protocol):
    """Where a search begins. Papers differ here, and it matters."""

    def __call__(self, threat: Threat, x: Tensor, rng: Rng) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class RandomStart:
    """A random point of the set (https://arxiv.org/abs/1706.06083)."""

    def __call__(self, threat: Threat, x: Tensor, rng: Rng) -> Tensor:
        return threat.sample(x, rng)


@dataclass(frozen=True, slots=True)
class CleanStart:
    """The example itself."""

    def __call__(self, threat: Threat, x: Tensor, rng: Rng) -> Tensor:
        del threat, rng
        return x.clone()


@dataclass(frozen=True, slots=True)
class GaussianStart:
    """The example plus Gaussian noise of deviation `sigma`, 0.001 in TRADES (https://arxiv.org/abs/1901.08573)."""

    sigma: float = 0.001

    def __call__(self, threat: Threat, x: Tensor, rng: Rng) -> Tensor:
        return threat.project(x + self.sigma * normal(x, rng), x)


@dataclass(frozen=True, slots=True)
class SphereStart:
    """A random direction from the example, `share` x eps long in the norm of the set, then clipped to [0, 1].

    Uniform noise for Linf, Gaussian noise else, as released with APGD (share 1) and FAB (1/2).
    """

    share: float = 1.0

    def __call__(self, threat: Threat, x: Tensor, rng: Rng) -> Tensor:
        noise = uniform(x, rng, -1, 1) if isinstance(threat, Linf) else normal(x, rng)
        size = each(threat.norm(noise).clamp_min(1e-12), x)
        return (x + self.share * threat.eps * noise / size).clamp_(0, 1)


@dataclass(frozen=True, slots=True)
class MixedStart:
    """`start`, or with probability `clean` the examples themselves; in training one draw decides for a whole batch.

    The released code of Feature Denoising and of Smooth Adversarial Training has `clean` 0.2 in training.
    """

    start: Start
    clean: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.clean <= 1:
            raise UserError(f"clean = {self.clean:g} is no probability")

    def __call__(self, threat: Threat, x: Tensor, rng: Rng) -> Tensor:
        drawn = uniform(x.new_empty(len(x), 1), rng, 0, 1)
        drawn = drawn[:1] if isinstance(rng, torch.Generator) else drawn
        z = self.start(threat, x, rng)
        return torch.where(drawn.view(-1, *[1] * (x.ndim - 1)) < self.clean, x, z)


@dataclass(frozen=True, slots=True)
class PGD:
    """Projected gradient ascent (https://arxiv.org/abs/1706.06083): `steps` forward and backward passes.

    `step_size` is in pixel units; left out, it is 2.5 eps / steps, enough to cross the set.
    With `patience`, an example takes that many steps after it is first fooled and then leaves the batch
    (https://arxiv.org/abs/2002.11242), so it costs nothing from then on; 0 keeps the first fooling point. Of a loss of
    the whole batch (`WholeBatch`) it stays where it is in the batch, and moves no more.
    Raises `UserError` if `patience` is used with a loss that cannot tell who is fooled.
    """

    threat: Threat
    steps: int = 10
    step_size: float | None = None
    start: Start = RandomStart()
    patience: int | None = None
    if TYPE_CHECKING:  # at run time step_size is read by __post_init__

        def __init__(
            self,
            threat: Threat,
            steps: int = 10,
            step_size: float | str | None = None,
            start: Start = RandomStart(),
            patience: int | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        need_threat(self.threat)
        need_whole("steps", self.steps)
        if self.patience is not None:
            need_whole("patience", self.patience, 0)
        if self.step_size is not None:
            object.__setattr__(self, "step_size", parse_step_size(self.step_size, self.threat))

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        x = x.detach()
        size = self.step_size if self.step_size is not None else 2.5 * self.threat.eps / self.steps
        z = self.start(self.threat, x, rng)
        return self._climb(loss, x, z, size)

    def _climb(self, loss: PerExampleLoss, x: Tensor, z: Tensor, size: float) -> Tensor:
        if self.patience is not None:
            return self._climb_until(loss, x, z, size, self.patience)
        for _ in range(self.steps):
            z = self._move(x, z, value_and_grad(loss, z).grad, size)
        return z

    def _climb_until(self, loss: PerExampleLoss, x: Tensor, out: Tensor, size: float, patience: int) -> Tensor:
        """As `_climb`, over the rows of `out` whose patience lasts."""
        rows = torch.arange(len(x), device=x.device)
        met = torch.zeros_like(rows, dtype=torch.bool)  # fooled before
        spent = torch.zeros_like(rows)  # steps taken since
        for _ in range(self.steps):
            _, fooled, grad = _slope_of(loss, out, rows)
            if fooled is None:
                raise UserError(
                    f"patience = {patience} needs a loss that tells who is fooled, "
                    f"and {named(loss.loss if isinstance(loss, WholeBatch) else loss)} does not: leave patience out"
                )
            met = met | fooled
            going = ~met | (spent < patience)
            rows, met, spent, grad = rows[going], met[going], spent[going], grad[going]
            if not len(rows):
                break
            out[rows] = self._move(x[rows], out[rows], grad, size)
            spent = spent + met
        return out

    def _move(self, x: Tensor, z: Tensor, grad: Tensor, size: float) -> Tensor:
        return self.threat.project(z + size * self.threat.ascent(grad), x)


def _slope_of(loss: PerExampleLoss, z: Tensor, rows: Tensor) -> ValueAndGrad:
    """Of some rows of `z`; the others are run too where the loss needs them beside."""
    if not isinstance(loss, WholeBatch):
        return value_and_grad(loss[rows], z[rows])
    value, fooled, grad = value_and_grad(loss, z)
    return ValueAndGrad(value[rows], None if fooled is None else fooled[rows], grad[rows])


def FGSM(threat: Threat, step_size: float | str | None = None, start: Start = CleanStart()) -> PGD:  # noqa: N802
    """One step, by default of length eps from the example itself (https://arxiv.org/abs/1412.6572).

    FGSM-RS (https://arxiv.org/abs/2001.03994) is `FGSM(Linf("8/255"), "10/255", RandomStart())`.
    """
    need_threat(threat)
    return PGD(threat, steps=1, step_size=threat.eps if step_size is None else step_size, start=start)


def parse_step_size(value: float | str, threat: Threat) -> float:
    """A step in pixel units. Raises `UserError` for one that crosses the set ten times over: it is in another unit."""
    size, eps = parse_number(value), threat.eps
    if not (0 < size < math.inf):
        raise UserError(f"step_size = {size:g} is not above 0")
    if size > 20 * eps:
        raise UserError(
            f"step_size = {size:g} is {size / eps:.3g} times eps = {eps:g}: both are in pixel units, where images lie "
            f"in [0, 1]; did you mean {size:g}/255?"
        )
    return size
