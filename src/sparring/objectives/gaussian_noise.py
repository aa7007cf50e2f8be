import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..attacks.losses import CE
from ..core.errors import UserError
from ..core.rng import normal
from ..core.types import Context, Objective, PerExampleLoss, Terms


@dataclass(frozen=True, slots=True)
class GaussianNoise(Objective):
    """Cross-entropy on images with Gaussian noise, as randomized smoothing trains.

    The noise is added to the images that the attack returns: to clean images with `Benign()`. Pixels leave [0, 1] by
    it, as they do when `sparring.evaluation.certify` adds noise of the same sigma. Soft
    targets are used where a batch has them.

    Args:
        sigma: Standard deviation of the noise, in pixel units.

    Raises:
        UserError: If `sigma` is not a finite number above 0.

    References:
        Randomized smoothing: https://arxiv.org/abs/1902.02918.
    """

    sigma: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise UserError(
                f"sigma = {self.sigma:g} of the noise is not a finite number above 0; for no noise use CrossEntropy()"
            )

    def inner(self, ctx: Context) -> PerExampleLoss:
        return CE(ctx.lens.logits, ctx.batch.target)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        noisy = x_adv + self.sigma * normal(x_adv, ctx.rng("noise"))
        return {"ce_noisy": F.cross_entropy(ctx.lens.logits(noisy), ctx.batch.target)}
