from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.gradients import input_grad
from ..attacks.losses import CE
from ..attacks.pgd import PGD
from ..attacks.single_step import SignStart
from ..attacks.threats import Linf
from ..core.errors import UserError, need_whole
from ..core.rng import Rng
from ..core.types import Attack, Context, LabelledData, Objective, PerExampleLoss, Terms, each
from .perturbation_bank import PerturbationBank, epoch_of_reset
from .relaxed_labels import relaxed


@dataclass(frozen=True, slots=True)
class FGSMMEP(Objective):
    """FGSM-PGI with the prior of all previous epochs (FGSM-MEP): FGSM begins where momentum led it in the epoch before.

    The update minimises the cross-entropy with a relaxed label, which gives `true` to the true class and divides the
    rest, plus `weight` x the mean squared difference between the logits at the adversarial image and at the start of
    its attack; both are differentiated. The attack is one step on the same cross-entropy. The next start is a step from
    the present one along the sign of a momentum of gradients: `momentum` x the old one plus the new gradient, scaled to
    a mean absolute value of 1. In every `reset`-th epoch the momentum is 0 and the start a random corner of the set.

    As in the released code, a perturbation belongs to the pixels of the cropped image, and is not moved with the crop.
    Different from it, each gradient is scaled by itself and not by the whole batch, and starts are clipped to [0, 1];
    the released code attacks in training mode (`inner_mode=train_mode`). Images that the epoch of a reset leaves out
    keep their old start. Soft targets take the place of the label.

    Args:
        threat: Set of the start.
        weight: Weight of the difference of logits, at least 0.
        momentum: Share of the momentum that is kept; 0 keeps the last gradient alone (FGSM-EP).
        true: Probability of the true class in the relaxed label, in (0, 1].
        reset: Number of epochs after which starts are drawn anew.

    Raises:
        UserError: If a number is out of range; in training, if the attack is not PGD of one step.

    References:
        FGSM-PGI: https://arxiv.org/abs/2207.08859.
    """

    takes_any_attack: ClassVar[bool] = False

    threat: Linf
    weight: float = 10.0
    momentum: float = 0.3
    true: float = 0.6
    reset: int = 40

    def __post_init__(self) -> None:
        need_whole("reset", self.reset)
        if not (self.weight >= 0 and 0 <= self.momentum < 1 and 0 < self.true <= 1):
            raise UserError(
                f"weight = {self.weight:g} must be at least 0, momentum = {self.momentum:g} in [0, 1) and "
                f"true = {self.true:g} in (0, 1]"
            )

    def check(self, attack: Attack) -> None:
        other = getattr(attack, "threat", self.threat)
        if other != self.threat:
            raise UserError(f"FGSMMEP begins in {self.threat}, and its attack stays in {other}: give both one set")

    def init(self, data: LabelledData) -> nn.Module:
        return _Prior(data)

    def observe(self, ctx: Context) -> None:
        _prior(ctx).delta.check_once(ctx)

    def start(self, ctx: Context) -> Tensor:
        x = ctx.batch.x
        if epoch_of_reset(ctx, self.reset):
            return SignStart()(self.threat, x, ctx.rng("prior"))
        return self.threat.project(x + _prior(ctx).delta.read(ctx.batch), x)

    def attacking(self, ctx: Context, attack: Attack) -> Attack:
        if not (isinstance(attack, PGD) and attack.steps == 1):
            raise UserError(f"FGSM-MEP keeps the gradient of one step, and cannot do so for {attack!r}: take FGSM")
        kept = 0.0 if epoch_of_reset(ctx, self.reset) else self.momentum
        assert ctx.start is not None
        return _GuidedStep(attack, ctx.start, kept * _prior(ctx).momentum.read(ctx.batch), _prior(ctx))

    def inner(self, ctx: Context) -> PerExampleLoss:
        return CE(ctx.lens.logits, self._label(ctx))

    def remember(self, ctx: Context, x_adv: Tensor) -> None:
        prior = _prior(ctx)
        for bank, found in zip((prior.delta, prior.momentum), prior.found, strict=True):
            bank.write(ctx.batch, found)
        prior.found = ()

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        assert ctx.start is not None
        before, logits = ctx.lens.logits(ctx.start), ctx.lens.logits(x_adv)
        moved = self.weight * F.mse_loss(logits, before)
        return {"ce": F.cross_entropy(logits, self._label(ctx)), "moved": moved}

    def _label(self, ctx: Context) -> Tensor:
        return relaxed(ctx.batch.target, _prior(ctx).classes, self.true, ctx.batch.x.dtype)


class _Prior(nn.Module):
    """Holds where the attack on each image begins next, and the momentum of its gradients."""

    def __init__(self, data: LabelledData) -> None:
        super().__init__()
        self.delta, self.momentum, self.classes = PerturbationBank(data), PerturbationBank(data), len(data.classes)
        self.found: tuple[Tensor, ...] = ()  # by the attack, until it is remembered


@dataclass(frozen=True, slots=True, eq=False)
class _GuidedStep:
    """One step of an attack from `start`, which leaves the next start and the next momentum to the memory."""

    attack: PGD
    start: Tensor
    momentum: Tensor
    prior: _Prior

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        del rng
        grad = input_grad(loss, self.start)
        momentum = self.momentum + grad / each(grad.flatten(1).abs().mean(1).clamp_min(1e-30), grad)
        self.prior.found = (self._moved(x, momentum) - x, momentum)
        return self._moved(x, grad)

    def _moved(self, x: Tensor, grad: Tensor) -> Tensor:
        threat, size = self.attack.threat, self.attack.step_size
        length = 2.5 * threat.eps if size is None else size
        return threat.project(self.start + length * threat.ascent(grad), x)


def _prior(ctx: Context) -> _Prior:
    assert isinstance(ctx.memory, _Prior)
    return ctx.memory
