"""Methods, one file each: what the attack raises and what the optimiser lowers."""

from .added import Sum
from .cross_entropy import CrossEntropy

__all__ = ["CrossEntropy", "Sum"]
