import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.losses import CE
from ..attacks.single_step import SignStart
from ..attacks.threats import Linf
from ..core import ranks
from ..core.errors import UserError
from ..core.types import Context, LabelledData, Objective, PerExampleLoss, Terms
from .growing import Growing
from .relaxed_labels import relaxed


@dataclass(frozen=True, slots=True)
class TDAT(Objective):
    """Taxonomy driven fast adversarial training (TDAT): FGSM that begins where the batch before it ended.

    The attack maximises the cross-entropy with a relaxed label, which gives r to the true class and divides the rest.
    r is `beta` x tan(1 - e / E) in epoch e of E, counted from 0, and `least` at least. The update minimises the
    cross-entropy smoothed by 1 - r, as torch smooths it, plus `weight` x the mean of
    |f(x') - f(x0)|² tanh(1.0000001 - p(true class of x0)), with x0 the start of the attack; nothing is held fixed.
    The start is a perturbation for each place in the batch: `momentum` x the one of the batch before plus
    (1 - `momentum`) x that at which its attack ended; at first, a random corner of the set.

    `momentum` 0 is what the released code does: it stores the average, 0.75 in the paper, and then writes over it.
    Different from that code, starts are clipped to [0, 1], and a smaller last batch is trained on; the code attacks in
    training mode (`inner_mode=train_mode`). Micro-batches count as batches, and soft targets take the place of the
    label.

    Args:
        threat: Set of the start.
        weight: Weight of the difference of logits, at least 0; 0.65 for CIFAR-10.
        beta: Factor of the relaxation.
        least: Least probability r of the true class, in (0, 1].
        momentum: Share of the old start that is kept, in [0, 1).

    Raises:
        UserError: If a number is out of range; in training, if the attack has no start, or there is no training set.

    References:
        TDAT: https://arxiv.org/abs/2408.03944.
    """

    threat: Linf
    weight: float = 0.65
    beta: float = 0.6
    least: float = 0.15
    momentum: float = 0.75

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and 0 < self.beta < 0.64 and 0 < self.least <= 1 and 0 <= self.momentum < 1):
            raise UserError(
                f"weight = {self.weight:g} must be at least 0, beta = {self.beta:g} in (0, 0.64), so that beta tan(1) "
                f"is a probability, least = {self.least:g} in (0, 1] and momentum = {self.momentum:g} in [0, 1)"
            )

    def init(self, data: LabelledData) -> nn.Module:
        if not data.classes:
            raise UserError(
                "TDAT keeps starts from batch to batch and relaxes labels by the number of classes: give the "
                "training set to State.start(method, model, optimizer, data), or memory=method.init(data) to "
                "Method.loss"
            )
        return _BatchStart(data)

    def start(self, ctx: Context) -> Tensor:
        x = ctx.batch.x
        return self.threat.project(x + self._begin(ctx), x)

    def inner(self, ctx: Context) -> PerExampleLoss:
        classes, true = _memory(ctx).classes, self._true(ctx)
        return CE(ctx.lens.logits, relaxed(ctx.batch.target, classes, true, ctx.batch.x.dtype))

    def remember(self, ctx: Context, x_adv: Tensor) -> None:
        end = x_adv - ctx.batch.x
        new = ranks.gathered(self.momentum * self._begin(ctx) + (1 - self.momentum) * end)
        memory = _memory(ctx)
        memory.held = torch.cat([new, memory.held[len(new) :].to(new)])

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        assert ctx.start is not None
        before, logits = ctx.lens.logits(ctx.start), ctx.lens.logits(x_adv)
        ce = F.cross_entropy(logits, ctx.batch.target, label_smoothing=1 - self._true(ctx))
        true = before.softmax(1).gather(1, ctx.batch.y[:, None])[:, 0]
        moved = (before - logits).square().sum(1) * (1.0000001 - true).tanh()
        return {"ce": ce, "moved": self.weight * moved.mean()}

    def _begin(self, ctx: Context) -> Tensor:
        """Return the perturbation of each place in the batch, random where there was none."""
        x = ctx.batch.x
        held = _memory(ctx).held[ranks.place(len(x))].to(x)
        random = SignStart()(self.threat, x, ctx.rng("prior")) - x
        return torch.cat([held, random[len(held) :]])

    def _true(self, ctx: Context) -> float:
        epoch = ctx.progress.step // ctx.progress.steps_per_epoch
        return max(self.least, self.beta * math.tan(1 - min(1.0, epoch / ctx.progress.epochs)))


class _BatchStart(Growing):
    """A perturbation for each place in a batch, `[B, C, H, W]`, and the number of classes."""

    def __init__(self, data: LabelledData) -> None:
        super().__init__(0, *data.shape)
        self.classes = len(data.classes)


def _memory(ctx: Context) -> _BatchStart:
    assert isinstance(ctx.memory, _BatchStart)
    return ctx.memory
