from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.losses import CE
from ..core.errors import UserError
from ..core.teachers import Teacher, TeacherMemory
from ..core.types import Context, LabelledData, Objective, PerExampleLoss, Terms
from .ard import need_temperature


@dataclass(frozen=True, slots=True)
class DualTeacher(Objective):
    """Distillation from a standard and a robust teacher against robust overfitting, the KD of KD & SWA.

    The loss is `ce` x cross-entropy at the adversarial image plus, for each teacher, its weight x T² x the
    cross-entropy of the student's prediction with the teacher's, both at the adversarial image and at temperature T.
    The attack maximises cross-entropy. Attack and cross-entropy use soft targets where a batch has them. The paper adds
    `averaging=SWA(55)`, and takes teachers of the student's own architecture.

    Args:
        standard: The teacher that was trained without an adversary.
        robust: The teacher that was trained with one.
        ce: Weight of the cross-entropy with the labels, at least 0.
        of_standard: Weight of the standard teacher, at least 0.
        of_robust: Weight of the robust teacher, at least 0.
        temperature: Temperature T of students and teachers.

    Raises:
        UserError: If a weight is below 0 or `temperature` is not above 0.

    References:
        KD & SWA: https://openreview.net/forum?id=qZzy5urZw9.
    """

    standard: Teacher
    robust: Teacher
    ce: float = 0.3
    of_standard: float = 0.1
    of_robust: float = 0.6
    temperature: float = 2.0

    def __post_init__(self) -> None:
        for name in ("ce", "of_standard", "of_robust"):
            if getattr(self, name) < 0:
                raise UserError(f"the weight {name} = {getattr(self, name):g} is below 0: 0 leaves the term out")
        need_temperature(self.temperature)

    def init(self, data: LabelledData) -> nn.Module:
        del data
        return nn.ModuleList([self.standard.memory(), self.robust.memory()])

    def inner(self, ctx: Context) -> PerExampleLoss:
        return CE(ctx.lens.logits, ctx.batch.target)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        logits, t = ctx.lens.logits(x_adv), self.temperature
        terms = {"ce": self.ce * F.cross_entropy(logits, ctx.batch.target)}
        teachers = zip(ctx.memory.children(), ("standard", "robust"), (self.of_standard, self.of_robust), strict=True)
        for teacher, name, weight in teachers:
            assert isinstance(teacher, TeacherMemory)
            p = (teacher.logits(x_adv) / t).softmax(1)
            terms[f"kd_{name}"] = weight * t**2 * F.cross_entropy(logits / t, p)
        return terms
