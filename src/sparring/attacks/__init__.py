"""What raises a loss over a set: search methods that know neither the model nor the labels."""

from .apgd import APGD
from .compose import Refined, Restarts, Split, Worst
from .fab import FAB
from .gradient import FGSM, PGD, Anywhere, Benign, Near, Shell, Sometimes, Start
from .minimum import CWL2, DDN, Closest, MinimumNorm
from .painted import Painted
from .single import NFGSM, MultiGrad, ZeroGrad
from .square import Square
from .varied import VariedEps

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
