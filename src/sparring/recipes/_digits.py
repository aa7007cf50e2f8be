"""Base recipe of `quickstart`, of other recipes and of the studies."""

from ..attacks import PGD
from ..attacks.threats import Linf
from ..core.schedules import Cyclic
from ..core.serialization import Build
from ..data import Digits
from ..models import small_cnn
from ..objectives.cross_entropy import CrossEntropy
from ..runs.recipe import Recipe
from ..training.engine import Method
from ..training.optimizers import SGD
from ._common import pgd_50_10, select_by_pgd


def pgd_on_digits(eps: float = 0.15) -> Recipe:
    """Return PGD-AT of a small CNN on the digits of scikit-learn, without clipping of gradients."""
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
        selection=select_by_pgd(threat, steps=20),
        evaluation=pgd_50_10(threat),
    )
