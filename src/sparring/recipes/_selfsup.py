"""What self-supervised trainings share: pre-training, fine-tuning against an adversary, evaluation."""

from dataclasses import replace

from ..attacks import PGD, Benign
from ..attacks.threats import Linf
from ..core.schedules import Cosine, MultiStep
from ..core.types import Objective
from ..data import Augment
from ..evaluation import KNNAttackSuite, PGDkNN, WhiteBox
from ..objectives.contrastive import Contrast, Contrastive, InfoNCE, Labels, Raised
from ..runs.recipe import Evaluation, Recipe
from ..training.engine import Method
from ..training.optimizers import Adam
from ._common import select_by_pgd


def as_released(threat: Linf, unit: float) -> PGD:
    """Ten steps of a sixth of eps where eps is `unit`, and more of the same size where it is larger: 20 at twice."""
    return PGD(threat, max(1, round(10 * threat.eps / unit)), unit / 6)


def worst_on_neighbours(
    threat: Linf, unit: float | None = None, examples: int | None = None, steps: int = 50, restarts: int = 5
) -> Evaluation:
    """PGD-20; PGD-kNN as the paper evaluates; several attacks on neighbours in turn, of which the worst case counts."""
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
    """`base` without an adversary, by Adam and half a cosine; the best epoch is that of the best nearest neighbours."""
    return replace(
        base,
        method=Method(Benign(), objective),
        epochs=epochs,
        lr=Cosine(lr),
        views=views,
        augment=augment,
        optimizer=Adam(weight_decay=1e-5),
        selection=Benign(),
    )


def hardened(
    pretraining: Recipe,
    start: str,
    attack: PGD,
    loss: Contrast = InfoNCE(),  # noqa: B008
    *,
    epochs: int,
    lr: float,
    raises: Raised = "contrast",
    labels: Labels = "none",
    only_fooled: bool = False,
    guides: int = 300,
) -> Recipe:
    """Self-supervised adversarial training of what `pretraining` left in the run `start`: no augmentation, one rate.

    Adam's betas and weight decay are those of the released code.
    """
    threat = attack.threat
    assert isinstance(threat, Linf)
    objective = Contrastive(loss, raises=raises, labels=labels, only_fooled=only_fooled, guides=guides)
    return replace(
        pretraining,
        method=Method(attack, objective),
        epochs=epochs,
        lr=MultiStep(lr),
        batch_size=100,
        views=1,
        augment=(),
        optimizer=Adam(betas=(0.8, 0.999), weight_decay=1e-5),
        init_from=start,
        selection=select_by_pgd(threat),
    )
