from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.losses import CE
from ..core import ranks
from ..core.errors import UserError
from ..core.rng import make_rng
from ..core.types import Context, Objective, PerExampleLoss, Terms


@dataclass(frozen=True, slots=True)
class MixUp(Objective):
    """Cross-entropy on images mixed in pairs (mixup).

    One share is drawn from Beta(alpha, alpha) for the whole batch. The images mixed are those that the attack returns:
    clean images with `Benign()`. Several processes mix the images of the whole batch; micro-batches are mixed each by
    itself. Soft targets are mixed, too.

    Args:
        alpha: Parameter of the Beta distribution.

    Raises:
        UserError: If `alpha` is not above 0.

    References:
        mixup: https://arxiv.org/abs/1710.09412.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.alpha <= 0:
            raise UserError(f"alpha = {self.alpha:g} of mixup is not above 0; for no mixing use CrossEntropy()")

    def inner(self, ctx: Context) -> PerExampleLoss:
        return CE(ctx.lens.logits, ctx.batch.target)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        chance, y = ctx.chance("mixup"), ctx.batch.target
        share = float(np.random.default_rng(chance).beta(self.alpha, self.alpha))
        every_x, every_y = ranks.gathered(x_adv), ranks.gathered(y)
        pairs = torch.randperm(len(every_y), generator=make_rng(chance, y.device), device=y.device)
        other = pairs[ranks.place(len(y))]
        logits = ctx.lens.logits(share * x_adv + (1 - share) * every_x[other])
        both = share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, every_y[other])
        return {"ce_mixed": both}
