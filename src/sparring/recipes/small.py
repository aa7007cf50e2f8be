"""Recipes that train on two cores: the bundled digits, and Fashion-MNIST."""

from dataclasses import replace

from ..attacks import PGD, Benign, GaussianStart
from ..attacks.threats import L2, Linf
from ..core.schedules import Cyclic
from ..core.serialization import Build
from ..data import FashionMNIST
from ..models import small_cnn
from ..objectives.cross_entropy import CrossEntropy
from ..objectives.gaussian_noise import GaussianNoise
from ..objectives.trades import TRADES
from ..runs.recipe import Recipe
from ..training.engine import Method
from ..training.optimizers import SGD
from ..training.updates import OptimizerStep
from ._common import pgd_50_10, select_by_pgd
from ._digits import pgd_on_digits


def quickstart(eps: float = 0.15) -> Recipe:
    """PGD-AT of a small CNN on the digits of scikit-learn, Linf 0.15: the first run, half a minute."""
    clipped = OptimizerStep(max_norm=1.0)  # without it, one of five seeds diverges at eps 8/255
    return replace(pgd_on_digits(eps), update=clipped)


def fashion_pgd(eps: float = 0.1) -> Recipe:
    """PGD-AT of a small CNN on Fashion-MNIST, Linf 0.1: eight minutes on two cores.

    Evaluated on the first 1,000 test images. The page *Overview* gives the results.
    """
    threat = Linf(eps)
    return Recipe(
        data=FashionMNIST(),
        model=Build(small_cnn, width=16),
        method=Method(PGD(threat, steps=5, step_size=threat.eps / 3), CrossEntropy()),
        epochs=8,
        lr=Cyclic(0.05, top=0.3),
        optimizer=SGD(nesterov=True),
        update=OptimizerStep(max_norm=1.0),  # without clipping, TRADES diverges in the second epoch
        selection=select_by_pgd(threat, steps=20),
        evaluation=pgd_50_10(threat, examples=1000),
    )


def fashion_trades(eps: float = 0.1, beta: float = 6.0) -> Recipe:
    """TRADES of a small CNN on Fashion-MNIST, Linf 0.1: `fashion_pgd` with another method.

    The attack starts next to the image, as in the paper (https://arxiv.org/abs/1901.08573).
    """
    threat = Linf(eps)
    attack = PGD(threat, steps=5, step_size=threat.eps / 3, start=GaussianStart())
    return replace(fashion_pgd(eps), method=Method(attack, TRADES(beta)))


def fashion_standard(eps: float = 0.1) -> Recipe:
    """No adversary: `fashion_pgd` on clean images, the baseline that robustness is measured against, in two minutes."""
    return replace(fashion_pgd(eps), method=Method(Benign(), CrossEntropy()), selection=Benign())


def fashion_noise(sigma: float = 0.25, eps: float = 0.5) -> Recipe:
    """Gaussian noise instead of an adversary on Fashion-MNIST, to be certified in L2 by randomized smoothing.

    `sparring evaluate RUN --certify 0.25` certifies it (https://arxiv.org/abs/1902.02918);
    attacks in L2 of radius `eps` show what the net itself is worth. The last epoch counts, as clean accuracy without
    noise does not tell which epoch is best with noise.
    """
    return replace(
        fashion_standard(),
        method=Method(Benign(), GaussianNoise(sigma)),
        held_out=0.0,
        evaluation=pgd_50_10(L2(eps), examples=1000),
    )
