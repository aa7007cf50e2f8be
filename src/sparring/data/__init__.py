"""Data sets as values, and batches of them on the device."""

from .augment import Augment, Crop, Cutout, Flip
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
    "ImageFolder",
    "ImageStream",
    "Kept",
    "LabelNoise",
    "PixelNoise",
    "Source",
    "Training",
    "altered",
    "hold_out",
    "load_test",
]
