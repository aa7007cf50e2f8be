"""Baseline methods on CIFAR-10. None has been run, because the data set was not available."""

from dataclasses import replace

from ..attacks import PGD, GaussianStart
from ..attacks.threats import Linf
from ..core.schedules import MultiStep, PiecewiseConstant
from ..core.serialization import Build
from ..data import Crop, Flip
from ..models import preact_resnet18
from ..objectives.consistency import Consistency
from ..objectives.cross_entropy import CrossEntropy
from ..objectives.logit_pairing import Distance, LogitPairing
from ..objectives.mart import MART
from ..objectives.regularizers import Sum
from ..objectives.trades import TRADES
from ..runs.recipe import Recipe
from ..training.averaging import SWA
from ..training.engine import Method
from ..training.optimizers import SGD
from ..training.updates import AWP, OptimizerStep
from ._common import Craft, crafted
from .cifar10 import cifar10_rn18_pgd


def cifar10_rn18_mart(eps: float = 8 / 255, beta: float = 5.0) -> Recipe:
    """MART of ResNet-18 on CIFAR-10, Linf 8/255, 120 epochs (untested here: no data).

    The released settings of https://openreview.net/forum?id=rklOg6EFwS for this net: weight 5, rate 0.01 divided by 10
    at epochs 75, 90 and 100, weight decay 3.5e-3, start x + 0.001 N(0, I). An independent re-implementation
    (MTandHJ/PyTorch-Robust, its README) reports 79.23 % clean and 47.83 % under AutoAttack at best.
    """
    threat = Linf(eps)
    return replace(
        cifar10_rn18_pgd(eps),
        method=Method(PGD(threat, steps=10, step_size=threat.eps * 7 / 31, start=GaussianStart()), MART(beta)),
        epochs=120,
        lr=MultiStep(0.01, (75, 90, 100)),
        augment=(Crop(4), Flip()),
        optimizer=SGD(weight_decay=3.5e-3),
    )


def _long(eps: float) -> Recipe:
    """Return the long training of https://arxiv.org/abs/2002.11569, which shows robust overfitting, with its net."""
    return replace(
        cifar10_rn18_pgd(eps),
        model=Build(preact_resnet18, final_norm=True, shortcut="activated"),
        epochs=200,
        lr=MultiStep(0.1, (100, 150)),
        augment=(Crop(4), Flip()),
    )


def cifar10_prn18_pgd_long(eps: float = 8 / 255, craft: Craft = "eval") -> Recipe:
    """PGD-10 AT of PreActResNet-18 on CIFAR-10, Linf 8/255, 200 epochs: overfits (untested here: no data).

    https://arxiv.org/abs/2002.11569: rate 0.1, divided by 10 at epochs 100 and 150. Its logs report 53.49 % under
    PGD-10 at the best epoch and 45.59 % at the last. The net is that of its code (locuslab/robust_overfitting).
    Crafting is in eval mode here, in training mode in that code (`craft="train"`).
    """
    return crafted(_long(eps), craft)


def cifar10_prn18_awp(eps: float = 8 / 255, gamma: float = 0.01, craft: Craft = "eval") -> Recipe:
    """PGD-10 AT with weight perturbation (AWP) of PreActResNet-18 on CIFAR-10, 200 epochs (untested here: no data).

    https://arxiv.org/abs/2004.05884, gamma 0.01 from the start. Its logs report 55.39 % under PGD-20 at the best epoch
    and 54.30 % at the last. The net is that of its code (csdongxian/AWP, AT_AWP). Crafting is in eval mode here, in
    training mode in that code (`craft="train"`).
    """
    return crafted(replace(_long(eps), update=AWP(gamma)), craft)


def cifar10_prn18_trades_awp(eps: float = 8 / 255, beta: float = 6.0, gamma: float = 0.005) -> Recipe:
    """TRADES with weight perturbation (AWP) of PreActResNet-18 on CIFAR-10, 200 epochs (untested here: no data).

    https://arxiv.org/abs/2004.05884, gamma 0.005 after 10 epochs of warm-up. The net is that of `cifar10_prn18_awp`;
    their code for TRADES trains WRN-34-10 by default. Crafting is in eval mode, as in that code.
    """
    threat = Linf(eps)
    return replace(
        _long(eps),
        method=Method(PGD(threat, steps=10, step_size=threat.eps / 4, start=GaussianStart()), TRADES(beta)),
        update=PiecewiseConstant(((0, OptimizerStep()), (10, AWP(gamma)))),
    )


def cifar10_prn18_swa(eps: float = 8 / 255, start: int = 55, craft: Craft = "eval") -> Recipe:
    """PGD-10 AT with averaged weights (SWA) of PreActResNet-18 on CIFAR-10, 200 epochs (untested here: no data).

    https://openreview.net/forum?id=qZzy5urZw9, without its distillation: weights averaged over all epochs after 55, the
    rate divided by 10 at epochs 50 and 150. The net is that of its code (VITA-Group/Alleviate-Robust-Overfitting).
    Crafting is in eval mode here, in training mode in that code (`craft="train"`).
    """
    return crafted(replace(_long(eps), lr=MultiStep(0.1, (50, 150)), averaging=SWA(start)), craft)


def cifar10_prn18_consistency(eps: float = 8 / 255, weight: float = 1.0) -> Recipe:
    """PGD-10 AT with consistency of PreActResNet-18 on CIFAR-10, 200 epochs (untested here: no data).

    https://arxiv.org/abs/2103.04550: every image twice in a batch of 64, differently augmented, with the divergence of
    the two adversarial predictions, which are sharpened by 0.5. The paper augments with AutoAugment and cutout, this
    recipe with crops and flips. The net is that of `cifar10_prn18_pgd_long`; that of its code
    (alinlab/consistency-adversarial) has norm and ReLU after the first convolution, none before the pooling, and all
    its shortcuts read the activated input.
    """
    base = _long(eps)
    assert isinstance(base.method, Method)
    objective = Sum((CrossEntropy(), Consistency(weight)))
    return replace(base, method=replace(base.method, objective=objective), batch_size=64, views_per_image=2)


def cifar10_rn18_alp(
    eps: float = 8 / 255, weight: float = 0.5, distance: Distance = "squared", summed: bool = False
) -> Recipe:
    """Adversarial logit pairing of ResNet-18 on CIFAR-10, Linf 8/255, 110 epochs (untested here: no data).

    https://arxiv.org/abs/1803.06373: half clean, half adversarial images, and the mean squared difference of their
    logits. We know of no reported accuracy for this loss. An independent re-implementation (MTandHJ/PyTorch-Robust)
    reports 86.53 % clean and 47.38 % under AutoAttack for weight 0.5; its loss is `summed`: the two cross-entropies are
    added, each with weight 1. Its code paired by the length of the difference (`distance="length"`) in the days before
    5 November 2021, and by the mean square since; the accuracy appeared on 9 November, and its README does not state
    which pairing it is for.
    """
    base = cifar10_rn18_pgd(eps)
    assert isinstance(base.method, Method)
    objective = Sum((CrossEntropy(clean=0.5, weight=2.0 if summed else 1.0), LogitPairing(weight, distance)))
    return replace(base, method=replace(base.method, objective=objective))
