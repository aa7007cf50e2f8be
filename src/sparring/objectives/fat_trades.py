from dataclasses import dataclass

from ..attacks.losses import KLDivergence
from ..core.types import Context, PerExampleLoss
from .trades import TRADES


@dataclass(frozen=True, slots=True)
class FATTRADES(TRADES):
    """Friendly adversarial training with TRADES: the attack on the divergence ends soon after it fools the model.

    The loss is that of TRADES, and so is the loss of the attack, which reports in addition which examples are fooled:
    PGD with `patience` then lets them go. The paper raises the patience during training, from 0 to 3 in 85 epochs:
    `PiecewiseConstant(((0, PGD(.., patience=0)), (30, PGD(.., patience=1)), ..))`. The released code counts the steps
    at which an example is misclassified, and patience those since it first was; for 0 this is the same.

    Args:
        beta: Weight of the divergence.
        away_from: As in `TRADES`.

    References:
        FAT: https://arxiv.org/abs/2002.11242.
    """

    def inner(self, ctx: Context) -> PerExampleLoss:
        if self.away_from == "target":
            return TRADES.inner(self, ctx)  # which reports fooled examples already
        p = ctx.lens.logits(ctx.batch.x).detach().softmax(1)
        return KLDivergence(ctx.lens.logits, p, self.beta, ctx.batch.y)
