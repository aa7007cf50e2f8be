"""Figures from a run folder. Imports no torch."""

from .figures import adversarial_examples, learning_curve, robustness_curve
from .studies import study

__all__ = ["adversarial_examples", "learning_curve", "robustness_curve", "study"]
