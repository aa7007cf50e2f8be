from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..core import Context, Objective, PointLoss, Terms
from ..losses import Untargeted


@dataclass(frozen=True, slots=True)
class CrossEntropy(Objective):
    """Adversarial training of Madry et al. (https://arxiv.org/abs/1706.06083); with `Benign`, standard training.

    `label_smoothing` acts on the update only: the attack raises the hard loss (https://arxiv.org/abs/2010.00467).
    """

    label_smoothing: float = 0.0

    def inner(self, ctx: Context) -> PointLoss:
        return Untargeted(ctx.lens.logits, ctx.batch.y)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        logits = ctx.lens.logits(x_adv)
        return {"ce": F.cross_entropy(logits, ctx.batch.y, label_smoothing=self.label_smoothing)}
