"""Shared parts of the studies: sizes by scale, a small recipe, and an evaluation by several attacks."""

from dataclasses import dataclass, replace

from ..attacks import APGD, FGSM, PGD
from ..attacks.losses import TargetedDLR
from ..attacks.threats import Linf
from ..core.errors import UserError
from ..core.schedules import MultiStep
from ..core.serialization import Build
from ..data import Digits, FashionMNIST, Subset
from ..evaluation import MultiTargeted, WhiteBox
from ..models import preact_resnet18, small_cnn
from ..objectives.cross_entropy import CrossEntropy
from ..recipes._digits import pgd_on_digits
from ..runs.recipe import Evaluation, Recipe
from ..training.engine import Method


@dataclass(frozen=True, slots=True)
class Sizes:
    """Size of a study at one scale: number of training images, test images and seeds."""

    train: int
    test: int
    seeds: int


def sizes_of(scale: str, known: dict[str, Sizes]) -> Sizes:
    """Return the size of a study at a scale. Raises `UserError` for an unknown scale."""
    if scale not in known:
        raise UserError(f"a study has no scale {scale!r}: {', '.join(known)}")
    return known[scale]


def evaluation(threat: Linf, steps: int = 20, strong: int = 30, targets: int = 3) -> Evaluation:
    """Return an evaluation by FGSM, PGD, and APGD towards the likeliest other classes on the DLR loss.

    An example counts as robust only if every attack fails.
    """
    return Evaluation(
        {
            "fgsm": WhiteBox(FGSM(threat)),
            f"pgd-{steps}": WhiteBox(PGD(threat, steps, threat.eps / 4, patience=0)),
            f"apgd-t-{strong}": MultiTargeted(APGD(threat, steps=strong), TargetedDLR, targets),
        }
    )


def base(scale: str, sizes: Sizes, threat: Linf, epochs: int) -> Recipe:
    """Return PGD-AT of a small network with batch norm, as in Bag of Tricks but smaller: SGD, rate in three pieces."""
    recipe = replace(
        pgd_on_digits(threat.eps),
        data=Subset(FashionMNIST(), sizes.train, sizes.test),
        method=Method(PGD(threat, steps=5, step_size=threat.eps / 3), CrossEntropy()),
        epochs=epochs,
        lr=MultiStep(0.1, (round(10 / 11 * epochs, 2), round(21 / 22 * epochs, 2))),
        batch_size=64,
        held_out=0.1,
        selection=PGD(threat, steps=5, step_size=threat.eps / 3, patience=0),
        evaluation=evaluation(threat),
    )
    if scale == "smoke":
        tiny = evaluation(threat, steps=2, strong=3, targets=1)
        return replace(
            recipe,
            data=Subset(Digits(), sizes.train, sizes.test),
            model=Build(small_cnn, width=2, batch_norm=True),
            method=Method(PGD(threat, steps=2, step_size=threat.eps / 2), CrossEntropy()),
            selection=PGD(threat, steps=1),
            evaluation=tiny,
        )
    if scale == "gpu":
        wide = Build(preact_resnet18, width=0.25)
        return replace(recipe, model=wide, batch_size=128)
    return replace(recipe, model=Build(small_cnn, width=8, batch_norm=True))
