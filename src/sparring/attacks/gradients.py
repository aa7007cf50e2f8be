"""Value and input gradient of a loss by one forward and one backward pass; no `.grad` is written."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.types import LossOutput, PerExampleLoss
from ..core.validation import checked_output
from .losses import EOT, Boundaries, Microbatched, OnLogits, joined, mean


class ValueAndGrad(NamedTuple):
    """Value and gradient of a loss at a point `[B, ...]`."""

    value: Tensor
    """Loss of each example, `[B]`."""
    fooled: Tensor | None
    """True where an example is fooled, `[B]`; None if the loss does not report it."""
    grad: Tensor
    """Gradient of the loss, of the shape of the point."""


def value_and_grad(loss: PerExampleLoss, z: Tensor) -> ValueAndGrad:
    """Return value, fooled examples and input gradient of `loss` at `z` `[B, ...]`.

    A `Microbatched` loss is differentiated batch by batch and an `EOT` loss draw by draw, so that each needs the memory
    of one batch or draw only.

    Args:
        loss: Per-example loss.
        z: Point `[B, ...]` at which it is differentiated.

    Returns:
        A named tuple: `value` `[B]`, `fooled` `[B]` or None, and `grad` `[B, ...]`.
    """
    return _answer(loss, z, judged=True)


def input_grad(loss: PerExampleLoss, z: Tensor) -> Tensor:
    """Return the gradient of `value_and_grad` alone; the loss is not asked which examples are fooled."""
    return _answer(loss, z, judged=False).grad


def _answer(loss: PerExampleLoss, z: Tensor, judged: bool) -> ValueAndGrad:
    if isinstance(loss, Microbatched):
        found = [_answer(part, rows, judged) for part, rows in loss.parts(z)]
        return ValueAndGrad(
            *joined([LossOutput(part.value, part.fooled) for part in found]), torch.cat([part.grad for part in found])
        )
    single, draws = (loss.loss, loss.draws) if isinstance(loss, EOT) else (loss, 1)
    alone = None
    if not judged and isinstance(single, OnLogits) and type(single).__call__ is OnLogits.__call__:
        alone = single.value  # a user's subclass may have a call of its own
    probes, grad = [], None
    for _ in range(draws):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value, fooled = checked_output(single(z), z, single) if alone is None else (alone(z), None)
            new = _grad(value.sum(), z)
        probes.append(LossOutput(value.detach(), fooled))
        grad = new if grad is None else grad + new
    assert grad is not None
    probe = probes[0] if draws == 1 else mean(probes)
    return ValueAndGrad(probe.value, probe.fooled, grad if draws == 1 else grad / draws)


def values_and_grads(loss: Boundaries, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences `[B, K]` of a loss at `z` and their gradients `[B, K, ...]`, by K backward passes."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        values = loss.differences(z).value
        last = values.shape[1] - 1
        grads = [_grad(values[:, k].sum(), z, retain=k < last) for k in range(last + 1)]
    return values.detach(), torch.stack(grads, 1)


def _grad(total: Tensor, z: Tensor, retain: bool = False) -> Tensor:
    if not total.requires_grad:
        raise UserError(
            "no gradient reaches the image: the model detaches it, or runs under no_grad. Gradient attacks fail on "
            "such a model, but that does not make it robust: evaluate it with Square, and run `sparring audit`"
        )
    (grad,) = torch.autograd.grad(total, z, retain_graph=retain, allow_unused=True)
    return torch.zeros_like(z) if grad is None else grad
