from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import ranks
from ..core.types import Context, LossOutput, Objective, PerExampleLoss, Terms
from ..core.whole_batch import WholeBatch
from .contrastive_losses import LazyLoss, nt_xent
from .contrasts import JOINT, need_temperature, need_two_views, of_all, projected


@dataclass(frozen=True, slots=True)
class RoCL(Objective):
    """Robust contrastive learning: two views and an attacked one, without labels.

    The attack moves the first view away from the second: it maximises NT-Xent of the two. The training loss is NT-Xent
    of all three plus `weight` x NT-Xent of the attacked and the second view. Batches hold two views
    (`views_per_image=2` of the recipe).

    In the released code no gradient flows through the views that an image is compared with, and the added term has a
    forward pass of its own, so also its own mean and variance of batch norm; here the whole loss is differentiated, in
    one pass of all three. On several processes, the attack of each moves its own images away from each other; the loss
    contrasts those of all.

    Args:
        temperature: Temperature of NT-Xent.
        weight: Weight of the added term, 1/256 as released.

    Raises:
        UserError: If `temperature` is not above 0; in training, for batches of one view and for attacks that take rows
            out of a batch.

    References:
        RoCL: https://arxiv.org/abs/2006.07589.
    """

    temperature: float = 0.5
    weight: float = 1 / 256
    needs_views: ClassVar[int] = 2

    def __post_init__(self) -> None:
        need_temperature(self.temperature)

    def inner(self, ctx: Context) -> PerExampleLoss:
        need_two_views(ctx.batch)

        def made() -> PerExampleLoss:
            x = ctx.batch.x
            second = projected(ctx.lens.parts(x[len(x) // 2 :]))

            def away(z: Tensor) -> LossOutput:
                """NT-Xent of the first views; the second views are not evaluated, and their loss is 0."""
                first = projected(ctx.lens.parts(z[: len(second)]))
                value = nt_xent(first, second, temperature=self.temperature)
                return LossOutput(torch.cat([value, torch.zeros_like(value)]))

            return WholeBatch(away, JOINT)

        return LazyLoss(made)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        need_two_views(ctx.batch)
        x = ctx.batch.x
        half = len(x) // 2
        z = projected(ctx.lens.parts(torch.cat([x, x_adv[:half]])))
        first, second, attacked = (ranks.gathered_with_gradient(view) for view in z.split(half))
        return {
            "three_views": of_all(nt_xent(first, second, attacked, temperature=self.temperature).mean(), ctx),
            "attacked_view": of_all(self.weight * nt_xent(attacked, second, temperature=self.temperature).mean(), ctx),
        }
