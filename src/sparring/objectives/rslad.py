from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.losses import KLDivergence
from ..core.errors import UserError
from ..core.teachers import Teacher, TeacherMemory
from ..core.types import Context, LabelledData, Objective, PerExampleLoss, Terms


@dataclass(frozen=True, slots=True)
class RSLAD(Objective):
    """Robust soft label adversarial distillation: the student learns the predictions of a robust teacher.

    The loss is `share` x KL(teacher at the clean image ‖ student at the adversarial one) plus (1 - `share`) x the same
    divergence for the student at the clean image. The attack maximises the first. Labels and soft targets are not used.
    The formula is that of the paper; it was not compared with the released code.

    Args:
        teacher: The teacher, which should be robust.
        share: Weight of the adversarial term, in [0, 1]; 5/6 in the paper.

    Raises:
        UserError: If `share` is not in [0, 1].

    References:
        RSLAD: https://arxiv.org/abs/2108.07969.
    """

    teacher: Teacher
    share: float = 5 / 6

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"share = {self.share:g} of the adversarial term is not in [0, 1]")

    def init(self, data: LabelledData) -> nn.Module:
        del data
        return self.teacher.memory()

    def inner(self, ctx: Context) -> PerExampleLoss:
        return KLDivergence(ctx.lens.logits, taught(ctx, ctx.batch.x).softmax(1))

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        log_p = taught(ctx, ctx.batch.x).log_softmax(1)
        apart = {
            name: F.kl_div(ctx.lens.logits(x).log_softmax(1), log_p, reduction="batchmean", log_target=True)
            for name, x in (("kl_clean", ctx.batch.x), ("kl", x_adv))
        }
        return {"kl_clean": (1 - self.share) * apart["kl_clean"], "kl": self.share * apart["kl"]}


def taught(ctx: Context, x: Tensor) -> Tensor:
    """Return the logits of the teacher in the memory of an objective."""
    assert isinstance(ctx.memory, TeacherMemory)
    return ctx.memory.logits(x)
