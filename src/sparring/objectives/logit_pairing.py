from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..core.errors import UserError
from ..core.types import Context, Terms
from .regularizers import Regularizer

Distance = Literal["squared", "length"]


@dataclass(frozen=True, slots=True)
class LogitPairing(Regularizer):
    """Adversarial logit pairing: pulls clean and adversarial logits together.

    The term is `weight` x the distance of the logits. Added to a method:
    `Sum((CrossEntropy(clean=0.5), LogitPairing(0.5)))` is ALP.

    Args:
        weight: Weight of the term.
        distance: "squared" is the mean squared difference over examples and classes; "length" is the mean over the
            examples of the L2 norm of the difference, which is not squared.

    Raises:
        UserError: If `distance` is unknown.

    References:
        ALP: https://arxiv.org/abs/1803.06373.
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
