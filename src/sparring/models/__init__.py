"""Classifiers with the normalisation inside: functions that return a `Classifier`."""

from .activations import SmoothReLU, activation
from .classifier import Normalize
from .encoders import AMDIM, Projected, amdim, represented
from .imagenet import efficientnet, imagenet_resnet
from .knn import KNN, encoded, knn_of, refill
from .probe import linear_probe
from .resnet import preact_resnet18, resnet18
from .robustbench import load_robustbench
from .small_cnn import small_cnn
from .surgery import SmoothBackward
from .swap import swap_activation
from .wide_resnet import wide_resnet

__all__ = [
    "AMDIM",
    "KNN",
    "Normalize",
    "Projected",
    "SmoothBackward",
    "SmoothReLU",
    "activation",
    "amdim",
    "efficientnet",
    "encoded",
    "imagenet_resnet",
    "knn_of",
    "linear_probe",
    "load_robustbench",
    "preact_resnet18",
    "refill",
    "represented",
    "resnet18",
    "small_cnn",
    "swap_activation",
    "wide_resnet",
]
