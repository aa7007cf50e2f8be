"""What raises a loss over a set: search methods that know neither the model nor the labels."""

from .apgd import APGD
from .compose import CoarseToFine, Restarts, Split, Worst
from .fab import FAB
from .image_prior import ParametrizedSearch
from .minimum_norm import CWL2, DDN, Closest, MinimumNormAttack
from .pgd import FGSM, PGD, Benign, CleanStart, GaussianStart, MixedStart, RandomStart, SphereStart, Start
from .random_eps import RandomEps
from .single_step import NFGSM, MultiGrad, ZeroGrad
from .square import Square

__all__ = [
    "APGD",
    "CWL2",
    "DDN",
    "FAB",
    "FGSM",
    "NFGSM",
    "PGD",
    "Benign",
    "CleanStart",
    "Closest",
    "CoarseToFine",
    "GaussianStart",
    "MinimumNormAttack",
    "MixedStart",
    "MultiGrad",
    "ParametrizedSearch",
    "RandomEps",
    "RandomStart",
    "Restarts",
    "SphereStart",
    "Split",
    "Square",
    "Start",
    "Worst",
    "ZeroGrad",
]
