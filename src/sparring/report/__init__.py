"""Figures from a run folder. Imports no torch."""

from ..analysis.information.plot import against_eps, features, information, inversions, transfers
from ..analysis.landscape.plot import landscape
from ..analysis.memorization.plot import Memorized, memorization
from ..analysis.representation.plot import representation, tradeoff
from .figures import adversarial_examples, learning_curve, robustness_curve
from .studies import study

__all__ = [
    "Memorized",
    "adversarial_examples",
    "against_eps",
    "features",
    "information",
    "inversions",
    "landscape",
    "learning_curve",
    "memorization",
    "representation",
    "robustness_curve",
    "study",
    "tradeoff",
    "transfers",
]
