from dataclasses import dataclass

from torch import Tensor

from ..core import Context, Terms
from .added import Term


@dataclass(frozen=True, slots=True)
class LogitPairing(Term):
    """Adversarial logit pairing (https://arxiv.org/abs/1803.06373): clean and adversarial logits are drawn together.

    `weight` x the squared distance of the logits, averaged over the examples. Added to a method:
    `Sum((CrossEntropy(clean=0.5), LogitPairing(0.5)))` is ALP.
    """

    weight: float = 0.5

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        apart = ctx.lens.logits(ctx.batch.x) - ctx.lens.logits(x_adv)
        return {"pairing": self.weight * apart.square().sum(1).mean()}
