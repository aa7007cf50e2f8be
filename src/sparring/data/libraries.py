"""Data sets of torchvision and of the Hugging Face Hub, by name."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError, nearest
from ..core.optional import first_line, library
from ..core.types import TensorData
from ..core.validation import check_data
from .arrays import varied
from .dataset_images import DatasetImages
from .files import cache_folder
from .looks import CentralSquare, Interpolation
from .pictures import mixed_order
from .sources import TrainTest

_PARTS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"train": True}, {"train": False}),
    ({"split": "train"}, {"split": "test"}),
    ({"split": "train"}, {"split": "val"}),
)


@dataclass(frozen=True, slots=True)
class TorchvisionData:
    """A data set of torchvision with a training and a test part (or val), cut to central squares, in memory.

    Args:
        name: Name of its class in `torchvision.datasets`, such as "GTSRB".
        folder: Folder of its files; None for the cache, into which torchvision downloads them.
        size: Height and width of the images in pixels.
        share: Side of the central square, as a share of the shorter side of a picture.
        interpolation: "bicubic" or "bilinear".
    """

    name: str
    folder: str | None = None
    size: int = 32
    share: float = 1.0
    interpolation: Interpolation = "bicubic"

    def load(self) -> TrainTest:
        train, test, classes = self._parts()
        return _in_memory(train, test, classes, self._cut, f"torchvision:{self.name}")

    def load_test(self) -> DatasetImages:
        """Return the test images alone, cut when they are read."""
        _, test, classes = self._parts()
        return _on_demand(test, (0, 1), _labels(test), classes, self._cut)

    @property
    def _cut(self) -> CentralSquare:
        return CentralSquare(self.size, self.share, self.interpolation)

    def _parts(self) -> tuple[Any, Any, tuple[str, ...]]:
        """Return the training part, the test part, and the names of the classes."""
        sets = library("torchvision.datasets", "imagenet", "this data set")
        known = [name for name in sets.__all__ if inspect.isclass(getattr(sets, name, None))]
        if self.name not in known:
            raise UserError(f"torchvision has no data set {self.name!r}: {nearest(self.name, known)}")
        train, test = (self._part(getattr(sets, self.name), number) for number in (0, 1))
        names = getattr(train, "classes", None) or range(1 + max(_labels(train)))
        return train, test, tuple(map(str, names))

    def _part(self, make: Callable[..., Any], number: int) -> Any:
        """Return a part of the data set. Its class names parts by `train` or by `split`."""
        taken = inspect.signature(make).parameters
        where: dict[str, Any] = {"root": self.folder or str(cache_folder() / "torchvision" / self.name)}
        if "download" in taken:
            where["download"] = self.folder is None
        for parts in _PARTS:
            if not parts[number].keys() <= taken.keys():
                continue
            try:
                return make(**where, **parts[number])
            except ValueError:  # it has no such split
                continue
            except Exception as error:  # torchvision and the network raise errors of many kinds
                raise UserError(
                    f"torchvision:{self.name} cannot be had ({first_line(error)}): name the folder of its files, as "
                    f"torchvision:{self.name}:DIR"
                ) from error
        raise UserError(f"torchvision:{self.name} has no training and test part that we know: give it as a Dataset")


@dataclass(frozen=True, slots=True)
class HubData:
    """A data set of images of the Hugging Face Hub, cut to central squares, in memory.

    Args:
        name: Repository and revision, as in "org/name@COMMIT"; a folder that holds such a data set works, too.
        size: Height and width of the images in pixels.
        share: Side of the central square, as a share of the shorter side of a picture.
        interpolation: "bicubic" or "bilinear".
    """

    name: str
    size: int = 32
    share: float = 1.0
    interpolation: Interpolation = "bicubic"

    def load(self) -> TrainTest:
        train, test, (image, label), classes = self._parts()
        first, second = ([(row[image], row[label]) for row in part] for part in (train, test))
        return _in_memory(first, second, classes, self._cut, f"hf:{self.name}")

    def load_test(self) -> DatasetImages:
        """Return the test images alone, decoded and cut when they are read."""
        _, test, columns, classes = self._parts()
        return _on_demand(test, columns, test[columns[1]], classes, self._cut)

    @property
    def _cut(self) -> CentralSquare:
        return CentralSquare(self.size, self.share, self.interpolation)

    def _parts(self) -> tuple[Any, Any, tuple[str, str], tuple[str, ...]]:
        """Return the training part, the test part, the columns of images and of labels, and the classes."""
        datasets = library("datasets", "hub", "this data set")
        repository, _, revision = self.name.partition("@")
        try:
            found = datasets.load_dataset(repository, revision=revision or None)
        except Exception as error:  # the library and the network raise errors of many kinds
            raise UserError(f"hf:{self.name} cannot be had ({first_line(error)})") from error
        test = next((name for name in ("test", "validation", "valid", "val") if name in found), None)
        if "train" not in found or test is None:
            parts = ", ".join(found)
            raise UserError(f"hf:{self.name} has the parts {parts}: wanted are train, and test or validation")
        columns = _columns(datasets, found["train"].features, self.name)
        return found["train"], found[test], columns, tuple(map(str, found["train"].features[columns[1]].names))


def _columns(datasets: ModuleType, features: Any, name: str) -> tuple[str, str]:
    """Return the names of the columns of images and of labels."""
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(images) != 1 or not labels:
        raise UserError(
            f"hf:{name} has the columns {', '.join(features)}: wanted are one of images and one of class labels"
        )
    return images[0], next((each for each in ("label", "labels", "fine_label") if each in labels), labels[0])


def _labels(data: Any) -> Sequence[int]:
    listed = [getattr(data, key) for key in ("targets", "labels", "_labels") if getattr(data, key, None) is not None]
    return [int(each) for each in listed[0]] if listed else [int(label) for _, label in data]


def _in_memory(
    train: Iterable[Any], test: Iterable[Any], classes: tuple[str, ...], cut: CentralSquare, what: str
) -> TrainTest:
    first, second = (_squares(part, classes, cut, what) for part in (train, test))
    return varied(first, what), second[mixed_order(len(second))]


def _on_demand(
    items: Any, columns: Sequence[Any], labels: Sequence[int], classes: tuple[str, ...], cut: CentralSquare
) -> DatasetImages:
    """Return items in a fixed random order, each cut to a square when it is read."""
    y, shape = torch.tensor([int(label) for label in labels]), (3, cut.size, cut.size)
    data = DatasetImages(_Squares(items, tuple(columns), cut), torch.arange(len(y)), y, classes, shape)
    return data.part(mixed_order(len(y)))


@dataclass(frozen=True, slots=True)
class _Squares:
    """Items of a library, each cut to a square when it is asked for."""

    items: Any
    columns: tuple[Any, ...]
    cut: CentralSquare

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        item = self.items[row]
        image, label = (item[column] for column in self.columns)
        return torch.from_numpy(self.cut.of(image).copy()), int(label)


def _squares(items: Iterable[Any], classes: tuple[str, ...], cut: CentralSquare, what: str) -> TensorData:
    """Return (picture, label) items as bytes, each cut to a square."""
    images, labels = [], []
    for picture, label in items:
        images.append(cut.of(picture))
        labels.append(int(label))
    found = TensorData(torch.from_numpy(np.stack(images)), torch.tensor(labels), classes)
    check_data(found, what)
    return found
