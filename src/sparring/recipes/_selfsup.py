"""Shared parts of self-supervised recipes: pre-training, adversarial fine-tuning, evaluation."""

from dataclasses import replace

from ..attacks import PGD, Benign
from ..attacks.threats import Linf
from ..core.schedules import Cosine, MultiStep
from ..core.types import Objective
from ..data import Augment
from ..evaluation import KNNAttackSuite, PGDkNN, WhiteBox
from ..runs.recipe import Evaluation, Recipe
from ..training.engine import Method
from ..training.optimizers import Adam
from ._common import select_by_pgd


def as_released(threat: Linf, unit: float) -> PGD:
    """Return PGD with steps of `unit` / 6: ten where eps is `unit`, and proportionally more where it is larger."""
    return PGD(threat, max(1, round(10 * threat.eps / unit)), unit / 6)


def worst_on_neighbours(
    threat: Linf, unit: float | None = None, examples: int | None = None, steps: int = 50, restarts: int = 5
) -> Evaluation:
    """Return an evaluation of a kNN head: PGD-20, PGD-kNN as in the paper, and the worst case of several attacks."""
    return Evaluation(
        {
            "pgd-20": WhiteBox(PGD(threat, 20, threat.eps / 4, patience=0)),
            "pgd-knn": PGDkNN(as_released(threat, unit or threat.eps)),
            "worst": KNNAttackSuite(threat, steps, restarts),
        },
        examples,
    )


def pretrained(
    base: Recipe, objective: Objective, epochs: int, lr: float, augment: tuple[Augment, ...], views: int = 2
) -> Recipe:
    """Return `base` trained without an adversary, by Adam with a cosine schedule.

    The best epoch is the one with the highest clean accuracy of the kNN head on the held-out set.
    """
    return replace(
        base,
        method=Method(Benign(), objective),
        epochs=epochs,
        lr=Cosine(lr),
        views_per_image=views,
        augment=augment,
        optimizer=Adam(weight_decay=1e-5),
        selection=Benign(),
    )


def hardened(
    pretraining: Recipe,
    start: str,
    attack: PGD,
    objective: Objective,
    *,
    epochs: int,
    lr: float,
) -> Recipe:
    """Return self-supervised adversarial training that starts from the run `start` of `pretraining`.

    It has no augmentation and a constant learning rate. Adam's betas and weight decay are those of the released code.
    """
    threat = attack.threat
    assert isinstance(threat, Linf)
    return replace(
        pretraining,
        method=Method(attack, objective),
        epochs=epochs,
        lr=MultiStep(lr),
        batch_size=100,
        views_per_image=1,
        augment=(),
        optimizer=Adam(betas=(0.8, 0.999), weight_decay=1e-5),
        init_from=start,
        selection=select_by_pgd(threat),
    )
