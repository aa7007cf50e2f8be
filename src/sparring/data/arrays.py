"""Checked labelled images from arrays, and from .npz files of your own."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from ..core.errors import UserError
from ..core.reading import Array, read_arrays
from ..core.types import TensorData
from ..core.validation import check_data

MOST_CLASSES = 2**16  # the largest label sets the size of the list of names and of the last layer

Pair: TypeAlias = tuple[Array, Array]


def both(train: Pair, test: Pair, classes: Iterable[object], what: str) -> tuple[TensorData, TensorData]:
    """Return the checked training and test set, from images and labels `[N]` each. Raises `UserError` for bad ones."""
    names = tuple(str(each) for each in classes)
    return varied(labelled(*train, names, f"{what}, train"), what), labelled(*test, names, f"{what}, test")


def labelled(x: Array, y: Array, classes: Iterable[object], what: str) -> TensorData:
    """Return checked images `[N, C, H, W]` with labels `[N]`. Raises `UserError` for bad ones."""
    if x.size == 0:
        raise UserError(f"{what} images have shape {x.shape}: wanted is [N, channels, height, width], none of them 0")
    data = TensorData(
        torch.from_numpy(np.array(x, order="C")), torch.from_numpy(y.astype(np.int64)), tuple(map(str, classes))
    )
    check_data(data, what)
    return data


def varied(data: TensorData, what: str) -> TensorData:
    """Return the training set. Raises `UserError` if all images are equal: later errors would hide that cause."""
    if len(data) > 1 and torch.equal(data.x, data.x[:1].expand_as(data.x)):
        raise UserError(
            f"{what}: all {len(data)} training images are equal, nothing can be learned from them: check how they "
            "were written"
        )
    return data


def own_arrays(path: str, *needed: str) -> dict[str, Array]:
    """Return the arrays of an .npz file. Raises `UserError` if it cannot be read or lacks one of `needed`."""
    remedy = f"name an .npz file of {', '.join(needed)}, as numpy.savez writes it, or mapped:{path} if it is large"
    return read_arrays(Path(path), remedy, *needed)


def class_numbers(y: Array, what: str) -> Array:
    """Return the labels. Raises `UserError` unless they are `[N]` integers from 0 to 65,535."""
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise UserError(f"{what}: labels are {y.dtype} of shape {y.shape}, wanted are class numbers [N], 0, 1, 2, ...")
    if len(y) and (y.min() < 0 or y.max() >= MOST_CLASSES):
        raise UserError(
            f"{what}: labels span {y.min()} to {y.max()}: number the classes 0, 1, 2, ..., at most {MOST_CLASSES:,} "
            "of them"
        )
    return y


def count_classes(train: Array, test: Array, what: str) -> int:
    """Return the number of classes. Raises `UserError` if one has no training image."""
    count = int(max(train.max(initial=0), test.max(initial=0))) + 1
    lacking = count - np.count_nonzero(np.bincount(train.astype(np.int64, copy=False), minlength=count))
    if lacking:
        raise UserError(
            f"{what}: labels reach {count - 1}, but {lacking:,} of these {count:,} classes have no training image: "
            "number the classes 0, 1, 2, ... without gaps"
        )
    return count


def channels_first(x: Array, what: str) -> Array:
    """Return images `[N, C, H, W]`, as bytes or float32, from any of the layouts that `NPZ` names."""
    if x.dtype.kind not in "buif":
        raise UserError(f"{what}: images are {x.dtype}, wanted are bytes, or floats in [0, 1]")
    if x.dtype != np.uint8:
        with np.errstate(over="ignore"):  # values that are infinite in float32 are refused later
            x = x.astype(np.float32)
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        return x.transpose(0, 3, 1, 2)
    if x.ndim == 4 and x.shape[1] not in (1, 3):
        raise UserError(f"{what}: images are {x.shape}: wanted are 1 or 3 channels, [N, H, W, C] or [N, C, H, W]")
    return x
