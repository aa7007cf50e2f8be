"""Data sets as values, and batches of them on the device."""

from .adapt import Classes, Inverted, Resized, Rotated
from .augment import Augment, Crop, Cutout, Flip, Grey, Jitter, ResizedCrop
from .batches import Batches, hold_out
from .named import load_test, source_of
from .relabel import Alteration, Kept, LabelNoise, PixelNoise, Training, altered
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
    "STL10",
    "SVHN",
    "Alteration",
    "Augment",
    "Batches",
    "Classes",
    "Crop",
    "Cutout",
    "Digits",
    "FashionMNIST",
    "Few",
    "Flip",
    "Grey",
    "ImageFolder",
    "ImageStream",
    "Inverted",
    "Jitter",
    "Kept",
    "LabelNoise",
    "PixelNoise",
    "Resized",
    "ResizedCrop",
    "Rotated",
    "Source",
    "Training",
    "altered",
    "hold_out",
    "load_test",
    "source_of",
]
