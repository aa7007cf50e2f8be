"""Classifiers that normalise inside the model: functions that return a `Classifier`."""

from .activations import SmoothReLU, activation
from .classifier import Normalize, StandardizeImage
from .deepmind import dm_preact_resnet18, dm_wide_resnet, ra_wide_resnet
from .encoders import AMDIM, ProjectionEncoder, amdim, contrastive_encoder
from .imagenet import efficientnet, imagenet_resnet
from .knn import KNN, encode, encode_bank, knn_head
from .layers import FEATURES, Layers, Pooled, as_run, layers_of
from .libraries import Preprocessing, hub_model, timm_model, torchvision_model
from .lora import lora, merged
from .mean_sparse import MeanSparse
from .probe import linear_probe, validated_probe
from .recompute import recomputed, repeated_blocks
from .resnet import preact_resnet18, resnet18, resnet50
from .robustbench import load_robustbench
from .robustbench_zoo import PublishedModel, published, published_models
from .small_cnn import small_cnn
from .surrogate_gradients import SmoothBackward, straight_through
from .swap import swap_activation
from .timm_small import conv_stem
from .wide_resnet import robust_wide_resnet, wide_resnet
from .zero_shot import ZeroShotHead, zero_shot_model

__all__ = [
    "AMDIM",
    "FEATURES",
    "KNN",
    "Layers",
    "MeanSparse",
    "Normalize",
    "Pooled",
    "Preprocessing",
    "ProjectionEncoder",
    "PublishedModel",
    "SmoothBackward",
    "SmoothReLU",
    "StandardizeImage",
    "ZeroShotHead",
    "activation",
    "amdim",
    "as_run",
    "contrastive_encoder",
    "conv_stem",
    "dm_preact_resnet18",
    "dm_wide_resnet",
    "efficientnet",
    "encode",
    "encode_bank",
    "hub_model",
    "imagenet_resnet",
    "knn_head",
    "layers_of",
    "linear_probe",
    "load_robustbench",
    "lora",
    "merged",
    "preact_resnet18",
    "published",
    "published_models",
    "ra_wide_resnet",
    "recomputed",
    "repeated_blocks",
    "resnet18",
    "resnet50",
    "robust_wide_resnet",
    "small_cnn",
    "straight_through",
    "swap_activation",
    "timm_model",
    "torchvision_model",
    "validated_probe",
    "wide_resnet",
    "zero_shot_model",
]
