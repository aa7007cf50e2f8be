from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..attacks.losses import KLDivergence
from ..core.types import Context, Objective, PerExampleLoss, Terms


@dataclass(frozen=True, slots=True)
class TRADES(Objective):
    """Clean cross-entropy plus `beta` x KL(clean prediction ‖ adversarial prediction).

    The attack maximises the same divergence from a clean prediction that is held fixed; start it with
    `GaussianStart(0.001)`, as the divergence has no gradient at the clean point. In the update both predictions are
    differentiated. Soft targets enter the cross-entropy, and the attack does not see them.

    Args:
        beta: Weight of the divergence.

    References:
        TRADES: https://arxiv.org/abs/1901.08573.
    """

    beta: float = 6.0

    def inner(self, ctx: Context) -> PerExampleLoss:
        return KLDivergence(ctx.lens.logits, ctx.lens.logits(ctx.batch.x).detach().softmax(1), self.beta)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        clean, adversarial = ctx.lens.logits(ctx.batch.x), ctx.lens.logits(x_adv)
        log_p, log_q = clean.log_softmax(1), adversarial.log_softmax(1)
        # in logarithms: where a probability underflows to 0, the gradient of p log p is NaN, that of exp(l) l is 0
        kl = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return {"ce_clean": F.cross_entropy(clean, ctx.batch.target), "kl": self.beta * kl}
