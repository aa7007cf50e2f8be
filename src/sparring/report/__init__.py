"""Figures from a run folder. Imports no torch."""

from .figures import adversarial_examples, learning_curve, robustness_curve
from .information import against_eps, features, information, inversions, transfers
from .landscape import landscape
from .memorization import Memorized, memorization
from .representation import representation, tradeoff
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
