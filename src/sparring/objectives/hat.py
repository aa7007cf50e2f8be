from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.teachers import Teacher
from ..core.types import Context, LabelledData, Objective, PerExampleLoss, Terms
from .rslad import taught
from .trades import TRADES


@dataclass(frozen=True, slots=True)
class HAT(Objective):
    """Helper-based adversarial training: TRADES, with examples beyond the ball that keep their margin small.

    A helper example is the image plus `reach` x its adversarial perturbation; it leaves the ball and is not clipped to
    [0, 1]. Its label is the class that the teacher, a net trained without an adversary, gives the adversarial example.
    The loss is that of TRADES plus `weight` x cross-entropy at the helper example. The attack is that of TRADES; start
    it with `GaussianStart(0.001)`. Soft targets enter the clean cross-entropy alone.

    Args:
        teacher: The net that labels helper examples; it should be trained without an adversary.
        beta: Weight of the divergence; 2.5 for CIFAR-10 in the paper, 3.5 with generated images.
        weight: Weight of the helper examples.
        reach: Length of the perturbation of a helper example, in units of the adversarial one, above 1.

    Raises:
        UserError: If `reach` is not above 1: the helper example would be an adversarial one.

    References:
        HAT: https://openreview.net/forum?id=Azh9QBQ4tR7.
    """

    teacher: Teacher
    beta: float = 2.5
    weight: float = 0.5
    reach: float = 2.0

    def __post_init__(self) -> None:
        if not self.reach > 1:
            raise UserError(
                f"reach = {self.reach:g} of a helper example is not above 1: it must lie beyond the adversarial "
                "example; for none, take TRADES"
            )

    def init(self, data: LabelledData) -> nn.Module:
        del data
        return self.teacher.memory()

    def inner(self, ctx: Context) -> PerExampleLoss:
        return TRADES(self.beta).inner(ctx)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        terms = TRADES(self.beta).outer(ctx, x_adv)
        helper = torch.lerp(ctx.batch.x, x_adv, self.reach)
        label = taught(ctx, x_adv).argmax(1)
        return {**terms, "ce_helper": self.weight * F.cross_entropy(ctx.lens.logits(helper), label)}
