"""Which of the data sets that are downloaded by name are on this machine already."""

from pathlib import Path

from .files import cache_folder
from .sources import DEBIAN

_FOLDERS = {
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "fashion_mnist": "fashion-mnist",
    "kmnist": "kmnist",
    "mnist": "mnist",
    "stl10": "stl10",
    "svhn": "svhn",
}
_ELSEWHERE = {"fashion_mnist": DEBIAN}


def found() -> dict[str, Path | None]:
    """Return the folder that holds files of each data set, or None if they are downloaded when they are first used.

    The files are neither opened nor verified.
    """
    return {name: _place(name) for name in _FOLDERS}


def _place(name: str) -> Path | None:
    places = [_ELSEWHERE.get(name), cache_folder() / _FOLDERS[name]]
    return next((place for place in places if place is not None and place.is_dir() and any(place.iterdir())), None)
