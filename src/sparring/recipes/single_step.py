"""Single-step adversarial training on CIFAR-10. None has been run, because the data set was not available."""

from dataclasses import replace

from ..attacks import FGSM, NFGSM, MultiGrad, RandomStart, ZeroGrad
from ..attacks.threats import Linf
from ..core.schedules import Cyclic
from ..core.serialization import Build
from ..core.types import Attack
from ..data import CIFAR10, Crop, Flip
from ..models import preact_resnet18
from ..objectives.cross_entropy import CrossEntropy
from ..objectives.grad_align import GradAlign
from ..objectives.regularizers import Sum
from ..runs.recipe import Recipe
from ..training.engine import Method
from ..training.free import Free
from ..training.optimizers import SGD
from ._common import Craft, crafted, pgd_50_10, select_by_pgd

_ACTIVATED = Build(preact_resnet18, final_norm=True, shortcut="activated")


def _short(threat: Linf, attack: Attack, epochs: int = 30, peak: float = 0.2, top: float = 0.5) -> Recipe:
    """Return the short training of these papers: PreActResNet-18, batch 128, weight decay 5e-4, one cycle of the rate.

    The net is that of fast adversarial training; recipes of papers whose code has another net state it.
    """
    return Recipe(
        data=CIFAR10(),
        model=Build(preact_resnet18, final_norm=True),
        method=Method(attack, CrossEntropy()),
        epochs=epochs,
        lr=Cyclic(peak, top),
        augment=(Crop(4), Flip()),
        optimizer=SGD(weight_decay=5e-4),
        selection=select_by_pgd(threat),
        evaluation=pgd_50_10(threat),
    )


def cifar10_prn18_fgsm_rs(eps: float = 8 / 255, craft: Craft = "eval") -> Recipe:
    """FGSM-RS ("fast" AT) of PreActResNet-18 on CIFAR-10, Linf 8/255, 15 epochs (untested here: no data).

    https://arxiv.org/abs/2001.03994: one step of 1.25 eps from a random start, rate 0 to 0.2 and back. Its README
    reports 86.06 % clean and 46.06 % under PGD-50-10. The net is that of its code (locuslab/fast_adversarial). Crafting
    is in eval mode here, in training mode in that code (`craft="train"`).
    """
    threat = Linf(eps)
    return crafted(_short(threat, FGSM(threat, 1.25 * threat.eps, RandomStart()), epochs=15), craft)


def cifar10_prn18_n_fgsm(eps: float = 8 / 255, craft: Craft = "eval") -> Recipe:
    """N-FGSM of PreActResNet-18 on CIFAR-10, Linf 8/255, 30 epochs (untested here: no data).

    https://arxiv.org/abs/2202.01181: noise of 2 eps, a step of eps, no projection. The net is that of its code
    (pdejorge/N-FGSM). Crafting is in eval mode here, in training mode in that code (`craft="train"`).
    """
    threat = Linf(eps)
    return crafted(_short(threat, NFGSM(threat)), craft)


def cifar10_prn18_zero_grad(eps: float = 8 / 255, quantile: float = 0.35, craft: Craft = "eval") -> Recipe:
    """ZeroGrad of PreActResNet-18 on CIFAR-10, Linf 8/255, 30 epochs (untested here: no data).

    https://arxiv.org/abs/2103.15476: a step of 2 eps from a random start, with the smallest 35 % of the gradients set
    to zero. The net is that of its code (rohban-lab/catastrophic_overfitting). Crafting is in eval mode here, in
    training mode in that code (`craft="train"`).
    """
    threat = Linf(eps)
    return crafted(replace(_short(threat, ZeroGrad(threat, quantile)), model=_ACTIVATED), craft)


def cifar10_prn18_multi_grad(eps: float = 8 / 255, points: int = 3, craft: Craft = "eval") -> Recipe:
    """MultiGrad of PreActResNet-18 on CIFAR-10, Linf 8/255, 30 epochs (untested here: no data).

    https://arxiv.org/abs/2103.15476: a step of 2 eps where the gradients at three random points agree. The net is that
    of its code (rohban-lab/catastrophic_overfitting). Crafting is in eval mode here, in training mode in that code
    (`craft="train"`).
    """
    threat = Linf(eps)
    return crafted(replace(_short(threat, MultiGrad(threat, points)), model=_ACTIVATED), craft)


def cifar10_prn18_grad_align(eps: float = 8 / 255, craft: Craft = "eval") -> Recipe:
    """FGSM + GradAlign of PreActResNet-18 on CIFAR-10, Linf 8/255, 30 epochs (untested here: no data).

    https://arxiv.org/abs/2007.02617: FGSM from the image, rate 0 to 0.3 and back with its peak at 40 %, weight by eps.
    RobustBench lists the authors' weights with 79.84 % clean and 43.93 % under AutoAttack. The net is that of its code
    (tml-epfl/understanding-fast-adv-training), without a norm before the pooling. Crafting is in eval mode here, in
    training mode in that code (`craft="train"`), where passes of the term update the statistics too.
    """
    threat = Linf(eps)
    objective = Sum((CrossEntropy(), GradAlign(threat, GradAlign.weight_for(threat.eps))))
    base = _short(threat, FGSM(threat), peak=0.3, top=0.4)
    return crafted(replace(base, model=Build(preact_resnet18), method=Method(FGSM(threat), objective)), craft)


def cifar10_prn18_free(eps: float = 8 / 255, replays: int = 8) -> Recipe:
    """Free AT of PreActResNet-18 on CIFAR-10, Linf 8/255, 10 epochs of 8 replays (untested here: no data).

    https://arxiv.org/abs/1904.12843, with the settings that https://arxiv.org/abs/2001.03994 compares to: rate 0 to
    0.04 and back. The README of that code (locuslab/fast_adversarial), whose net this is, reports 85.96 % clean and
    46.33 % under PGD-50-10.
    """
    threat = Linf(eps)
    return replace(_short(threat, FGSM(threat), epochs=10, peak=0.04), method=Free(threat, replays))
