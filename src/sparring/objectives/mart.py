from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.losses import CE, others
from ..core.types import Context, Objective, PerExampleLoss, Terms

_MARGIN = 1.0001  # from the released code: keeps the logarithm finite where a wrong class has probability 1


@dataclass(frozen=True, slots=True)
class MART(Objective):
    """Misclassification-aware adversarial training.

    The loss is cross-entropy at the adversarial point plus -log(1 - probability of the likeliest wrong class) plus
    `beta` x KL(clean ‖ adversarial), weighted by the uncertainty of the clean prediction, 1 - p_y. The attack maximises
    cross-entropy; the paper starts it with `GaussianStart(0.001)`. Both predictions are differentiated, and so is the
    weight, as in the released code. Soft targets enter both cross-entropies; the wrong classes and the uncertainty are
    those of the most probable class.

    Args:
        beta: Weight of the KL term, 5 to 6.

    References:
        MART: https://openreview.net/forum?id=rklOg6EFwS.
    """

    beta: float = 6.0

    def inner(self, ctx: Context) -> PerExampleLoss:
        return CE(ctx.lens.logits, ctx.batch.target)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        y = ctx.batch.y
        clean, adversarial = ctx.lens.logits(ctx.batch.x), ctx.lens.logits(x_adv)
        log_p, log_q = clean.log_softmax(1), adversarial.log_softmax(1)
        misclassified = others(log_q, y).amax(1).exp()
        unsure = 1 - log_p.gather(1, y[:, None])[:, 0].exp()
        kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
        return {
            "bce": F.cross_entropy(adversarial, ctx.batch.target) - torch.log(_MARGIN - misclassified).mean(),
            "kl": self.beta * (kl * unsure).mean(),
        }
