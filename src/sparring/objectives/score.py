from dataclasses import dataclass

from torch import Tensor

from ..attacks import CleanStart
from ..attacks.losses import SquaredDistance
from ..core.errors import UserError
from ..core.types import Attack, Context, Objective, PerExampleLoss, Terms
from ..data.mixing import probabilities


@dataclass(frozen=True, slots=True)
class SCORE(Objective):
    """Self-consistent robust error: TRADES with squared distances of probabilities in place of divergences.

    The loss is |clean prediction - target|² plus `beta` x max(0, |adversarial - clean prediction|² - `clip`), summed
    over the classes. The attack maximises |adversarial - clean prediction|² from a clean prediction that is held fixed.
    The paper starts it at a random point, and crafts with the statistics of the batch (`inner_mode=batch_statistics`).
    Soft targets enter the clean term; where the released code mixes images, its attack maximises the distance from the
    target instead.

    Args:
        beta: Weight of the robust term; 3 to 4 with generated images.
        clip: Size from which the robust term counts, at least 0. The released code without generated images clips the
            whole loss instead.

    Raises:
        UserError: If `clip` is below 0; in a `Method`, if its attack begins at the clean image.

    References:
        SCORE: https://arxiv.org/abs/2202.10103.
    """

    beta: float = 4.0
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.clip < 0:
            raise UserError(f"clip = {self.clip:g} of the robust term is below 0: 0 does not clip")

    def check(self, attack: Attack) -> None:
        if isinstance(getattr(attack, "start", None), CleanStart):
            raise UserError(
                "the attack of SCORE begins at the clean image, where its distance has no gradient, and would stay: "
                "give it another start, such as GaussianStart()"
            )

    def inner(self, ctx: Context) -> PerExampleLoss:
        return SquaredDistance(ctx.lens.logits, ctx.lens.logits(ctx.batch.x).detach().softmax(1))

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        clean, adversarial = ctx.lens.logits(ctx.batch.x).softmax(1), ctx.lens.logits(x_adv).softmax(1)
        target = probabilities(ctx.batch.target, clean.shape[1]).to(clean.dtype)
        apart = (adversarial - clean).square().sum(1)
        return {
            "square_clean": (clean - target).square().sum(1).mean(),
            "square": self.beta * (apart - self.clip).relu().mean(),
        }
