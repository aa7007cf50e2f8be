"""Data sets by their names on the command line."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core import foreign
from ..core.errors import UserError, nearest
from ..core.types import LabelledData
from . import adapt, mapped, sources
from .arrays import MOST_CLASSES
from .libraries import HubData, TorchvisionData
from .looks import CentralSquare

_KNOWN: dict[str, Any] = {
    "cifar10": sources.CIFAR10,
    "cifar100": sources.CIFAR100,
    "digits": sources.Digits,
    "folder": sources.ImageFolder,
    "generated": mapped.GeneratedImages,
    "hf": HubData,
    "fashion_mnist": sources.FashionMNIST,
    "kmnist": sources.KMNIST,
    "mapped": mapped.MappedArrays,
    "mnist": sources.MNIST,
    "stl10": sources.STL10,
    "svhn": sources.SVHN,
    "torchvision": TorchvisionData,
}
_NEEDING = {
    "folder": "folder:DIR",
    "generated": "generated:FILE",
    "hf": "hf:org/name",
    "mapped": "mapped:FOLDER",
    "npz": "npz:FILE",
    "torchvision": "torchvision:GTSRB",
}
_OF_PICTURES = (sources.ImageFolder, HubData, TorchvisionData)
_CHANGE = re.compile(r"\+(?=(?:rotated|inverted|size=[^+/]*|classes=[^+/]*)(?:\+|$))")  # a path may contain a plus, too


def source_of(spec: str, cut: CentralSquare | None = None) -> sources.Source:
    """Return the data set that a name on the command line stands for.

    Changes are applied one after the other: `+rotated` rotates by a quarter turn, `+inverted` gives negatives,
    `+classes=0-4` or `+classes=1,3,7` keeps some of the classes, and `+size=224` makes images of 224 x 224 pixels:
    pictures in a folder are cut to their central square, others are stretched.

    Args:
        spec: name such as `fashion_mnist`, `cifar10:DIR`, `folder:DIR`, `npz:FILE`, `mapped:FOLDER`,
            `generated:FILE`, `torchvision:GTSRB` or `hf:org/name`, with any number of changes.
        cut: how pictures in a folder are cut, unless the name changes their size; None for the default.

    Returns:
        The source, whose data are not loaded.

    Raises:
        UserError: when there is no such data set or change.
    """
    first, *changes = _CHANGE.split(spec)
    name, _, where = first.partition(":")
    registered = foreign.plugins("data")
    if name in registered and name not in _KNOWN:
        made: sources.Source = foreign.plugin(registered[name])(*([where] if where else []))
        for change in changes:
            made = _changed(made, change)
        return made
    if name != "npz" and name not in _KNOWN:
        known, plus, _ = name.partition("+")
        if plus and known in _KNOWN:
            raise UserError(f"{first!r}: a + is followed by rotated, inverted, size=224, or classes=0-4")
        raise UserError(f"no data called {first!r}: {_meant(first) or nearest(name, ['npz:FILE', *_KNOWN])}")
    make: Any = sources.NPZ if name == "npz" else _KNOWN[name]
    if name in _NEEDING and not where:
        raise UserError(f"{name} needs the name of a data set: write {_NEEDING[name]}")
    if name == "digits" and where:
        raise UserError(f"{first!r}: digits come with scikit-learn, from no other place: write digits")
    parts = where.split(":", 1) if name == "torchvision" else [where]
    source: sources.Source = make(*parts) if where else make()
    if cut is not None and isinstance(source, _OF_PICTURES):
        source = replace(source, size=cut.size, share=cut.share, interpolation=cut.interpolation)
    for change in changes:
        source = _changed(source, change)
    return source


def _meant(spec: str) -> str | None:
    """Return what was probably meant by the path of a file or folder without a kind."""
    if spec.endswith(".npz"):
        return f"did you mean npz:{spec}?"
    return f"did you mean folder:{spec}?" if Path(spec).is_dir() else None


def _changed(source: sources.Source, change: str) -> sources.Source:
    word, _, value = change.partition("=")
    if word == "size":
        if not value.isdecimal():
            raise UserError(f"a size is a number of pixels, as +size=224, not {value!r}")
        if isinstance(source, (*_OF_PICTURES, sources.ImageStream)):
            return replace(source, size=int(value))
        return adapt.Resized(source, None, int(value), int(value))
    if word == "classes":
        return adapt.ClassSubset(source, _numbers(value))
    return adapt.Rotated(source) if word == "rotated" else adapt.InvertedImages(source)


def _numbers(text: str) -> tuple[int, ...]:
    """Numbers from `0-4`, `1,3,7`, or a mixture of both."""
    try:
        spans = [(int(low), int(high or low)) for low, _, high in (part.partition("-") for part in text.split(","))]
        if not all(0 <= high - low < MOST_CLASSES for low, high in spans):
            raise ValueError(text)
        return tuple(number for low, high in spans for number in range(low, high + 1))
    except ValueError:
        raise UserError(f"classes are numbers, as +classes=0-4 or +classes=1,3,7, not {text!r}") from None


def load_test(spec: str, cut: CentralSquare | None = None) -> LabelledData:
    """Return the test set of the data set that a name on the command line stands for.

    Args:
        spec: name as for `source_of`. An .npz file needs only `x_test` and `y_test`, or `x` and `y`.
        cut: how pictures in a folder are cut, as for `source_of`.

    Returns:
        Test images `[N, C, H, W]` with their labels, in memory.

    Raises:
        UserError: when there is no such data set or change, or the data cannot be read.
    """
    return sources.test_images(source_of(spec, cut))
