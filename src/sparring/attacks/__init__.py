"""What raises a loss over a set: search methods that know neither the model nor the labels."""

from .apgd import APGD
from .compose import Refined, Restarts, Split, Worst
from .fab import FAB
from .image_prior import Painted
from .minimum_norm import CWL2, DDN, Closest, MinimumNorm
from .pgd import FGSM, PGD, Anywhere, Benign, Near, Shell, Sometimes, Start
from .random_eps import VariedEps
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
    "Anywhere",
    "Benign",
    "Closest",
    "MinimumNorm",
    "MultiGrad",
    "Near",
    "Painted",
    "Refined",
    "Restarts",
    "Shell",
    "Sometimes",
    "Split",
    "Square",
    "Start",
    "VariedEps",
    "Worst",
    "ZeroGrad",
]
