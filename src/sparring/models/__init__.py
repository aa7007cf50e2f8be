"""Classifiers with the normalisation inside: functions that return a `Classifier`."""

from .activations import SmoothReLU, activation
from .classifier import Normalize
from .imagenet import efficientnet, imagenet_resnet
from .resnet import preact_resnet18, resnet18
from .robustbench import load_robustbench
from .small_cnn import small_cnn
from .surgery import SmoothBackward
from .swap import swap_activation
from .wide_resnet import wide_resnet

__all__ = [
    "Normalize",
    "SmoothBackward",
    "SmoothReLU",
    "activation",
    "efficientnet",
    "imagenet_resnet",
    "load_robustbench",
    "preact_resnet18",
    "resnet18",
    "small_cnn",
    "swap_activation",
    "wide_resnet",
]
