from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.losses import CE, others
from ..core.types import Context, Objective, PerExampleLoss, Terms
from .trades import TRADES

_SCALE = 3.0  # from the released code; the paper divides the weights by their mean over the batch


@dataclass(frozen=True, slots=True)
class MAILAT(Objective):
    """Margin-aware instance reweighting of PGD-AT: examples near the decision boundary and beyond it count more.

    The loss is cross-entropy at the adversarial image x 3 sigmoid(`slope` x (m + `bias`)), where m is the margin of the
    adversarial prediction: the probability of the likeliest wrong class minus that of the true one. The weight is not
    differentiated. The attack maximises cross-entropy; the paper starts it with `GaussianStart(0.001)`. The paper
    divides the weights by their mean; the factor 3 is from the released code. Soft targets enter attack and
    cross-entropy; the margin is that of the most probable class.

    Args:
        bias: Shift of the margin; above it examples weigh more than half of the maximum.
        slope: Slope of the weight.
        warm_up: Number of epochs that are trained without weights; 76 of 120 in the released code.

    References:
        MAIL: https://arxiv.org/abs/2106.07904.
    """

    bias: float = -0.5
    slope: float = 10.0
    warm_up: float = 0.0

    @property
    def begins(self) -> float:
        return self.warm_up

    def inner(self, ctx: Context) -> PerExampleLoss:
        return CE(ctx.lens.logits, ctx.batch.target)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        logits = ctx.lens.logits(x_adv)
        ce = F.cross_entropy(logits, ctx.batch.target, reduction="none")
        return {"ce": (ce * _weight(self, ctx, logits)).mean()}


@dataclass(frozen=True, slots=True)
class MAILTRADES(Objective):
    """Margin-aware instance reweighting of TRADES: the divergence counts more near the boundary and beyond it.

    The loss is clean cross-entropy plus `beta` x KL(clean ‖ adversarial) x the weight of `MAILAT`. The attack is that
    of TRADES; start it with `GaussianStart(0.001)`. Soft targets enter the cross-entropy; the margin is that of the
    most probable class.

    Args:
        beta: Weight of the divergence.
        bias: Shift of the margin.
        slope: Slope of the weight.
        warm_up: Number of epochs that are trained without weights, as TRADES; 76 of 120 in the released code.

    References:
        MAIL: https://arxiv.org/abs/2106.07904.
    """

    beta: float = 5.0
    bias: float = 0.0
    slope: float = 2.0
    warm_up: float = 0.0

    @property
    def begins(self) -> float:
        return self.warm_up

    def inner(self, ctx: Context) -> PerExampleLoss:
        return TRADES(self.beta).inner(ctx)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        clean, adversarial = ctx.lens.logits(ctx.batch.x), ctx.lens.logits(x_adv)
        log_p, log_q = clean.log_softmax(1), adversarial.log_softmax(1)
        kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
        weighted = (kl * _weight(self, ctx, adversarial)).mean()
        return {"ce_clean": F.cross_entropy(clean, ctx.batch.target), "kl": self.beta * weighted}


def _weight(mail: MAILAT | MAILTRADES, ctx: Context, adversarial: Tensor) -> Tensor:
    """Return the weight of each example `[B]`: 1 before the end of the warm-up."""
    if ctx.progress.epoch < mail.warm_up:
        return torch.ones_like(adversarial[:, 0])
    p = adversarial.detach().softmax(1)
    margin = others(p, ctx.batch.y).amax(1) - p.gather(1, ctx.batch.y[:, None])[:, 0]
    return _SCALE * torch.sigmoid(mail.slope * (margin + mail.bias))
