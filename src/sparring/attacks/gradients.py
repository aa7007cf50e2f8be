"""One forward and one backward pass to the input alone: nothing is left in any `.grad`."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.types import LossOutput, PerExampleLoss
from .losses import EOT, Boundaries, Microbatched, joined, mean


class ValueAndGrad(NamedTuple):
    """What is known of a loss at a point: `value` `[B]`, `fooled` `[B]` if the loss can tell, `grad` as the point."""

    value: Tensor
    fooled: Tensor | None
    grad: Tensor


def value_and_grad(loss: PerExampleLoss, z: Tensor) -> ValueAndGrad:
    """A loss `Microbatched` is differentiated batch by batch, an `EOT` one draw by draw, in the memory of one."""
    if isinstance(loss, Microbatched):
        found = [value_and_grad(part, rows) for part, rows in loss.parts(z)]
        return ValueAndGrad(
            *joined([LossOutput(each.value, each.fooled) for each in found]), torch.cat([e.grad for e in found])
        )
    single, draws = (loss.loss, loss.draws) if isinstance(loss, EOT) else (loss, 1)
    probes, grad = [], None
    for _ in range(draws):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value, fooled = single(z)
            new = _grad(value.sum(), z)
        probes.append(LossOutput(value.detach(), fooled))
        grad = new if grad is None else grad + new
    assert grad is not None
    probe = probes[0] if draws == 1 else mean(probes)
    return ValueAndGrad(probe.value, probe.fooled, grad if draws == 1 else grad / draws)


def values_and_grads(loss: Boundaries, z: Tensor) -> tuple[Tensor, Tensor]:
    """The differences `[B, K]` of a loss at `z`, and the gradient of each, `[B, K, ...]`: K backward passes."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        values = loss.differences(z).value
        last = values.shape[1] - 1
        grads = [_grad(values[:, k].sum(), z, retain=k < last) for k in range(last + 1)]
    return values.detach(), torch.stack(grads, 1)


def _grad(total: Tensor, z: Tensor, retain: bool = False) -> Tensor:
    if not total.requires_grad:
        raise UserError(
            "no gradient reaches the image: the model detaches it, or runs under no_grad. A gradient attack cannot "
            "see such a model, which does not make it robust: evaluate it with Square, and look at `sparring audit`"
        )
    (grad,) = torch.autograd.grad(total, z, retain_graph=retain, allow_unused=True)
    return torch.zeros_like(z) if grad is None else grad
