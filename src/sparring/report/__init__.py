"""Figures from a run folder. Imports no torch."""

from .figures import adversarial_examples, learning_curve, robustness_curve
from .landscape import landscape
from .studies import study

__all__ = ["adversarial_examples", "landscape", "learning_curve", "robustness_curve", "study"]
