from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.losses import CE
from ..core import ranks
from ..core.errors import UserError, need_whole
from ..core.types import Context, LossOutput, Objective, PerExampleLoss, Terms
from ..core.whole_batch import WholeBatch
from .contrasts import of_all
from .gat import relaxed_step


@dataclass(frozen=True, slots=True)
class NuAT(Objective):
    """Nuclear norm adversarial training (NuAT): keeps the matrix of all changes of logits in a batch small.

    The update minimises the clean cross-entropy plus a weight x |f(x') - f(x)|_* / B, where the nuclear norm is that of
    the matrix `[B, C]` of the changes in a batch of all processes; both logits are differentiated. The attack maximises
    cross-entropy, and in every second step of an epoch, from the second on, in addition the same weight x the norm for
    clean logits that are held fixed. It is one step of length eps from `SignStart(0.5)`. Each micro-batch has a norm of
    its own. Soft targets enter the cross-entropy.

    The weight is 0 in the first epoch, rises by the same amount after each, and is `weight` in the `last` epochs. The
    released code fixes the clean logits in training mode, and this does so in the mode of the attack.

    Args:
        weight: Final weight of the norm; the released code for CIFAR-10 takes 4 or 4.5.
        last: Number of epochs at the end, in which the weight does not rise.

    Raises:
        UserError: If `weight` is negative or `last` no whole number; in training, if the attack takes rows out of a
            batch, as `Split` and `Worst` do.

    References:
        NuAT: https://openreview.net/forum?id=kuK2VARZGnI.
    """

    weight: float = 4.0
    last: int = 10

    def __post_init__(self) -> None:
        need_whole("last", self.last, 0)
        if not self.weight >= 0:
            raise UserError(f"weight = {self.weight:g} of the nuclear norm must be at least 0")

    def inner(self, ctx: Context) -> PerExampleLoss:
        label = CE(ctx.lens.logits, ctx.batch.target)
        if not relaxed_step(ctx):
            return label
        clean, weight = ctx.lens.logits(ctx.batch.x).detach(), self._weight(ctx)

        def guided(x: Tensor) -> LossOutput:
            value, fooled = label(x)
            norm = nuclear_norm(ranks.gathered_with_gradient(ctx.lens.logits(x) - clean))
            return LossOutput(value + weight * norm / len(x), fooled)

        return WholeBatch(guided, "whose changes of logits have one nuclear norm: ")

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        adversarial, clean = ctx.lens.logits(x_adv), ctx.lens.logits(ctx.batch.x)
        apart = ranks.gathered_with_gradient(clean - adversarial)
        norm = self._weight(ctx) * nuclear_norm(apart) / len(apart)
        return {"ce_clean": F.cross_entropy(clean, ctx.batch.target), "nuclear": of_all(norm, ctx)}

    def _weight(self, ctx: Context) -> float:
        epoch = ctx.progress.step // ctx.progress.steps_per_epoch
        return self.weight * min(1.0, epoch / max(1, ctx.progress.epochs - self.last))


def nuclear_norm(matrix: Tensor) -> Tensor:
    """Return the sum of the singular values of a matrix, computed in float32 at least."""
    return torch.linalg.svdvals(matrix.float() if matrix.dtype.itemsize < 4 else matrix).sum()
