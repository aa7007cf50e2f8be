from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.types import Context, LossOutput, Objective, PerExampleLoss, Terms
from ..core.whole_batch import WholeBatch
from .contrastive import JOINT, need_temperature, need_two_views, projected
from .contrastive_losses import LazyLoss, nt_xent


@dataclass(frozen=True, slots=True)
class RoCL(Objective):
    """Robust contrastive learning (https://arxiv.org/abs/2006.07589): two views and an attacked one, without labels.

    The attack moves the first view away from the second: it raises NT-Xent of the two. Lowered are NT-Xent of all
    three, and `weight` x that of the attacked and the second view, 1/256 as released. Batches hold two views
    (`views=2` of the recipe).

    In the released code no gradient flows through what an image is compared with, and the added term has a forward
    pass, so a mean and variance of batch norm, of its own; here the loss is differentiated whole, in one pass of all
    three. Raises `UserError` for batches of one view, and attacks that take rows out of a batch.
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
                """The second views are not looked at, and have 0."""
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
        first, second, attacked = z.split(half)
        return {
            "three_views": nt_xent(first, second, attacked, temperature=self.temperature).mean(),
            "attacked_view": self.weight * nt_xent(attacked, second, temperature=self.temperature).mean(),
        }
