from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import ranks
from ..core.types import Context, LossOutput, Objective, PerExampleLoss, Terms
from ..core.whole_batch import WholeBatch
from .contrastive_losses import nt_xent
from .contrasts import JOINT, need_temperature, need_two_views, of_all, projected


@dataclass(frozen=True, slots=True)
class ACL(Objective):
    """Adversarial contrastive learning, dual stream, without labels.

    The attack maximises NT-Xent of the two views and perturbs both at once. The training loss is the mean of NT-Xent of
    the clean views and NT-Xent of the attacked views. Batches hold two views (`views_per_image=2` of the recipe).

    In the released code clean and attacked views have separate weights and statistics of batch norm; here they share
    them, and each stream has its own forward pass. On several processes, the attack of each contrasts its own images;
    the loss contrasts those of all.

    Args:
        temperature: Temperature of NT-Xent.

    Raises:
        UserError: If `temperature` is not above 0; in training, for batches of one view and for attacks that take rows
            out of a batch.

    References:
        ACL: https://arxiv.org/abs/2010.13337.
    """

    temperature: float = 0.5
    needs_views: ClassVar[int] = 2

    def __post_init__(self) -> None:
        need_temperature(self.temperature)

    def inner(self, ctx: Context) -> PerExampleLoss:
        need_two_views(ctx.batch)
        return WholeBatch(lambda x: LossOutput(self._both(ctx, x)), JOINT)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        need_two_views(ctx.batch)
        streams = {"views": ctx.batch.x, "attacked_views": x_adv}
        return {
            name: of_all(self._both(ctx, x, ranks.gathered_with_gradient).mean(), ctx) for name, x in streams.items()
        }

    def _both(self, ctx: Context, x: Tensor, among: Callable[[Tensor], Tensor] = lambda rows: rows) -> Tensor:
        """Half of NT-Xent of the two views of an image, for each of the views, `[B]`."""
        a, b = (among(view) for view in projected(ctx.lens.parts(x)).chunk(2))
        return nt_xent(a, b, temperature=self.temperature).repeat(2) / 2
