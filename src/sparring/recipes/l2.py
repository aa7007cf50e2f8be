"""Networks of varied robustness in L2, for the analyses of information, transfer and inversion."""

from dataclasses import replace

from ..attacks import PGD, CleanStart, RandomEps
from ..attacks.threats import L2
from ..core.schedules import MultiStep
from ..data import Crop, Flip, Jitter
from ..objectives.cross_entropy import CrossEntropy
from ..runs.recipe import Recipe
from ..training.engine import Method
from ._common import pgd_50_10, select_by_pgd
from ._digits import pgd_on_digits
from .cifar10 import cifar10_rn18_pgd
from .small import fashion_pgd


def digits_l2(eps: float = 0.5) -> Recipe:
    """PGD-AT of a small CNN on the digits of scikit-learn, L2 0.5: under a minute."""
    return _in_l2(pgd_on_digits(), eps)


def fashion_l2(eps: float = 1.0) -> Recipe:
    """PGD-AT of a small CNN on Fashion-MNIST, L2 1: `fashion_pgd` in another norm."""
    return _in_l2(fashion_pgd(), eps)


def fashion_varied_eps(eps: float = 2.0) -> Recipe:
    """`fashion_l2` with an eps that is drawn anew for each batch, uniform between 0 and 2."""
    recipe = fashion_l2(eps)
    assert isinstance(recipe.method, Method) and isinstance(recipe.method.attack, PGD)
    return replace(recipe, method=replace(recipe.method, attack=RandomEps(recipe.method.attack)))


def cifar10_rn18_l2(eps: float = 0.5) -> Recipe:
    """PGD-7 AT of ResNet-18 on CIFAR-10, L2 0.5, 150 epochs (untested here: no data).

    Follows the robustness library, whose networks this literature measures, but not all of its defaults. As there:
    batch 128, rate 0.1 divided by 10 every 50 epochs, weight decay 5e-4, seven steps from the image itself, crops
    padded with zeros, flips, brightness, contrast and saturation changed by up to a quarter. The step size has no
    default there (here 2.5 eps / 7). Different there: it also rotates images by up to 2 degrees, trains on the iterate
    of the highest loss (here on the last one), and its nets are ResNet-50. eps 0.25, 0.5 and 1.0 are usual.
    """
    threat = L2(eps)
    return replace(
        cifar10_rn18_pgd(),
        method=Method(PGD(threat, steps=7, start=CleanStart()), CrossEntropy()),
        epochs=150,
        lr=MultiStep(0.1, (50, 100)),
        augment=(Crop(4), Flip(), Jitter(0.25, 0.25, 0.25, p=1.0)),
        selection=select_by_pgd(threat),
        evaluation=pgd_50_10(threat),
    )


def _in_l2(recipe: Recipe, eps: float) -> Recipe:
    threat = L2(eps)
    return replace(
        recipe,
        method=Method(PGD(threat, steps=5), CrossEntropy()),
        selection=select_by_pgd(threat, steps=10),
        evaluation=pgd_50_10(threat, examples=recipe.evaluation.examples),
    )
