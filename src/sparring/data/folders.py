"""Listing of the pictures in FOLDER/CLASS/."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.reading import Array, reading


def listed(folder: Path, classes: Sequence[str]) -> tuple[Array, Tensor]:
    """Return the paths below `folder` and the class numbers of the files in `folder`/CLASS/, in order.

    Raises `UserError` if there are no files, for classes that are not among `classes`, and for folders within class
    folders.
    """
    strange = set(_entries(folder)[1]) - set(classes)
    if strange:
        raise UserError(f"{folder} has classes that the training set lacks: {', '.join(sorted(strange))}")
    found: list[tuple[bytes, int]] = []
    nested: list[str] = []
    for number, name in enumerate(classes):
        files, folders = _entries(folder / name)
        found += [(os.fsencode(f"{name}/{file}"), number) for file in files]
        nested += [str(folder / name / each) for each in folders]
    if nested:
        raise UserError(
            f"{len(nested)} folders lie within folders of classes, first {nested[0]}: pictures are read from "
            f"{folder}/CLASS/ only, so move theirs up or remove them"
        )
    if not found:
        raise UserError(f"there are no pictures in {folder}/CLASS/")
    return np.array([path for path, _ in found]), torch.tensor([number for _, number in found])


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the class folders, without those that begin with a dot."""
    found = _entries(folder)[1]
    if not found:
        lacking = f"there are no class folders in {folder}" if os.path.isdir(folder) else f"there is no folder {folder}"
        raise UserError(f"{lacking}: pictures are read from {folder}/CLASS/")
    return found


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the files and of the folders in `folder`, without those that begin with a dot."""
    if not os.path.isdir(folder):  # unlike Path.is_dir, it never raises
        return [], []
    with reading(folder, "make it readable"):
        shown = {entry.name: _is_folder(entry) for entry in os.scandir(folder) if not entry.name.startswith(".")}
    return [name for name in sorted(shown) if not shown[name]], [name for name in sorted(shown) if shown[name]]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself: the error comes when it is read
        return False
