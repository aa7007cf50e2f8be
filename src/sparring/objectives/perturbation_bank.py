"""A perturbation of each training image, kept from one epoch to the next."""

import math

from torch import Tensor

from ..core import ranks
from ..core.errors import UserError
from ..core.types import Batch, Context, LabelledData
from .example_bank import Bank


class PerturbationBank(Bank):
    """Bank of one number for each pixel of each training image, 0 at first.

    Args:
        data: The training set.

    Raises:
        UserError: If the data has no length, or a batch has images of another size.
    """

    def __init__(self, data: LabelledData) -> None:
        super().__init__(data, math.prod(data.shape))
        self.shape = tuple(data.shape)

    def read(self, batch: Batch) -> Tensor:
        """Return the rows of a batch as images `[B, C, H, W]`."""
        if tuple(batch.x.shape[1:]) != self.shape:
            raise UserError(
                f"images of shape {tuple(batch.x.shape[1:])} do not go with perturbations that are kept for shape "
                f"{self.shape}: train on images of one size"
            )
        return self[batch.index].view_as(batch.x).to(batch.x.dtype)

    def write(self, batch: Batch, delta: Tensor) -> None:
        """Keep perturbations `[B, C, H, W]` of the images of all processes; of several views, that of the first."""
        first = slice(len(batch.index) // batch.views)
        self[ranks.gathered(batch.index[first])] = ranks.gathered(delta[first].flatten(1))

    def check_once(self, ctx: Context) -> None:
        """Raise `UserError` for an index outside the training set; on a GPU only in the first step, as it waits."""
        if ctx.progress.step == 0 or ctx.batch.index.device.type == "cpu":
            self.check(ctx.batch.index)


def epoch_of_reset(ctx: Context, every: int) -> bool:
    """Return True in epochs 0, `every`, 2 x `every` .., in which what is kept is not used."""
    return ctx.progress.step // ctx.progress.steps_per_epoch % every == 0
