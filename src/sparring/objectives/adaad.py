from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.teachers import Teacher
from ..core.types import Context, Forward, LabelledData, LossOutput, Objective, PerExampleLoss, Terms
from .rslad import taught


@dataclass(frozen=True, slots=True)
class AdaAD(Objective):
    """Adaptive adversarial distillation: the teacher takes part in the attack, and labels what it finds.

    The attack looks for the image where student and teacher disagree most: it maximises KL(teacher ‖ student), both at
    the attacked image, and its gradient flows through both. The loss is `share` x that divergence at the adversarial
    image plus (1 - `share`) x the same at the clean image. Labels and soft targets are not used. Start the attack with
    `GaussianStart(0.001)`. For CIFAR-10 the released code averages the divergence over the classes too, which makes it
    C times weaker; with `share` 1 it still runs the clean images, which changes the statistics of batch norm alone.

    Args:
        teacher: The teacher, which should be robust. Each step of the attack runs it forward and backward.
        share: Weight of the adversarial term, in [0, 1]; with 1, no clean image is run.

    Raises:
        UserError: If `share` is not in [0, 1].

    References:
        AdaAD: Huang et al., Boosting Accuracy and Robustness of Student Models via Adaptive Adversarial Distillation,
        CVPR 2023, https://github.com/boyellow/AdaAD.
    """

    teacher: Teacher
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"share = {self.share:g} of the adversarial term is not in [0, 1]")

    def init(self, data: LabelledData) -> nn.Module:
        del data
        return self.teacher.memory()

    def inner(self, ctx: Context) -> PerExampleLoss:
        return _Disagreement(ctx.lens.logits, lambda x: taught(ctx, x))

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        apart = _Disagreement(ctx.lens.logits, lambda x: taught(ctx, x))
        terms = {"kl": self.share * apart(x_adv).value.mean()}
        if self.share < 1:
            terms["kl_clean"] = (1 - self.share) * apart(ctx.batch.x).value.mean()
        return terms


@dataclass(frozen=True, slots=True)
class _Disagreement:
    """KL(teacher ‖ student), both at the image that is given."""

    student: Forward
    teacher: Forward

    def __call__(self, x: Tensor) -> LossOutput:
        log_p, log_q = self.teacher(x).log_softmax(1), self.student(x).log_softmax(1)
        return LossOutput(F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1))

    def __getitem__(self, rows: Tensor) -> "_Disagreement":
        del rows  # it depends on nothing but the image
        return self
