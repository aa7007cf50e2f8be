"""Which pictures there are in FOLDER/CLASS/."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.reading import Array, reading


def listed(folder: Path, classes: Sequence[str]) -> tuple[Array, Tensor]:
    """Paths below `folder` and class numbers of the files in `folder`/CLASS/, in order.

    Raises `UserError` for none, for classes that are not among `classes`, and for folders within those of classes.
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
            f"{len(nested)} folders lie within folders of classes, first {nested[0]}: pictures are looked for in "
            f"{folder}/CLASS/ only, so move theirs up or take them away"
        )
    if not found:
        raise UserError(f"there are no pictures in {folder}/CLASS/")
    return np.array([path for path, _ in found]), torch.tensor([number for _, number in found])


def class_folders(folder: Path) -> list[str]:
    """Their names, sorted; those that begin with a dot are none."""
    found = _entries(folder)[1]
    if not found:
        raise UserError(f"there are no class folders in {folder}: pictures are looked for in {folder}/CLASS/")
    return found


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of what is no folder and of folders, sorted, without those that begin with a dot."""
    if not os.path.isdir(folder):  # which, unlike Path's, raises nothing
        return [], []
    with reading(folder, "make it readable"):
        shown = {entry.name: _is_folder(entry) for entry in os.scandir(folder) if not entry.name.startswith(".")}
    return [name for name in sorted(shown) if not shown[name]], [name for name in sorted(shown) if shown[name]]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: reading it will say what it is
        return False
