from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.losses import OnLogits
from ..core import ranks
from ..core.errors import UserError
from ..core.modes import eval_mode
from ..core.types import Context, Forward, LabelledData, Objective, PerExampleLoss, Terms
from .ard import need_temperature


@dataclass(frozen=True, slots=True)
class IKL(Objective):
    """Improved Kullback-Leibler: the decoupled divergence of TRADES, differentiated on both sides, weighted by class.

    The loss is clean cross-entropy plus `alpha` x cross-entropy of the adversarial prediction with the clean one, which
    is held fixed, plus `beta` x wMSE. wMSE compares the changes of the logits under the attack, d_j: it is the sum over
    pairs of classes of w_j w_k (d_j - d_k)² / 4, where w is the mean prediction, in the last epoch, for clean images of
    the class of the image, at a temperature; in the first epoch it is uniform. The attack maximises the cross-entropy
    with the fixed clean prediction plus `attack_beta` x wMSE; start it with `GaussianStart(0.001)`. Soft targets enter
    the clean cross-entropy, and mix the w of classes.

    For w the released code (its first version) takes the predictions of the update in training mode; here they are
    taken in eval mode, by a clean pass after the attack. Its eps rises linearly over the whole training (`EpsWarmUp`).

    Args:
        alpha: Weight of the cross-entropy with the clean prediction.
        beta: Weight of wMSE.
        temperature: Temperature of the predictions that w averages.
        attack_beta: Weight of wMSE in the loss of the attack: 0 in the released code for CIFAR-10, 1 for CIFAR-100.

    Raises:
        UserError: If `temperature` is not above 0; in training, without a training set whose classes are known.

    References:
        Decoupled KL: https://arxiv.org/abs/2305.13948.
    """

    alpha: float = 4.0
    beta: float = 20.0
    temperature: float = 4.0
    attack_beta: float = 0.0

    def __post_init__(self) -> None:
        need_temperature(self.temperature)

    def init(self, data: LabelledData) -> nn.Module:
        return ClassPredictions(data)

    def observe(self, ctx: Context) -> None:
        if ctx.progress.step % ctx.progress.steps_per_epoch == 0:
            _held(ctx).end_epoch()

    def inner(self, ctx: Context) -> PerExampleLoss:
        clean = ctx.lens.logits(ctx.batch.x).detach()
        return _DecoupledKL(ctx.lens.logits, clean, _weights(ctx, clean), self.attack_beta)

    def remember(self, ctx: Context, x_adv: Tensor) -> None:
        del x_adv
        with eval_mode(ctx.lens.model):
            p = (ctx.lens.logits(ctx.batch.x) / self.temperature).softmax(1)
        _held(ctx).add(ranks.gathered(p), ranks.gathered(ctx.batch.target))

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        clean, adversarial = ctx.lens.logits(ctx.batch.x), ctx.lens.logits(x_adv)
        return {
            "ce_clean": F.cross_entropy(clean, ctx.batch.target),
            "ce": self.alpha * F.cross_entropy(adversarial, clean.detach().softmax(1)),
            "wmse": self.beta * _wmse(clean - adversarial, _weights(ctx, clean)).mean(),
        }


class ClassPredictions(nn.Module):
    """The mean prediction for each class in the last epoch, and the sum in this one.

    Args:
        data: The training set.

    Raises:
        UserError: If the training set has no classes.
    """

    means: Tensor
    sums: Tensor

    def __init__(self, data: LabelledData) -> None:
        super().__init__()
        count = need_classes(data, "IKL")
        self.register_buffer("means", torch.full((count, count), 1 / count))
        self.register_buffer("sums", torch.zeros(count, count))

    def add(self, p: Tensor, target: Tensor) -> None:
        """Add predictions `[B, C]` to the sums of their classes `[B]`, or of soft targets `[B, C]`."""
        share = F.one_hot(target, len(self.sums)).to(p) if target.ndim == 1 else target
        self.sums += share.T @ p

    def end_epoch(self) -> None:
        """Take the means of the sums; a class without an image keeps its mean."""
        total = self.sums.sum(1, keepdim=True)
        self.means.copy_(torch.where(total > 0, self.sums / total, self.means))
        self.sums.zero_()


@dataclass(frozen=True, slots=True)
class _DecoupledKL(OnLogits):
    logits: Forward
    clean: Tensor
    weights: Tensor
    beta: float

    def _value(self, out: Tensor) -> Tensor:
        ce = F.cross_entropy(out, self.clean.softmax(1), reduction="none")
        return ce + self.beta * _wmse(self.clean - out, self.weights) if self.beta else ce


def _wmse(change: Tensor, w: Tensor) -> Tensor:
    """Return the sum over pairs of classes, `[B]`, as half the weighted variance: C numbers instead of C²."""
    total = w.sum(1, keepdim=True)
    mean = (w * change).sum(1, keepdim=True) / total
    return 0.5 * (total * w * (change - mean).square()).sum(1)


def _weights(ctx: Context, like: Tensor) -> Tensor:
    """Return w for each image, `[B, C]`."""
    means = _held(ctx).means.to(like.dtype)
    return means[ctx.batch.y] if ctx.batch.soft is None else ctx.batch.soft.to(like.dtype) @ means


def _held(ctx: Context) -> ClassPredictions:
    assert isinstance(ctx.memory, ClassPredictions)
    return ctx.memory


def need_classes(data: LabelledData, name: str) -> int:
    """Return the number of classes; raise `UserError` if there are none."""
    if not data.classes:
        raise UserError(
            f"the memory of {name} depends on the classes of the training set: in a loop of your own, give the set to "
            "State.start(method, model, optimizer, data), or memory=method.init(data) to method.loss"
        )
    return len(data.classes)
