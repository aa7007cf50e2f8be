from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ..attacks.losses import CE, KLDivergence
from ..core.errors import need_one_of
from ..core.types import Context, Objective, PerExampleLoss, Terms


@dataclass(frozen=True, slots=True)
class TRADES(Objective):
    """Clean cross-entropy plus `beta` x KL(clean prediction ‖ adversarial prediction).

    The attack maximises the same divergence from a clean prediction that is held fixed; start it with
    `GaussianStart(0.001)`, as the divergence has no gradient at the clean point. In the update both predictions are
    differentiated. Soft targets enter the cross-entropy.

    Args:
        beta: Weight of the divergence.
        away_from: Probabilities that the attack maximises the divergence from: the clean "prediction", or the "target",
            as with CutMix in the code of Gowal et al. and Rebuffi et al.

    Raises:
        UserError: If `away_from` is unknown.

    References:
        TRADES: https://arxiv.org/abs/1901.08573.
    """

    beta: float = 6.0
    away_from: Literal["prediction", "target"] = "prediction"

    def __post_init__(self) -> None:
        need_one_of("away_from", self.away_from, ("prediction", "target"))

    def inner(self, ctx: Context) -> PerExampleLoss:
        if self.away_from == "target":
            return CE(ctx.lens.logits, ctx.batch.target)  # but for the entropy of the target, the same
        return KLDivergence(ctx.lens.logits, ctx.lens.logits(ctx.batch.x).detach().softmax(1), self.beta)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        clean, adversarial = ctx.lens.logits(ctx.batch.x), ctx.lens.logits(x_adv)
        log_p, log_q = clean.log_softmax(1), adversarial.log_softmax(1)
        # in logarithms: where a probability underflows to 0, the gradient of p log p is NaN, that of exp(l) l is 0
        kl = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return {"ce_clean": F.cross_entropy(clean, ctx.batch.target), "kl": self.beta * kl}
