"""Updates that lower the loss around the weights and not only at them: SAM, ASAM, random weight perturbation."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import ranks
from ..core.errors import UserError
from ..core.modes import statistics_kept
from ..core.rng import make_rng
from ..core.types import Closure, Terms
from .updates import backward, gradients, need_clip

_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class SAM:
    """Sharpness-aware minimisation (SAM): the gradient is taken where the loss nearby is highest, to first order.

    All weights are moved by `rho` x their gradient / the norm of the whole gradient. The optimiser takes its step from
    the weights as they were, along the gradient at the moved ones, weight decay and momentum included. As in the
    released example, the second pass does not change the statistics of batch norm. SAM costs one evaluation of the
    closure more than `OptimizerStep`.

    Args:
        rho: length of the move, above 0.
        max_norm: L2 norm to which the gradient of the step is clipped; None does not clip.

    Raises:
        UserError: when `rho` is not above 0.

    References:
        SAM: https://arxiv.org/abs/2010.01412.
    """

    rho: float = 0.05
    max_norm: float | None = None

    def __post_init__(self) -> None:
        _need_positive("rho", self.rho)
        need_clip(self.max_norm)

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Terms:
        return _sharp(self, model, optimizer, closure, lambda name, weight: torch.ones_like(weight))


@dataclass(frozen=True, slots=True)
class ASAM:
    """Adaptive sharpness-aware minimisation (ASAM): SAM in a neighbourhood that is scaled by the weights.

    With T = |w| + `eta` where the name of a parameter contains "weight", and T = 1 elsewhere, parameters are moved by
    `rho` x T² x the gradient / the norm of T x the whole gradient. All else is as in `SAM`, the statistics of batch
    norm included, which the released example changes in both passes.

    Args:
        rho: length of the move, above 0.
        eta: number that is added to the size of each weight, at least 0.
        max_norm: L2 norm to which the gradient of the step is clipped; None does not clip.

    Raises:
        UserError: when `rho` is not above 0 or `eta` is negative.

    References:
        ASAM: https://arxiv.org/abs/2102.11600.
    """

    rho: float = 0.5
    eta: float = 0.01
    max_norm: float | None = None

    def __post_init__(self) -> None:
        _need_positive("rho", self.rho)
        need_clip(self.max_norm)
        if not self.eta >= 0:
            raise UserError(f"eta = {self.eta:g} is added to the size of weights: it must be at least 0")

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Terms:
        def size(name: str, weight: Tensor) -> Tensor:
            return weight.detach().abs() + self.eta if "weight" in name else torch.ones_like(weight)

        return _sharp(self, model, optimizer, closure, size)


@dataclass(frozen=True, slots=True)
class RWP:
    """Random weight perturbation (RWP): a share of the gradient is taken at weights with Gaussian noise.

    The noise of a weight of two dimensions or more has a standard deviation of `gamma` x the norm of its output unit,
    that of another parameter `gamma` x its own norm. The optimiser takes its step from the weights as they were, along
    `share` x the gradient at the noisy ones plus (1 - `share`) x that at the weights themselves. The noisy pass does
    not change the statistics of batch norm, unless it is the only one. RWP costs one evaluation of the closure more
    than `OptimizerStep`, with `share` 1 none. Both gradients are of the same batch, in the released code of two.

    Args:
        gamma: size of the noise, above 0.
        share: share of the gradient at noisy weights, in (0, 1].
        max_norm: L2 norm to which the gradient of the step is clipped; None does not clip.

    Raises:
        UserError: when `gamma` is not above 0, or `share` not in (0, 1].

    References:
        RWP: https://arxiv.org/abs/2211.11489.
    """

    gamma: float = 0.01
    share: float = 0.5
    max_norm: float | None = None

    def __post_init__(self) -> None:
        _need_positive("gamma", self.gamma)
        need_clip(self.max_norm)
        if not 0 < self.share <= 1:
            raise UserError(f"share = {self.share:g} of the gradient at noisy weights is not in (0, 1]")

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Terms:
        weights = [p for p in model.parameters() if p.requires_grad]
        mixed = self.share < 1
        calm = gradients(closure, weights) if mixed else [None] * len(weights)
        optimizer.zero_grad(set_to_none=True)
        with _moved(weights, self._noise(weights)), statistics_kept(model) if mixed else nullcontext():
            terms = backward(model, closure)
        for weight, grad in zip(weights, calm, strict=True):
            if grad is not None and weight.grad is not None:
                weight.grad.lerp_(grad, 1 - self.share)
        return _stepped(self.max_norm, weights, optimizer, terms)

    def _noise(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Draw the noise of each weight, the same on every process."""
        rng = make_rng(ranks.from_first(lambda: int(torch.randint(2**62, ()))), weights[0].device)
        noise = []
        for weight in weights:
            w = weight.detach()
            drawn = torch.empty_like(w).normal_(generator=rng)
            size = w.flatten(1).norm(dim=1).view(-1, *[1] * (w.ndim - 1)) if w.ndim > 1 else w.norm()
            noise.append(self.gamma * size * drawn)
        return noise


def _sharp(
    how: SAM | ASAM,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    closure: Closure,
    size: Callable[[str, Tensor], Tensor],
) -> Terms:
    """Take a step of SAM in a neighbourhood whose half axes are in proportion to `size` of each weight."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = list(named.values())
    found = gradients(closure, weights)
    sizes = [size(name, p) for name, p in named.items()]
    scaled = [torch.zeros_like(w) if g is None else t * g for w, g, t in zip(weights, found, sizes, strict=True)]
    length = torch.stack([each.norm() for each in scaled]).norm()
    moves = [how.rho / (length + _TINY) * t * each for t, each in zip(sizes, scaled, strict=True)]
    optimizer.zero_grad(set_to_none=True)
    with _moved(weights, moves), statistics_kept(model):
        terms = backward(model, closure)
    return _stepped(how.max_norm, weights, optimizer, terms)


def _stepped(
    max_norm: float | None, weights: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, terms: Terms
) -> Terms:
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(weights, max_norm)
    optimizer.step()
    return terms


@contextmanager
def _moved(weights: Sequence[nn.Parameter], moves: Sequence[Tensor]) -> Generator[None]:
    """Move the weights, and give them their old values on exit."""
    before = [w.detach().clone() for w in weights]
    try:
        with torch.no_grad():
            torch._foreach_add_(list(weights), list(moves))
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(weights), before)


def _need_positive(name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name} = {value:g} is not above 0; for no perturbation use OptimizerStep()")
