from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.threats import Linf
from ..core import ranks
from ..core.errors import UserError
from ..core.modes import statistics_kept, twice_differentiable
from ..core.rng import uniform
from ..core.types import Context, Terms
from .regularizers import Regularizer


@dataclass(frozen=True, slots=True)
class GradAlign(Regularizer):
    """Gradient alignment: keeps the loss locally linear, so that a single step remains a strong attack.

    The term is `weight` x (1 - the mean cosine between the input gradients at the image and at a random point of
    the perturbation set). As in the released code the first gradient is held fixed, the second is differentiated
    again, and images without a gradient are left out. Soft targets are used where a batch has them. Its forward
    passes do not change the statistics of batch norm. Added to a method: `Sum((CrossEntropy(),
    GradAlign(Linf("8/255"))))`.

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
        x = ctx.batch.x.detach()
        near = x + uniform(x, ctx.rng("alignment"), -self.threat.eps, self.threat.eps)
        with statistics_kept(ctx.lens.model):
            here = _gradient(ctx, x, twice=False)
            there = _gradient(ctx, near, twice=True)
        least = 1e8 * torch.finfo(here.dtype).tiny  # shorter ones have too few digits, or are 0
        longer = [grads.detach().abs().amax(1) > least for grads in (here, there)]
        rows = (longer[0] & longer[1]).nonzero()[:, 0]
        # a gradient of 0 has no direction; where every row has such a gradient, the misalignment is 0
        apart = (1 - F.cosine_similarity(_direction(here[rows]), _direction(there[rows]), dim=1)).sum()
        apart = apart + there.sum() * 0
        counted = ranks.total(len(rows)) / ranks.total(len(x))  # other processes may leave out more or fewer images
        return {"misalignment": self.weight * apart / max(1e-9, counted * len(x))}


def _direction(grads: Tensor) -> Tensor:
    """Return gradients with a largest value of 1: the cosine of shorter ones than 1e-8 would be cut off."""
    return grads / grads.detach().abs().amax(1, keepdim=True)


def _gradient(ctx: Context, x: Tensor, twice: bool) -> Tensor:
    x = x.clone().requires_grad_()
    with twice_differentiable() if twice else nullcontext():
        loss = F.cross_entropy(ctx.lens.model(x), ctx.batch.target, reduction="sum")
    (grad,) = torch.autograd.grad(loss, x, create_graph=twice)
    return grad.flatten(1)


def _refuse_compiled(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise UserError(
                "GradAlign differentiates twice, which a compiled model does not allow: give the model as it was "
                "before torch.compile (attacks may still be compiled, with --compile on)"
            )
