from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..attacks.losses import CE, SquaredDistance, SumLoss
from ..core.types import Context, Objective, PerExampleLoss, Schedule, Terms, at


@dataclass(frozen=True, slots=True)
class GAT(Objective):
    """Guided adversarial training (GAT): the attack is guided by the distance of the prediction from the clean one.

    The update minimises the clean cross-entropy plus `weight` x |p(x') - p(x)|², summed over the classes and averaged
    over the images; both predictions are differentiated. The attack maximises cross-entropy, and in every second step
    of an epoch, from the second on, in addition `weight` x the same distance from a clean prediction that is held
    fixed. It is one step of length eps from `SignStart(0.5)`. Soft targets enter the cross-entropy.

    The released code for CIFAR-10 takes 10 as the weight and 40 after epoch 85 of 100:
    `GAT(PiecewiseConstant(((0, 10.0), (86, 40.0))))`. It fixes the clean prediction in training mode, and this does so
    in the mode of the attack.

    Args:
        weight: Weight of the distance, a number or a schedule.

    References:
        GAT: https://arxiv.org/abs/2011.14969.
    """

    weight: float | Schedule[float] = 10.0

    def inner(self, ctx: Context) -> PerExampleLoss:
        label = CE(ctx.lens.logits, ctx.batch.target)
        if not relaxed_step(ctx):
            return label
        clean = ctx.lens.logits(ctx.batch.x).detach().softmax(1)
        return SumLoss((label, SquaredDistance(ctx.lens.logits, clean, at(self.weight, ctx.progress))))

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        adversarial, clean = ctx.lens.logits(x_adv), ctx.lens.logits(ctx.batch.x)
        apart = (clean.softmax(1) - adversarial.softmax(1)).square().sum(1).mean()
        return {
            "ce_clean": F.cross_entropy(clean, ctx.batch.target),
            "distance": at(self.weight, ctx.progress) * apart,
        }


def relaxed_step(ctx: Context) -> bool:
    """Return True in every second step of an epoch, from the second on."""
    return ctx.progress.step % ctx.progress.steps_per_epoch % 2 == 1
