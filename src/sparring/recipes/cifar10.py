"""Recipes of the literature on CIFAR-10. None has been run, because the data set was not available."""

from dataclasses import replace

from ..attacks import PGD, GaussianStart
from ..attacks.threats import Linf
from ..core.schedules import MultiStep
from ..core.serialization import Build
from ..data import CIFAR10, Crop, Flip
from ..models import resnet18, wide_resnet
from ..objectives.cross_entropy import CrossEntropy
from ..objectives.trades import TRADES
from ..runs.recipe import Recipe
from ..training.engine import Method
from ..training.optimizers import SGD
from ._common import Moved, moving, pgd_50_10, select_by_pgd


def cifar10_rn18_pgd(eps: float = 8 / 255, moved: Moved = "update") -> Recipe:
    """PGD-10 AT of ResNet-18 on CIFAR-10, Linf 8/255, 110 epochs (untested here: no data).

    The baseline of Bag of Tricks (https://arxiv.org/abs/2010.00467): batch 128, rate 0.1, divided by 10 at epochs 100
    and 105, weight decay 5e-4, batch norm in eval mode while crafting, reflected crops and flips. An independent
    re-implementation (MTandHJ/PyTorch-Robust, its README) reports 84.15 % clean and 48.72 % under AutoAttack. The net
    is that of the re-implementation; the code of Bag of Tricks trains a PreActResNet-18 by default, which here is
    `Build(preact_resnet18, final_norm=True, shortcut="activated")`. Statistics of batch norm are of adversarial images
    alone, as in the re-implementation; in the authors' own code some 70 % of them come from clean images, of which it
    runs two additional passes per step (`moved="released"`).
    """
    threat = Linf(eps)
    return Recipe(
        data=CIFAR10(),
        model=Build(resnet18),
        method=Method(PGD(threat, steps=10, step_size=threat.eps / 4), moving(CrossEntropy(), moved)),
        epochs=110,
        lr=MultiStep(0.1, (100, 105)),
        augment=(Crop(4, "reflect"), Flip()),
        optimizer=SGD(weight_decay=5e-4),
        selection=select_by_pgd(threat),
        evaluation=pgd_50_10(threat),
    )


def cifar10_rn18_trades(eps: float = 8 / 255, beta: float = 6.0) -> Recipe:
    """TRADES of ResNet-18 on CIFAR-10, Linf 8/255, 110 epochs (untested here: no data).

    `cifar10_rn18_pgd` with TRADES in place of cross-entropy. An independent re-implementation
    (MTandHJ/PyTorch-Robust, its README) reports 82.35 % clean and 49.54 % under AutoAttack.
    """
    threat = Linf(eps)
    attack = PGD(threat, steps=10, step_size=threat.eps / 4, start=GaussianStart())
    return replace(cifar10_rn18_pgd(eps), method=Method(attack, TRADES(beta)))


def cifar10_wrn34_10_trades(eps: float = 0.031, beta: float = 6.0, moved: Moved = "update") -> Recipe:
    """TRADES of WRN-34-10 on CIFAR-10, Linf 0.031, 76 epochs (untested here: no data).

    The authors' released settings (https://arxiv.org/abs/1901.08573, yaodongyu/TRADES): ten steps of 0.007 from x +
    0.001 N(0, I), batch 128, rate 0.1, divided by 10 at epoch 75, weight decay 2e-4. Their model takes raw pixels
    (`normalize=False`); this one normalises them, and starts from torch's default initialisation. RobustBench lists
    the authors' weights with 84.92 % clean and 53.08 % under AutoAttack. Their update runs clean, adversarial and
    again clean images, so that two thirds of batch norm's statistics are of clean images (`moved="released"`); the
    default is one clean and one adversarial pass, in this order.
    """
    threat = Linf(eps)
    attack = PGD(threat, steps=10, step_size=threat.eps * 7 / 31, start=GaussianStart())
    return replace(
        cifar10_rn18_pgd(eps),
        model=Build(wide_resnet, depth=34, width=10),
        method=Method(attack, moving(TRADES(beta), moved)),
        epochs=76,
        lr=MultiStep(0.1, (75,)),
        augment=(Crop(4), Flip()),
        optimizer=SGD(weight_decay=2e-4),
    )
