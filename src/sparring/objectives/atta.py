from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.errors import need_whole
from ..core.types import Batch, Context, LabelledData, Terms
from .perturbation_bank import PerturbationBank, epoch_of_reset
from .regularizers import Regularizer


@dataclass(frozen=True, slots=True)
class ATTA(Regularizer):
    """Adversarial training with transferable examples (ATTA): attacks begin where those of the epoch before ended.

    The perturbation of each training image is kept, and moved through crops and flips (`Batch.places`), so that few
    steps in each epoch add up to a strong attack. It changes the start of the attack and no loss. In every `reset`-th
    epoch the attack has its own start; the paper's is `GaussianStart(0.001)`. Added to a method:
    `Sum((CrossEntropy(), ATTA()))` is ATTA for AT, `Sum((TRADES(6.0), ATTA()))` is ATTA for TRADES.

    Different from the released code, perturbations of padding are not kept, the first reset is in the first epoch, and
    the loss of AT is not divided by the size of the batch once more. A batch without places is taken to be unaugmented.

    Args:
        reset: Number of epochs after which perturbations are forgotten; 10 in the released code.

    Raises:
        UserError: If `reset` is not a whole number above 0; in training, if the attack has no start, or an augmentation
            does something else than to move pixels.

    References:
        ATTA: https://arxiv.org/abs/1912.11969.
    """

    reset: int = 10
    needs_places: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need_whole("reset", self.reset)

    def init(self, data: LabelledData) -> nn.Module:
        return PerturbationBank(data)

    def observe(self, ctx: Context) -> None:
        _bank(ctx).check_once(ctx)

    def start(self, ctx: Context) -> Tensor | None:
        if epoch_of_reset(ctx, self.reset):
            return None
        return ctx.batch.x + _moved_with(ctx.batch, _bank(ctx).read(ctx.batch))

    def remember(self, ctx: Context, x_adv: Tensor) -> None:
        old = _bank(ctx).read(ctx.batch)
        old = torch.zeros_like(old) if epoch_of_reset(ctx, self.reset) else old
        _bank(ctx).write(ctx.batch, _moved_back(ctx.batch, x_adv - ctx.batch.x, old))

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        del ctx, x_adv
        return {}


def _moved_with(batch: Batch, delta: Tensor) -> Tensor:
    """Return perturbations of unaugmented images where augmentations have moved them, 0 at padding."""
    return _flat(delta, padding=True).gather(2, _places(batch)).view_as(delta)


def _moved_back(batch: Batch, delta: Tensor, old: Tensor) -> Tensor:
    """Return perturbations of augmented images where the pixels came from; `old` where no pixel came from."""
    return _flat(old, padding=True).scatter(2, _places(batch), _flat(delta))[:, :, :-1].view_as(old)


def _flat(delta: Tensor, padding: bool = False) -> Tensor:
    """Return pixels in a row `[B, C, H * W]`, with another one for padding if it is wanted."""
    flat = delta.flatten(2)
    return torch.cat([flat, flat.new_zeros(*flat.shape[:2], 1)], 2) if padding else flat


def _places(batch: Batch) -> Tensor:
    """Return the place that each pixel came from, `[B, C, H * W]`; that of padding is the last."""
    count = batch.x[0, 0].numel()
    if batch.places is None:
        places = torch.arange(count, device=batch.x.device).expand(len(batch.x), -1)
    else:
        places = torch.where(batch.places < 0, count, batch.places).flatten(1)
    return places[:, None].expand(-1, batch.x.shape[1], -1)


def _bank(ctx: Context) -> PerturbationBank:
    assert isinstance(ctx.memory, PerturbationBank)
    return ctx.memory
