import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..attacks.losses import CE
from ..core.errors import UserError
from ..core.types import Context, Objective, PerExampleLoss, Terms


@dataclass(frozen=True, slots=True)
class CrossEntropy(Objective):
    """Adversarial training of Madry et al. (https://arxiv.org/abs/1706.06083); with `Benign`, standard training.

    `label_smoothing` acts on the update only, the attack raises the hard loss; the true class has 1 - s, every other
    one s / (C - 1) (https://arxiv.org/abs/2010.00467; torch's own smoothing gives the true class s / C more). `clean`
    is the weight of the clean images in the update, the adversarial ones have the rest: 0.5 is the mixed training of
    https://arxiv.org/abs/1611.01236. `weight` multiplies both: with 2, the two of `clean=0.5` are added
    and not averaged.
    """

    label_smoothing: float = 0.0
    clean: float = 0.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.clean < 1:
            raise UserError(
                f"the weights of clean and adversarial images sum to 1, and clean = {self.clean:g} is not in [0, 1); "
                "for clean images alone use Benign()"
            )
        if not 0 <= self.label_smoothing <= 0.5:
            raise UserError(f"label_smoothing = {self.label_smoothing:g} is not in [0, 0.5]")
        if not 0 < self.weight < math.inf:
            raise UserError(f"weight = {self.weight:g} of the cross-entropy is not a finite number above 0")

    def inner(self, ctx: Context) -> PerExampleLoss:
        return CE(ctx.lens.logits, ctx.batch.y)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        adversarial = self._at(ctx, x_adv)
        if not self.clean:
            return {"ce": adversarial}
        return {"ce": (1 - self.clean) * adversarial, "ce_clean": self.clean * self._at(ctx, ctx.batch.x)}

    def _at(self, ctx: Context, x: Tensor) -> Tensor:
        logits = ctx.lens.logits(x)
        classes = logits.shape[1]
        spread = self.label_smoothing * classes / (classes - 1) if self.label_smoothing else 0.0
        return self.weight * F.cross_entropy(logits, ctx.batch.y, label_smoothing=min(1.0, spread))
