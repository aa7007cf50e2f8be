from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.threats import Linf
from ..core.errors import UserError
from ..core.modes import statistics_kept, twice_differentiable
from ..core.rng import make_rng, seed_of_step, uniform
from ..core.types import Context, Terms
from .regularizers import Regularizer


@dataclass(frozen=True, slots=True)
class GradAlign(Regularizer):
    """Gradient alignment: keeps the loss locally linear, so that a single step remains a strong attack.

    The term is `weight` x (1 - the mean cosine between the input gradients at the image and at a random point of the
    perturbation set). As in the released code the first gradient is held fixed, the second is differentiated again, and
    images without a gradient are left out. Its forward passes do not change the statistics of batch norm. Added to a
    method: `Sum((CrossEntropy(), GradAlign(Linf("8/255"))))`.

    Args:
        threat: Perturbation set of the random point.
        weight: Weight of the term. The paper's weight for CIFAR-10 is `GradAlign.weight_for(eps)`, 0.2 at 8/255.

    Raises:
        UserError: In training, for a compiled model, which cannot be differentiated twice.

    References:
        GradAlign: https://arxiv.org/abs/2007.02617.
    """

    threat: Linf
    weight: float = 0.2

    @staticmethod
    def weight_for(eps: float) -> float:
        """Weight that the paper found for CIFAR-10, log-linear in eps: 0.2 at 8/255, 2 at 16/255.

        Args:
            eps: Radius of the perturbation set, for pixels in [0, 1].

        Returns:
            The weight.
        """
        return 0.02 * 10 ** (eps * 255 / 8)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        _refuse_compiled(ctx.lens.model)
        x, rng = ctx.batch.x.detach(), make_rng(seed_of_step(ctx.progress.step), ctx.batch.x.device)
        near = x + uniform(x, rng, -self.threat.eps, self.threat.eps)
        with statistics_kept(ctx.lens.model):
            here = _gradient(ctx, x, twice=False)
            there = _gradient(ctx, near, twice=True)
        rows = ((here != 0).any(1) & (there.detach() != 0).any(1)).nonzero()[:, 0]
        # a gradient of 0 has no direction; where every row has such a gradient, the misalignment is 0
        cosine = F.cosine_similarity(here[rows], there[rows], dim=1).mean() if len(rows) else there.sum() * 0 + 1
        return {"misalignment": self.weight * (1 - cosine)}


def _gradient(ctx: Context, x: Tensor, twice: bool) -> Tensor:
    x = x.clone().requires_grad_()
    with twice_differentiable() if twice else nullcontext():
        loss = F.cross_entropy(ctx.lens.model(x), ctx.batch.y, reduction="sum")
    (grad,) = torch.autograd.grad(loss, x, create_graph=twice)
    return grad.flatten(1)


def _refuse_compiled(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise UserError(
                "GradAlign differentiates twice, which a compiled model does not allow: give the model as it was "
                "before torch.compile (attacks may still be compiled, with --compile on)"
            )
