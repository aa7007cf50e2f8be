"""PGD and FGSM: inner maximisation by projected gradient ascent, and the starts of a search.

An attack is a frozen dataclass, so it can be printed, compared and varied.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..core import ranks
from ..core.errors import UserError, need_whole
from ..core.numbers import parse_number
from ..core.rng import Rng, normal, uniform, uniform_of_batch
from ..core.types import PerExampleLoss, Threat, each
from ..core.whole_batch import WholeBatch
from .gradients import ValueAndGrad, input_grad, value_and_grad
from .losses import named
from .threats import Linf, need_threat


@dataclass(frozen=True, slots=True)
class Benign:
    """Leaves the input unchanged: adversarial training with this attack is standard training."""

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        del loss, rng
        # The same tensor, so that a clean term of the objective shares its forward pass.
        return x if not x.requires_grad else x.detach()


class Start(Protocol):
    """Chooses the points from which an attack begins its search.

    Papers differ in their start, and it changes results. `start(threat, x, rng)` returns points of the shape of `x`.
    """

    def __call__(self, threat: Threat, x: Tensor, rng: Rng) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class RandomStart:
    """Random start: a random point of the set.

    References:
        PGD: https://arxiv.org/abs/1706.06083.
    """

    def __call__(self, threat: Threat, x: Tensor, rng: Rng) -> Tensor:
        return threat.sample(x, rng)


@dataclass(frozen=True, slots=True)
class CleanStart:
    """Starts the search at the example itself."""

    def __call__(self, threat: Threat, x: Tensor, rng: Rng) -> Tensor:
        del threat, rng
        return x.clone()


@dataclass(frozen=True, slots=True)
class GaussianStart:
    """Starts the search at the example plus Gaussian noise, projected onto the set.

    Args:
        sigma: Standard deviation of the noise in pixel units; 0.001 in TRADES.

    References:
        TRADES: https://arxiv.org/abs/1901.08573.
    """

    sigma: float = 0.001

    def __call__(self, threat: Threat, x: Tensor, rng: Rng) -> Tensor:
        return threat.project(x + self.sigma * normal(x, rng), x)


@dataclass(frozen=True, slots=True)
class SphereStart:
    """Starts the search `share` x eps from the example, in a random direction, clipped to [0, 1].

    The direction is uniform noise for Linf and Gaussian noise otherwise, as in the released code of APGD (share 1) and
    FAB (share 1/2).

    Args:
        share: Distance from the example, in units of eps and in the norm of the set.
    """

    share: float = 1.0

    def __call__(self, threat: Threat, x: Tensor, rng: Rng) -> Tensor:
        noise = uniform(x, rng, -1, 1) if isinstance(threat, Linf) else normal(x, rng)
        size = each(threat.norm(noise).clamp_min(1e-12), x)
        return (x + self.share * threat.eps * noise / size).clamp_(0, 1)


@dataclass(frozen=True, slots=True)
class MixedStart:
    """Starts the search at the example with probability `clean`, and otherwise by another start.

    In training one draw decides for a whole batch. The released code of Feature Denoising and of Smooth Adversarial
    Training uses `clean` 0.2 in training.

    Args:
        start: The other start.
        clean: Probability of a start at the example, in [0, 1].

    Raises:
        UserError: If `clean` is not in [0, 1].
    """

    start: Start
    clean: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.clean <= 1:
            raise UserError(f"clean = {self.clean:g} is not a probability: it must be in [0, 1]")

    def __call__(self, threat: Threat, x: Tensor, rng: Rng) -> Tensor:
        drawn = uniform_of_batch(x.new_empty(len(x), 1), rng)
        z = self.start(threat, x, rng)
        return torch.where(drawn.view(-1, *[1] * (x.ndim - 1)) < self.clean, x, z)


@dataclass(frozen=True, slots=True)
class PGD:
    """Projected gradient ascent: one forward and one backward pass per step.

    Args:
        threat: Perturbation set.
        steps: Number of steps, at least 1.
        step_size: Length of a step in pixel units, a number or text such as "2/255"; None is 2.5 eps / steps, enough to
            cross the set.
        start: Start of the search; a random start by default.
        patience: Number of steps that an example takes after it is first fooled. It then leaves the batch, so it costs
            nothing more; 0 keeps the first fooling point. With a loss of the whole batch (`WholeBatch`), the example
            stays in the batch but moves no further. None: every example takes all steps.

    Raises:
        UserError: If `threat` is not a set, `steps` or `patience` is not a whole number in range, or `step_size` is not
            above 0 or exceeds 20 eps; in a call, if `patience` is set and the loss does not report fooled examples.

    References:
        PGD: https://arxiv.org/abs/1706.06083.
        Friendly adversarial training (`patience`): https://arxiv.org/abs/2002.11242.
    """

    threat: Threat
    steps: int = 10
    step_size: float | None = None
    start: Start = RandomStart()
    patience: int | None = None
    if TYPE_CHECKING:  # at run time __post_init__ parses step_size

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

    @property
    def recordable(self) -> bool:
        """True if a search never waits for the device, so that it can be recorded as a CUDA graph."""
        return self.patience is None

    @property
    def stops_when_fooled(self) -> bool:
        """True if an example takes no further steps once it is fooled, so that its loss is not the largest."""
        return self.patience is not None

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        x = x.detach()
        size = self.step_size if self.step_size is not None else 2.5 * self.threat.eps / self.steps
        z = self.start(self.threat, x, rng)
        return self._climb(loss, x, z, size)

    def _climb(self, loss: PerExampleLoss, x: Tensor, z: Tensor, size: float) -> Tensor:
        if self.patience is not None:
            return self._climb_until(loss, x, z, size, self.patience)
        for _ in range(self.steps):
            z = self._move(x, z, input_grad(loss, z), size)
        return z

    def _climb_until(self, loss: PerExampleLoss, x: Tensor, out: Tensor, size: float, patience: int) -> Tensor:
        """Run the steps of `_climb` on those rows of `out` that have patience left."""
        out = out.clone()  # a start may return the images themselves
        rows = torch.arange(len(x), device=x.device)
        met = torch.zeros_like(rows, dtype=torch.bool)  # fooled at an earlier step
        spent = torch.zeros_like(rows)  # steps taken since then
        for _ in range(self.steps):
            _, fooled, grad = _value_and_grad_of(loss, out, rows)
            if fooled is None:
                raise UserError(
                    f"patience = {patience} needs a loss that reports which examples are fooled, and "
                    f"{named(loss.loss if isinstance(loss, WholeBatch) else loss)} does not: leave patience out"
                )
            met = met | fooled
            going = (~met | (spent < patience)).nonzero()[:, 0]  # one wait for a GPU, where each mask would be one
            if len(going) < len(rows):
                rows, met, spent, grad = rows[going], met[going], spent[going], grad[going]
            going_on = len(rows) > 0
            if not (ranks.any_of(going_on) if isinstance(loss, WholeBatch) else going_on):
                break  # a pass of the whole batch is made by all processes
            if not going_on:
                continue
            out[rows] = self._move(x[rows], out[rows], grad, size)
            spent = spent + met
        return out

    def _move(self, x: Tensor, z: Tensor, grad: Tensor, size: float) -> Tensor:
        return self.threat.project(z + size * self.threat.ascent(grad), x)


def _value_and_grad_of(loss: PerExampleLoss, z: Tensor, rows: Tensor) -> ValueAndGrad:
    """Return value and gradient for some rows of `z`; a loss of the whole batch is run on all rows."""
    if not isinstance(loss, WholeBatch):
        return value_and_grad(loss[rows], z[rows])
    value, fooled, grad = value_and_grad(loss, z)
    return ValueAndGrad(value[rows], None if fooled is None else fooled[rows], grad[rows])


def FGSM(threat: Threat, step_size: float | str | None = None, start: Start = CleanStart()) -> PGD:  # noqa: N802
    """Fast gradient sign method: PGD with one step, by default of length eps from the example itself.

    FGSM-RS is `FGSM(Linf("8/255"), "10/255", RandomStart())`.

    Args:
        threat: Perturbation set.
        step_size: Length of the step in pixel units, a number or text such as "10/255"; None is eps.
        start: Start of the search; the example itself by default.

    Returns:
        The attack, a `PGD` of one step.

    Raises:
        UserError: If `threat` is not a set, or `step_size` is not above 0 or exceeds 20 eps.

    References:
        FGSM: https://arxiv.org/abs/1412.6572.
        FGSM-RS: https://arxiv.org/abs/2001.03994.
    """
    need_threat(threat)
    return PGD(threat, steps=1, step_size=threat.eps if step_size is None else step_size, start=start)


def parse_step_size(value: float | str, threat: Threat) -> float:
    """Parse a step size in pixel units.

    Raises:
        UserError: If the step is not above 0, or exceeds 20 eps: it would cross the set ten times over, so it is
            probably in another unit.
    """
    size, eps = parse_number(value), threat.eps
    if not (0 < size < math.inf):
        raise UserError(f"step_size = {size:g} is not above 0")
    if size > 20 * eps:
        raise UserError(
            f"step_size = {size:g} is {size / eps:.3g} times eps = {eps:g}: both are in pixel units, where images lie "
            f"in [0, 1]; did you mean {size:g}/255?"
        )
    return size
