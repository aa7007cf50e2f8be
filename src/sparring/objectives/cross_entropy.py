import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..attacks.losses import CE
from ..core.errors import UserError
from ..core.types import Context, Objective, PerExampleLoss, Terms


@dataclass(frozen=True, slots=True)
class CrossEntropy(Objective):
    """Adversarial training of Madry et al.; with `Benign`, standard training.

    Attack and update use soft targets where a batch has them.

    Args:
        label_smoothing: Smoothing s, in [0, 0.5], of the update only; the attack maximises the hard loss. The true
            class has 1 - s, every other class s / (C - 1), as in Bag of Tricks; torch's own smoothing gives the true
            class s / C more.
        clean: Weight of the clean images in the update, in [0, 1); the adversarial ones have the rest. 0.5 is mixed
            training.
        weight: Factor on both. With 2, the two losses of `clean=0.5` are added and not averaged.

    Raises:
        UserError: If `clean`, `label_smoothing` or `weight` is out of its range; `weight` must be finite and above 0.

    References:
        PGD: https://arxiv.org/abs/1706.06083.
        Mixed training: https://arxiv.org/abs/1611.01236.
        Bag of Tricks: https://arxiv.org/abs/2010.00467.
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
        return CE(ctx.lens.logits, ctx.batch.target)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        adversarial = self._at(ctx, x_adv)
        if not self.clean:
            return {"ce": adversarial}
        return {"ce": (1 - self.clean) * adversarial, "ce_clean": self.clean * self._at(ctx, ctx.batch.x)}

    def _at(self, ctx: Context, x: Tensor) -> Tensor:
        logits = ctx.lens.logits(x)
        classes = logits.shape[1]
        spread = self.label_smoothing * classes / (classes - 1) if self.label_smoothing else 0.0
        return self.weight * F.cross_entropy(logits, ctx.batch.target, label_smoothing=min(1.0, spread))
