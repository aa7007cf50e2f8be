"""Data sets as values, and batches of them on the device."""

from .augment import Augment, Crop, Cutout, Flip, Grey, Jitter, ResizedCrop
from .batches import Batches, hold_out
from .named import load_test
from .relabel import Alteration, Kept, LabelNoise, PixelNoise, Training, altered
from .sources import (
    CIFAR10,
    CIFAR100,
    KMNIST,
    MNIST,
    NPZ,
    SVHN,
    Digits,
    FashionMNIST,
    Few,
    ImageFolder,
    ImageStream,
    Source,
)

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "KMNIST",
    "MNIST",
    "NPZ",
    "SVHN",
    "Alteration",
    "Augment",
    "Batches",
    "Crop",
    "Cutout",
    "Digits",
    "FashionMNIST",
    "Few",
    "Flip",
    "Grey",
    "ImageFolder",
    "ImageStream",
    "Jitter",
    "Kept",
    "LabelNoise",
    "PixelNoise",
    "ResizedCrop",
    "Source",
    "Training",
    "altered",
    "hold_out",
    "load_test",
]
