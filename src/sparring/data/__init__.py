"""Data sets as values, and batches of them on the device."""

from .adapt import ClassSubset, InvertedImages, Resized, Rotated
from .alterations import Alteration, DifficultySubset, LabelNoise, PixelNoise, TrainingSet, altered
from .augment import Augment, Crop, Cutout, Flip, Grey, Jitter, ResizedCrop
from .batches import Batches, hold_out
from .corruptions import CorruptedImages
from .image_size import ProgressiveResizing
from .libraries import HubData, TorchvisionData
from .mapped import MappedArrays
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
    "Batches",
    "ClassSubset",
    "CorruptedImages",
    "Crop",
    "Cutout",
    "DifficultySubset",
    "Digits",
    "FashionMNIST",
    "Flip",
    "Grey",
    "HubData",
    "ImageFolder",
    "ImageStream",
    "InvertedImages",
    "Jitter",
    "LabelNoise",
    "MappedArrays",
    "Order",
    "PixelNoise",
    "ProgressiveResizing",
    "Resized",
    "ResizedCrop",
    "Rotated",
    "Source",
    "Subset",
    "TorchvisionData",
    "TrainingSet",
    "altered",
    "hold_out",
    "load_test",
    "shrink_pictures",
    "source_of",
]
