import random
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..attacks.compose import Split
from ..core import ranks
from ..core.errors import UserError
from ..core.types import Attack, Context, LabelledData, Terms
from .growing import Growing
from .regularizers import Regularizer


@dataclass(frozen=True, slots=True)
class EAT(Regularizer):
    """Extreme norms adversarial training (E-AT): each batch meets one of several attacks, drawn by its errors so far.

    The attack of the method is a `Split` of attacks in several norms, as
    `Split(((0.5, APGD(Linf("8/255"))), (0.5, APGD(L1(12)))))`. For each batch one of them is drawn for all images, with
    a probability in proportion to the error of the model under it in all batches so far; until each was drawn once, by
    the shares. It changes no loss. Added to a method: `Sum((CrossEntropy(), EAT()))`.

    The error is that at the point that the attack returns, which costs one forward pass more. The released code counts
    an image as an error if any point on the way of APGD fools the model.

    Raises:
        UserError: In training, if the attack is no `Split`.

    References:
        E-AT: https://arxiv.org/abs/2105.12508.
    """

    takes_any_attack: ClassVar[bool] = False

    def init(self, data: LabelledData) -> nn.Module:
        del data
        return _Errors(0, 2)

    def attacking(self, ctx: Context, attack: Attack) -> Attack:
        if not isinstance(attack, Split):
            raise UserError(f"E-AT draws one of several attacks, and {attack!r} is one: give Split(((0.5, ..), ..))")
        memory = _errors(ctx)
        if memory.step != ctx.progress.step:  # micro-batches of a step share the draw
            memory.drawn = drawn(memory.held.tolist(), [share for share, _ in attack.parts], ctx.chance("norm"))
            memory.step, memory.count = ctx.progress.step, len(attack.parts)
        return attack.parts[memory.drawn][1]

    def remember(self, ctx: Context, x_adv: Tensor) -> None:
        memory = _errors(ctx)
        wrong = ranks.gathered(ctx.lens.logits(x_adv).argmax(1) != ctx.batch.y)
        if len(memory.held) != memory.count:
            memory.held = torch.zeros(memory.count, 2, device=wrong.device)
        memory.held[memory.drawn, 0] += wrong.sum()
        memory.held[memory.drawn, 1] += len(wrong)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        del ctx, x_adv
        return {}


class _Errors(Growing):
    """Number of errors and of images under each attack, and which attack was drawn for this batch."""

    step: int = -1
    drawn: int = 0
    count: int = 0


def drawn(errors: list[list[float]], shares: list[float], seed: int) -> int:
    """Return the number of the attack that is drawn, by the rates of errors if there is one for each attack."""
    seen = bool(errors) and all(images for _, images in errors)
    rates = [wrong / images for wrong, images in errors] if seen else shares
    return random.Random(seed).choices(range(len(shares)), rates if any(rates) else shares)[0]


def _errors(ctx: Context) -> _Errors:
    assert isinstance(ctx.memory, _Errors)
    return ctx.memory
