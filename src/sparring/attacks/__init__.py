"""Attacks: search methods that maximise a loss over a perturbation set and know neither the model nor the labels."""

from .apgd import APGD
from .compose import CoarseToFine, Highest, PerView, Restarts, Split, Worst
from .fab import FAB
from .hop_skip_jump import HopSkipJump
from .image_prior import ParametrizedSearch
from .losses import CE, DLR, EOT, FeatureMatch, KLDivergence, Margin, SquaredDistance, SumLoss, TargetedCE, TargetedDLR
from .minimum_norm import CWL2, DDN, MinimumNormAttack, NearestAdversarial
from .pgd import FGSM, PGD, Benign, CleanStart, GaussianStart, MixedStart, RandomStart, SphereStart, Start
from .random_eps import RandomEps
from .single_step import NFGSM, MultiGrad, SignStart, ZeroGrad
from .square import Square
from .threats import L1, L2, Linf
from .union import MSD, Union

__all__ = [
    "APGD",
    "CE",
    "CWL2",
    "DDN",
    "DLR",
    "EOT",
    "FAB",
    "FGSM",
    "L1",
    "L2",
    "MSD",
    "NFGSM",
    "PGD",
    "Benign",
    "CleanStart",
    "CoarseToFine",
    "FeatureMatch",
    "GaussianStart",
    "Highest",
    "HopSkipJump",
    "KLDivergence",
    "Linf",
    "Margin",
    "MinimumNormAttack",
    "MixedStart",
    "MultiGrad",
    "NearestAdversarial",
    "ParametrizedSearch",
    "PerView",
    "RandomEps",
    "RandomStart",
    "Restarts",
    "SignStart",
    "SphereStart",
    "Split",
    "Square",
    "SquaredDistance",
    "Start",
    "SumLoss",
    "TargetedCE",
    "TargetedDLR",
    "Union",
    "Worst",
    "ZeroGrad",
]
