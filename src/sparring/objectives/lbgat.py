from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import ranks
from ..core.rng import mixed_seed
from ..core.serialization import Build
from ..core.types import Context, LabelledData, Objective, PerExampleLoss, Terms
from .ikl import need_classes
from .trades import TRADES


@dataclass(frozen=True, slots=True)
class LBGAT(Objective):
    """Learnable boundary guided adversarial training: the logits of a second net, trained beside the first, guide it.

    The loss is the mean square, over images and classes, of the difference between the logits of the model at the
    adversarial image and those of the second net at the clean image, plus cross-entropy of the second net at the clean
    image, plus `beta` x KL(clean ‖ adversarial) of the model. All are differentiated by both nets. The attack is that
    of TRADES; start it with `GaussianStart(0.001)`. Soft targets enter the cross-entropy.

    The second net has the rate, the momentum and the weight decay of the model, and the images are not normalised
    for it. Its first weights follow from torch's seed, which `fit` sets to the seed of the recipe.

    Args:
        second: How the second net is built, such as `Build(resnet18)`; it is given classes and shape of the images.
        beta: Weight of the divergence, 0 or 6 in the paper; with 0, no clean image is run through the model in the
            update.

    Raises:
        UserError: In training, without a training set whose classes are known.

    References:
        LBGAT: https://arxiv.org/abs/2011.11164.
    """

    second: Build[nn.Module]
    beta: float = 6.0

    def init(self, data: LabelledData) -> nn.Module:
        classes = need_classes(data, "LBGAT")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(torch.initial_seed(), "second net"))
            net = self.second(num_classes=classes, shape=data.shape)
        ranks.broadcast_(list(net.state_dict().values()))
        return net

    def inner(self, ctx: Context) -> PerExampleLoss:
        return TRADES().inner(ctx)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        adversarial, guide = ctx.lens.logits(x_adv), ctx.memory(ctx.batch.x)
        terms = {"mse": F.mse_loss(adversarial, guide), "ce_second": F.cross_entropy(guide, ctx.batch.target)}
        if self.beta:
            log_p, log_q = ctx.lens.logits(ctx.batch.x).log_softmax(1), adversarial.log_softmax(1)
            terms["kl"] = self.beta * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return terms
