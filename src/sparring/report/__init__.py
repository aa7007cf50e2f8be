"""Figures from a run folder. Imports no torch."""

from .figures import adversarial_examples, learning_curve, robustness_curve

__all__ = ["adversarial_examples", "learning_curve", "robustness_curve"]
