from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import UserError
from ..core.types import Context, Terms
from .regularizers import Regularizer


@dataclass(frozen=True, slots=True)
class Consistency(Regularizer):
    """Consistency regularizer: pulls the adversarial predictions of two augmentations of an image together.

    The term is `weight` x the Jensen-Shannon divergence of the two predictions. It needs batches that hold every image
    twice (`views_per_image=2` of the recipe), and is added to a method: `Sum((CrossEntropy(), Consistency()))`.

    Args:
        weight: Weight of the divergence.
        temperature: Temperature of the predictions; below 1 it sharpens them.

    Raises:
        UserError: If `temperature` is not above 0; in training, for batches without two views.

    References:
        Consistency regularization: https://arxiv.org/abs/2103.04550.
    """

    weight: float = 1.0
    temperature: float = 0.5
    needs_views: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UserError(f"temperature = {self.temperature:g} is not above 0")

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        if ctx.batch.views != 2:
            raise UserError("consistency needs every image twice: set views_per_image = 2 (--views-per-image 2)")
        log_p, log_q = (ctx.lens.logits(x_adv) / self.temperature).log_softmax(1).chunk(2)
        middle = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0, device=log_p.device))
        apart = [F.kl_div(middle, log, reduction="batchmean", log_target=True) for log in (log_p, log_q)]
        return {"consistency": self.weight * (apart[0] + apart[1]) / 2}
