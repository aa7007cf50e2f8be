"""Data sets as values, and batches of them on the device."""

from .adapt import ClassSubset, InvertedImages, Resized, Rotated
from .alterations import Alteration, DifficultySubset, LabelNoise, PixelNoise, TrainingSet, altered
from .augment import Augment, Crop, Cutout, Flip, Grey, Jitter, ResizedCrop
from .auto_augment import AutoAugment, RandAugment
from .batches import Batches, hold_out
from .corruptions import CorruptedImages
from .extra import ExtraData
from .gaussian_mixtures import GaussianMixtureImages
from .image_size import ProgressiveResizing
from .libraries import HubData, TorchvisionData
from .mapped import GeneratedImages, MappedArrays
from .mixing import CutMix, InputMixup, RandomChoice, SmoothedLabels, TargetAugment
from .named import load_test, source_of
from .order import Order
from .shrinking import shrink_pictures
from .sources import (
    CIFAR10,
    CIFAR100,
    KMNIST,
    MNIST,
    NPZ,
    STL10,
    SVHN,
    Digits,
    FashionMNIST,
    ImageFolder,
    ImageStream,
    Source,
    Subset,
)

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "KMNIST",
    "MNIST",
    "NPZ",
    "STL10",
    "SVHN",
    "Alteration",
    "Augment",
    "AutoAugment",
    "Batches",
    "ClassSubset",
    "CorruptedImages",
    "Crop",
    "CutMix",
    "Cutout",
    "DifficultySubset",
    "Digits",
    "ExtraData",
    "FashionMNIST",
    "Flip",
    "GaussianMixtureImages",
    "GeneratedImages",
    "Grey",
    "HubData",
    "ImageFolder",
    "ImageStream",
    "InputMixup",
    "InvertedImages",
    "Jitter",
    "LabelNoise",
    "MappedArrays",
    "Order",
    "PixelNoise",
    "ProgressiveResizing",
    "RandAugment",
    "RandomChoice",
    "Resized",
    "ResizedCrop",
    "Rotated",
    "SmoothedLabels",
    "Source",
    "Subset",
    "TargetAugment",
    "TorchvisionData",
    "TrainingSet",
    "altered",
    "hold_out",
    "load_test",
    "shrink_pictures",
    "source_of",
]
