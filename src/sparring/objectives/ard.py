from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.losses import CE
from ..core.errors import UserError
from ..core.teachers import Teacher
from ..core.types import Context, LabelledData, Objective, PerExampleLoss, Terms
from .rslad import taught


@dataclass(frozen=True, slots=True)
class ARD(Objective):
    """Adversarially robust distillation: at the adversarial image, the student learns the teacher's clean prediction.

    The loss is `share` x T² x KL(teacher at the clean image ‖ student at the adversarial one), both at temperature T,
    plus (1 - `share`) x cross-entropy at the clean image. The attack maximises cross-entropy. Attack and cross-entropy
    use soft targets where a batch has them. The released code averages the divergence over the classes too, which makes
    it C times weaker, and crafts in training mode (`inner_mode=train_mode`).

    Args:
        teacher: The teacher, which should be robust.
        share: Weight of the divergence, in [0, 1]; with 1, no clean image is run through the student.
        temperature: Temperature T of both predictions.

    Raises:
        UserError: If `share` is not in [0, 1] or `temperature` is not above 0.

    References:
        ARD: https://arxiv.org/abs/1905.09747.
    """

    teacher: Teacher
    share: float = 1.0
    temperature: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"share = {self.share:g} of the divergence is not in [0, 1]")
        need_temperature(self.temperature)

    def init(self, data: LabelledData) -> nn.Module:
        del data
        return self.teacher.memory()

    def inner(self, ctx: Context) -> PerExampleLoss:
        return CE(ctx.lens.logits, ctx.batch.target)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        t = self.temperature
        log_p, log_q = (taught(ctx, ctx.batch.x) / t).log_softmax(1), (ctx.lens.logits(x_adv) / t).log_softmax(1)
        terms = {"kl": self.share * t**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)}
        if self.share < 1:
            ce = F.cross_entropy(ctx.lens.logits(ctx.batch.x), ctx.batch.target)
            terms["ce_clean"] = (1 - self.share) * ce
        return terms


def need_temperature(temperature: float) -> None:
    """Raise `UserError` unless a temperature is above 0."""
    if not temperature > 0:
        raise UserError(f"temperature = {temperature:g} is not above 0; 1 leaves predictions as they are")
