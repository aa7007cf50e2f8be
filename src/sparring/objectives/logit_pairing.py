from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..core.errors import UserError
from ..core.types import Context, Terms
from .regularizers import Regularizer

Distance = Literal["squared", "length"]


@dataclass(frozen=True, slots=True)
class LogitPairing(Regularizer):
    """Adversarial logit pairing (https://arxiv.org/abs/1803.06373): clean and adversarial logits are drawn together.

    `weight` x the mean squared difference of the logits, over examples and classes. Added to a method:
    `Sum((CrossEntropy(clean=0.5), LogitPairing(0.5)))` is ALP. With `distance="length"` it is the mean over the
    examples of the L2 length of the difference, which is not squared. Raises `UserError` for another distance.
    """

    weight: float = 0.5
    distance: Distance = "squared"

    def __post_init__(self) -> None:
        if self.distance not in ("squared", "length"):
            raise UserError(f"distance = {self.distance!r} is not one of squared, length")

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        apart = ctx.lens.logits(ctx.batch.x) - ctx.lens.logits(x_adv)
        size = apart.square() if self.distance == "squared" else apart.norm(dim=1)
        return {"pairing": self.weight * size.mean()}
