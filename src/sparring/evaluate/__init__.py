"""How robust a model really is."""

from .accuracy import evaluate
from .adversary import Adversary, WhiteBox, perturb

__all__ = ["Adversary", "WhiteBox", "evaluate", "perturb"]
