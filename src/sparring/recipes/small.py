"""Recipes that train on two cores: the embedded digits, and Fashion-MNIST."""

from ..attacks import FGSM, PGD, Restarts
from ..data import Digits, FashionMNIST
from ..engine import Method
from ..evaluate import WhiteBox
from ..models import small_cnn
from ..objectives.cross_entropy import CrossEntropy
from ..optimizers import SGD
from ..plain import Build
from ..recipe import Evaluation, Recipe
from ..schedules import Cyclic
from ..threats import Linf


def _evaluation(eps: float | str, examples: int | None = None) -> Evaluation:
    """FGSM, and PGD-50 with 10 restarts that stops at the first point that fools."""
    threat = Linf(eps)
    strong = Restarts(PGD(threat, steps=50, step_size=threat.eps / 10, patience=0), 10)
    return Evaluation({"fgsm": WhiteBox(FGSM(threat)), "pgd-50-10": WhiteBox(strong)}, examples)


def quickstart(eps: float = 0.15) -> Recipe:
    """PGD-AT of a small CNN on the digits of scikit-learn, Linf 0.15: the first run, about a minute."""
    threat = Linf(eps)
    return Recipe(
        data=Digits(),
        model=Build(small_cnn),
        method=Method(PGD(threat, steps=7, step_size=threat.eps / 4), CrossEntropy()),
        epochs=30,
        lr=Cyclic(0.2, top=0.3),
        batch_size=64,
        optimizer=SGD(nesterov=True),
        held_out=0.1,
        selection=PGD(threat, steps=20, step_size=threat.eps / 8, patience=0),
        evaluation=_evaluation(eps),
    )


def fashion_pgd(eps: float = 0.1) -> Recipe:
    """PGD-AT of a small CNN on Fashion-MNIST, Linf 0.1: about ten minutes on two cores.

    Evaluated on 1,000 test images. Command: sparring train fashion_pgd
    """
    threat = Linf(eps)
    return Recipe(
        data=FashionMNIST(),
        model=Build(small_cnn, width=16),
        method=Method(PGD(threat, steps=5, step_size=threat.eps / 4), CrossEntropy()),
        epochs=10,
        lr=Cyclic(0.1, top=0.3),
        optimizer=SGD(nesterov=True),
        selection=PGD(threat, steps=20, step_size=threat.eps / 8, patience=0),
        evaluation=_evaluation(eps, examples=1000),
    )
