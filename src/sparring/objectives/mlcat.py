import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..attacks.losses import CE
from ..core.errors import UserError
from ..core.types import Context, Objective, PerExampleLoss, Terms


@dataclass(frozen=True, slots=True)
class MLCAT(Objective):
    """Minimum loss constrained adversarial training, by loss scaling: examples that are learnt well teach no more.

    The loss of an adversarial example is the larger one of its cross-entropy and `threshold`. This is what the released
    code computes: it scales a smaller loss up to the threshold by a factor that it differentiates too, so that the
    gradient of the example is 0. The attack maximises cross-entropy. Both use soft targets where a batch has them. The
    other realisation, by weight perturbation, is not offered: it raises the loss of some examples of a batch only.

    Args:
        threshold: Smallest loss, a finite number of at least 0; 1.5 for CIFAR-10.

    Raises:
        UserError: If `threshold` is below 0 or not finite.

    References:
        MLCAT: https://arxiv.org/abs/2206.08675.
    """

    threshold: float = 1.5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < math.inf:
            raise UserError(f"threshold = {self.threshold:g} is not a finite number of at least 0; 0 is PGD-AT")

    def inner(self, ctx: Context) -> PerExampleLoss:
        return CE(ctx.lens.logits, ctx.batch.target)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        ce = F.cross_entropy(ctx.lens.logits(x_adv), ctx.batch.target, reduction="none")
        return {"ce": ce.clamp_min(self.threshold).mean()}
