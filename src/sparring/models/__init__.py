"""Classifiers that normalise inside the model: functions that return a `Classifier`."""

from .activations import SmoothReLU, activation
from .classifier import Normalize
from .encoders import AMDIM, ProjectionEncoder, amdim, contrastive_encoder
from .imagenet import efficientnet, imagenet_resnet
from .knn import KNN, encode, encode_bank, knn_head
from .layers import FEATURES, Layers, as_run, layers_of
from .libraries import Preprocessing, hub_model, timm_model, torchvision_model
from .probe import linear_probe, validated_probe
from .recompute import recomputed, repeated_blocks
from .resnet import preact_resnet18, resnet18
from .robustbench import load_robustbench
from .small_cnn import small_cnn
from .surrogate_gradients import SmoothBackward, straight_through
from .swap import swap_activation
from .wide_resnet import wide_resnet

__all__ = [
    "AMDIM",
    "FEATURES",
    "KNN",
    "Layers",
    "Normalize",
    "Preprocessing",
    "ProjectionEncoder",
    "SmoothBackward",
    "SmoothReLU",
    "activation",
    "amdim",
    "as_run",
    "contrastive_encoder",
    "efficientnet",
    "encode",
    "encode_bank",
    "hub_model",
    "imagenet_resnet",
    "knn_head",
    "layers_of",
    "linear_probe",
    "load_robustbench",
    "preact_resnet18",
    "recomputed",
    "repeated_blocks",
    "resnet18",
    "small_cnn",
    "straight_through",
    "swap_activation",
    "timm_model",
    "torchvision_model",
    "validated_probe",
    "wide_resnet",
]
