"""Test images by a name on the command line."""

from pathlib import Path
from typing import Any

import numpy as np

from ..core import Data
from ..errors import UserError, nearest
from . import sources
from .files import read


def load_test(spec: str) -> Data:
    """The test images of `npz:FILE`, `folder:DIR`, or of a data set such as `cifar10` or `cifar10:DIR`.

    An .npz file needs `x_test` and `y_test`, or `x` and `y`; no training set. Raises `UserError` for other names.
    """
    name, _, where = spec.partition(":")
    known = {
        "cifar10": sources.CIFAR10,
        "cifar100": sources.CIFAR100,
        "digits": sources.Digits,
        "folder": sources.ImageFolder,
        "fashion_mnist": sources.FashionMNIST,
        "kmnist": sources.KMNIST,
        "mnist": sources.MNIST,
        "svhn": sources.SVHN,
    }
    if name == "npz":
        return _npz(where)
    if name not in known:
        raise UserError(f"no data called {spec!r}: {nearest(name, ['npz:FILE', *known])}")
    source: Any = known[name]
    test: Data = (source(where) if where else source()).load()[1][:]
    return test


def _npz(path: str) -> Data:
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}")
    held = read(Path(path), _arrays)
    pairs = [pair for pair in (("x_test", "y_test"), ("x", "y")) if pair[0] in held and pair[1] in held]
    if not pairs:
        raise UserError(f"{path} holds {', '.join(held) or 'nothing'}: wanted are x_test and y_test, or x and y")
    x, y = (held[name] for name in pairs[0])
    y = sources.labels(y, path)
    return sources.labelled(sources.channels_first(x, path), y, range(max(2, int(y.max(initial=0)) + 1)), path)


def _arrays(path: Path) -> dict[str, Any]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}
