"""What raises a loss over a set: search methods that know neither the model nor the labels."""

from .compose import Restarts, Split, Worst
from .gradient import FGSM, NFGSM, PGD, Anywhere, Benign, Near, Start

__all__ = ["FGSM", "NFGSM", "PGD", "Anywhere", "Benign", "Near", "Restarts", "Split", "Start", "Worst"]
