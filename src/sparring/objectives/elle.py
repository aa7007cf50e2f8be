from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.threats import Linf
from ..core import ranks
from ..core.errors import UserError
from ..core.modes import statistics_kept
from ..core.rng import uniform
from ..core.types import Context, LabelledData, Terms
from .regularizers import Regularizer


@dataclass(frozen=True, slots=True)
class ELLE(Regularizer):
    """Efficient local linearity (ELLE): keeps the loss locally linear, without differentiating twice.

    For each image two points a and b are drawn from the cube of half side eps around it, unclipped, and a point c
    between them at a random share t. The term is `weight` x the mean over the images of
    (loss(c) - (1 - t) loss(a) - t loss(b))², with the cross-entropy as the loss. The three points of all images pass
    through the model together, and move the statistics of batch norm. Soft targets are used where a batch has them.

    With `adaptive` (ELLE-A) the weight is 0 at first. It becomes `weight` in a step whose error exceeds the mean of the
    errors so far by more than `sensitivity` standard deviations, and is multiplied by `decay` in every other step. The
    error is then measured before the attack, which costs three forward passes more; the released code takes that of
    the update, and so reacts one step later. Added to a method: `Sum((CrossEntropy(), ELLE(Linf("8/255"), 5000.0)))`.

    Args:
        threat: Set that gives eps.
        weight: Weight of the term. The released scripts for CIFAR-10 take 1000 up to eps 8/255, 5000 up to 20/255 and
            10000 beyond; 4000 for ELLE-A.
        adaptive: Whether the weight is raised only when the error rises.
        sensitivity: Number of standard deviations.
        decay: Factor of the weight in other steps.

    Raises:
        UserError: If `weight` or `sensitivity` is negative, or `decay` is not in [0, 1].

    References:
        ELLE: https://arxiv.org/abs/2401.11618.
    """

    threat: Linf
    weight: float = 1000.0
    adaptive: bool = False
    sensitivity: float = 2.0
    decay: float = 0.99

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and self.sensitivity >= 0 and 0 <= self.decay <= 1):
            raise UserError(
                f"weight = {self.weight:g} and sensitivity = {self.sensitivity:g} must be at least 0, and "
                f"decay = {self.decay:g} in [0, 1]"
            )

    def init(self, data: LabelledData) -> nn.Module:
        del data
        return _Errors() if self.adaptive else nn.Module()

    def observe(self, ctx: Context) -> None:
        if isinstance(ctx.memory, _Errors):
            with statistics_kept(ctx.lens.model):
                error = ranks.gathered(self._errors(ctx)).mean()
            ctx.memory.see(error, self)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        del x_adv
        weight = ctx.memory.weight if isinstance(ctx.memory, _Errors) else self.weight
        return {"nonlinearity": weight * self._errors(ctx).mean()}

    def _errors(self, ctx: Context) -> Tensor:
        """Squared difference of the loss from a linear one, `[B]`."""
        x, eps, rng = ctx.batch.x, self.threat.eps, ctx.rng("linearity")
        a, b = (x + uniform(x, rng, -eps, eps) for _ in range(2))
        t = uniform(x.new_empty(len(x), 1, 1, 1), rng)
        logits = ctx.lens.logits(torch.cat([a, b, (1 - t) * a + t * b]))
        target = torch.cat([ctx.batch.target] * 3)
        at_a, at_b, at_c = F.cross_entropy(logits, target, reduction="none").chunk(3)
        share = t.flatten()
        return (at_c - (1 - share) * at_a - share * at_b).square()


class _Errors(nn.Module):
    """Number, mean and sum of squared deviations of the errors so far, and the present weight."""

    seen: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("weight", torch.zeros(()))

    def see(self, error: Tensor, rule: ELLE) -> None:
        """Adapt the weight to the error of a step, and count it (by Welford's method)."""
        count, mean, squares = self.seen
        high = mean + rule.sensitivity * (squares / count.clamp_min(1)).sqrt()
        raised = (count > 2) & (error > high)
        self.weight.copy_(torch.where(raised, rule.weight, rule.decay * self.weight))
        apart = error - mean
        mean = mean + apart / (count + 1)
        self.seen.copy_(torch.stack([count + 1, mean, squares + apart * (error - mean)]))
