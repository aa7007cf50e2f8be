"""Updates of the weights. An update may evaluate the closure as often as it needs."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.modes import statistics_kept
from ..core.types import Closure, Progress, Schedule, Terms, Update, at

_TINY = 1e-20


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """One step of the optimiser along the gradient of the loss.

    Args:
        max_norm: L2 norm to which the gradient is clipped; None does not clip.
    """

    max_norm: float | None = None

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Terms:
        optimizer.zero_grad(set_to_none=True)
        terms = closure()
        torch.stack(list(terms.values())).sum().backward()
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)
        optimizer.step()
        return {name: term.detach() for name, term in terms.items()}


@dataclass(frozen=True, slots=True)
class AWP:
    """Adversarial weight perturbation (AWP), for any objective.

    Every weight tensor of two dimensions or more is perturbed along the gradient that increases the loss, by `gamma`
    times its own norm, layer by layer. The gradient is computed at the perturbed weights and the optimiser takes its
    step there, weight decay and momentum included; then the perturbation is subtracted. The pass that computes the
    perturbation does not change the statistics of batch norm. AWP costs one evaluation of the closure more than
    `OptimizerStep`.

    Args:
        gamma: norm of the perturbation relative to the norm of the weight, above 0. The paper takes 0.01 for AT, and
            0.005 for TRADES, which it begins after 10 epochs:
            `PiecewiseConstant(((0, OptimizerStep()), (10, AWP(0.005))))`.
        max_norm: L2 norm to which the gradient of the step is clipped; None does not clip.

    Raises:
        UserError: when `gamma` is not above 0, or when the model trains no weight of two dimensions or more.

    References:
        AWP: https://arxiv.org/abs/2004.05884.
    """

    gamma: float = 0.01
    max_norm: float | None = None

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise UserError(f"gamma = {self.gamma:g} is not above 0; for no perturbation use OptimizerStep()")

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Terms:
        weights = [p for n, p in model.named_parameters() if p.ndim > 1 and n.endswith("weight") and p.requires_grad]
        if not weights:
            raise UserError(
                f"weight perturbation needs weights of two dimensions or more, and {type(model).__name__} trains "
                "none: use OptimizerStep()"
            )
        with statistics_kept(model):
            total = torch.stack(list(closure().values())).sum()
            grads = torch.autograd.grad(total, weights, allow_unused=True)
        with _moved(weights, grads, self.gamma):
            return OptimizerStep(self.max_norm)(model, optimizer, closure)


@dataclass(frozen=True, slots=True)
class MixedPrecision:
    """Runs another update under autocast in bf16; weights, gradients and the state of the optimiser stay in float32.

    That it trains as well as an update in float32 has not been shown.

    Args:
        update: the update.
    """

    update: Update

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Terms:
        device = next(model.parameters()).device

        def low() -> Terms:
            with torch.autocast(device.type, torch.bfloat16):
                terms = closure()
            return {name: term.float() for name, term in terms.items()}

        return self.update(model, optimizer, low)


@dataclass(frozen=True, slots=True)
class _MixedPrecisionSchedule:
    updates: Schedule[Update]

    def at(self, progress: Progress) -> Update:
        return MixedPrecision(at(self.updates, progress))  # type: ignore[arg-type]


def mixed_precision(update: Update | Schedule[Update]) -> Update | Schedule[Update]:
    """Return an update, or a schedule of updates, in `MixedPrecision`."""
    return _MixedPrecisionSchedule(update) if isinstance(update, Schedule) else MixedPrecision(update)


@contextmanager
def _moved(weights: list[nn.Parameter], grads: tuple[Tensor | None, ...], gamma: float) -> Generator[None]:
    """Move each weight along its gradient by `gamma` times its norm, and undo the moves on exit."""
    moves = [_move(w.detach(), g, gamma) for w, g in zip(weights, grads, strict=True)]
    with torch.no_grad():
        for w, move in zip(weights, moves, strict=True):
            w.add_(move)
    try:
        yield
    finally:
        with torch.no_grad():
            for w, move in zip(weights, moves, strict=True):
                w.sub_(move)


def _move(weight: Tensor, grad: Tensor | None, gamma: float) -> Tensor:
    return torch.zeros_like(weight) if grad is None else grad * (gamma * weight.norm() / (grad.norm() + _TINY))
