"""Classifiers with the normalisation inside: functions that return a `Classifier`."""

from .activations import activation
from .classifier import Normalize
from .resnet import preact_resnet18, resnet18
from .robustbench import load_robustbench
from .small_cnn import small_cnn
from .wide_resnet import wide_resnet

__all__ = [
    "Normalize",
    "activation",
    "load_robustbench",
    "preact_resnet18",
    "resnet18",
    "small_cnn",
    "wide_resnet",
]
