"""Updates of the weights. An update may evaluate the closure as often as it needs.

An update of your own calls `backward` for the gradient of the loss: it sums it over micro-batches and processes.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import ranks
from ..core.errors import UserError
from ..core.modes import statistics_kept
from ..core.types import Closure, Progress, Schedule, Terms, Update, at
from ..models import recomputed

_TINY = 1e-20


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """The loss of a batch, as a closure: the sum of the losses of its micro-batches, each times its share of the batch.

    Args:
        parts: closures that give the terms of the loss of a micro-batch.
        alongside: tensors that are averaged over the processes, in place, in the collective of the gradient.
    """

    parts: tuple[Closure, ...]
    alongside: tuple[Tensor, ...] = ()

    def __call__(self) -> Terms:
        """Return the terms of the loss; the graphs of all micro-batches are in memory at once."""
        return _added([part() for part in self.parts])


def backward(model: nn.Module, closure: Closure) -> Terms:
    """Compute the gradient of the loss into `grad` of the weights, for the batch of all processes, by one collective.

    Micro-batches are differentiated one after the other, so that the graph of one of them at a time is in memory.

    Args:
        model: model whose weights have no gradient yet.
        closure: gives the terms of the loss.

    Returns:
        The detached terms.
    """
    terms = []
    for part in _parts(closure):
        found = part()
        torch.stack(list(found.values())).sum().backward()
        terms.append({name: term.detach() for name, term in found.items()})
    added = _added(terms)
    if ranks.world() == 1:
        return added
    weights = [p for p in model.parameters() if p.requires_grad]
    alongside = closure.alongside if isinstance(closure, BatchLoss) else ()
    values = torch.stack([term.float() if term.dtype.itemsize < 4 else term for term in added.values()])
    for weight, grad in zip(weights, _summed([p.grad for p in weights], weights, values, *alongside), strict=True):
        weight.grad = grad
    with torch.no_grad():
        for tensor in alongside:
            tensor.div_(ranks.world())
    return dict(zip(added, values, strict=True))


def gradients(closure: Closure, weights: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """Return the gradient of the loss of the batch of all processes, by one collective, and leave `grad` as it is.

    Args:
        closure: gives the terms of the loss.
        weights: weights by which the loss is differentiated.

    Returns:
        The gradient of each weight; None where the loss does not depend on it.
    """
    found: list[Tensor | None] = [None] * len(weights)
    for part in _parts(closure):
        total = torch.stack(list(part().values())).sum()
        each = torch.autograd.grad(total, list(weights), allow_unused=True)
        found = [
            new if old is None else old if new is None else old + new for old, new in zip(found, each, strict=True)
        ]
    return found if ranks.world() == 1 else _summed(found, weights)


def _parts(closure: Closure) -> tuple[Closure, ...]:
    return closure.parts if isinstance(closure, BatchLoss) else (closure,)


def _added(terms: Sequence[Terms]) -> Terms:
    if len(terms) == 1:
        return terms[0]
    return {name: torch.stack([each[name] for each in terms]).sum() for name in terms[0]}


def _summed(grads: Sequence[Tensor | None], weights: Sequence[Tensor], *alongside: Tensor) -> list[Tensor | None]:
    """Sum gradients, and other tensors in place, over the processes.

    A gradient may be missing on some processes, where a model leaves out a layer by chance; the collective needs as
    many numbers on each. It stays missing where no process has it. Only a process on which one is missing waits for its
    GPU.
    """
    filled = [torch.zeros_like(w) if g is None else g for g, w in zip(grads, weights, strict=True)]
    there = torch.ones(len(grads), device=weights[0].device)  # a list would be copied to a GPU, which waits
    for place, grad in enumerate(grads):
        if grad is None:
            there[place] = 0.0
    ranks.sum_([*filled, there, *alongside])
    if all(g is not None for g in grads):
        return [*filled]
    return [g if known else None for g, known in zip(filled, (there > 0).tolist(), strict=True)]


def need_clip(max_norm: float | None) -> None:
    """Raise `UserError` for a norm that a gradient cannot be clipped to: below 0, the steps would go uphill."""
    if max_norm is not None and not 0 < max_norm < math.inf:
        raise UserError(f"max_norm = {max_norm:g} is no norm to clip to: it is a finite number above 0, or None")


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """One step of the optimiser along the gradient of the loss.

    Args:
        max_norm: L2 norm to which the gradient is clipped; None does not clip.

    Raises:
        UserError: when `max_norm` is not above 0.
    """

    max_norm: float | None = None

    def __post_init__(self) -> None:
        need_clip(self.max_norm)

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Terms:
        optimizer.zero_grad(set_to_none=True)
        terms = backward(model, closure)
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)
        optimizer.step()
        return terms


@dataclass(frozen=True, slots=True)
class AWP:
    """Adversarial weight perturbation (AWP), for any objective.

    Every tensor of two dimensions or more whose name contains "weight", as in the released code, is perturbed along the
    gradient that increases the loss, by `gamma` times its own norm, layer by layer. The gradient is computed at the
    perturbed weights and the optimiser takes its step there, weight decay and momentum included; then the perturbation
    is subtracted. The pass that computes the perturbation does not change the statistics of batch norm. AWP costs one
    evaluation of the closure more than `OptimizerStep`.

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
        need_clip(self.max_norm)
        if self.gamma <= 0:
            raise UserError(f"gamma = {self.gamma:g} is not above 0; for no perturbation use OptimizerStep()")

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Terms:
        weights = [p for n, p in model.named_parameters() if p.ndim > 1 and "weight" in n and p.requires_grad]
        if not weights:
            raise UserError(
                f"weight perturbation needs weights of two dimensions or more, and {type(model).__name__} trains "
                "none: use OptimizerStep()"
            )
        with statistics_kept(model):
            grads = gradients(closure, weights)
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

        def low(part: Closure) -> Closure:
            def terms() -> Terms:
                with torch.autocast(device.type, torch.bfloat16):
                    found = part()
                return {name: term.float() for name, term in found.items()}

            return terms

        alongside = closure.alongside if isinstance(closure, BatchLoss) else ()
        return self.update(model, optimizer, BatchLoss(tuple(map(low, _parts(closure))), alongside))


@dataclass(frozen=True, slots=True)
class Recomputing:
    """Runs another update in which repeated blocks compute their activations again (`sparring.models.recomputed`).

    Args:
        update: the update.
    """

    update: Update

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Terms:
        with recomputed(model):
            return self.update(model, optimizer, closure)


@dataclass(frozen=True, slots=True)
class _Wrapped:
    """A schedule of updates, each in a wrapper."""

    updates: Schedule[Update]
    wrapper: Callable[[Update], Update]

    def at(self, progress: Progress) -> Update:
        return self.wrapper(at(self.updates, progress))  # type: ignore[arg-type]


def mixed_precision(update: Update | Schedule[Update]) -> Update | Schedule[Update]:
    """Return an update, or a schedule of updates, in `MixedPrecision`."""
    return _Wrapped(update, MixedPrecision) if isinstance(update, Schedule) else MixedPrecision(update)


def recomputing(update: Update | Schedule[Update]) -> Update | Schedule[Update]:
    """Return an update, or a schedule of updates, in `Recomputing`."""
    return _Wrapped(update, Recomputing) if isinstance(update, Schedule) else Recomputing(update)


@contextmanager
def _moved(weights: list[nn.Parameter], grads: Sequence[Tensor | None], gamma: float) -> Generator[None]:
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
