"""Images that people have: arrays, tensors, data sets and loaders of PyTorch, as labelled data."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)
from torch.utils.data import Subset as TorchSubset

from ..core.errors import UserError
from ..core.types import LabelledData, TensorData
from ..core.validation import check_data
from .arrays import channels_first, class_numbers, labelled
from .classes import numbered, with_classes
from .dataset_images import DatasetImages, image_and_label, own_random_state
from .named import load_test, source_of
from .sources import Source, TrainTest, test_images

_WANTED = (
    "give (images, labels), a torch Dataset or DataLoader, a pair (training data, test data) of these, a source such "
    "as sparring.data.CIFAR10(), or a name such as 'npz:FILE'"
)


def labelled_data(data: object, what: str = "data", classes: Sequence[str] | None = None) -> LabelledData:
    """Reads images and labels from the forms that they come in.

    Args:
        data: `(images, labels)` as arrays or tensors, with images `[N, C, H, W]` or `[N, H, W, C]` as bytes or as
            floats in [0, 1]; a `Dataset` or `DataLoader` of such items; or labelled data of this package.
        what: Name of the data, for messages.
        classes: Names of the classes; None for those of the data set, or else their numbers.

    Returns:
        The labelled data, in memory if they were given in memory.

    Raises:
        UserError: If the data are of another form, have no labels or no length, or lie outside [0, 1].
    """
    if isinstance(data, TensorData) or all(hasattr(data, name) for name in ("read", "relabelled", "part")):
        return data  # type: ignore[return-value]
    if isinstance(data, DataLoader):
        return _of_loader(data, what, classes)
    if isinstance(data, TensorDataset):
        data = tuple(data.tensors)
    if isinstance(data, tuple | list) and len(data) == 2:
        return _of_arrays(data[0], data[1], what, classes)
    if (
        hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and not isinstance(data, tuple | list | str | Mapping | Tensor | np.ndarray)
    ):
        return _of_dataset(data, what, classes)
    raise UserError(f"{what} is a {type(data).__name__}: {_WANTED}")


def _of_arrays(x: object, y: object, what: str, classes: Sequence[str] | None) -> TensorData:
    images = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    labels = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if images.ndim not in (3, 4):
        raise UserError(f"{what}: images have shape {images.shape}: wanted are [N, C, H, W] or [N, H, W, C]. {_WANTED}")
    labels = class_numbers(labels, what)
    names = range(max(2, int(labels.max(initial=0)) + 1)) if classes is None else classes
    found = labelled(channels_first(images, what), labels, names, what)
    return found.to(x.device) if isinstance(x, Tensor) else found


def _of_loader(loader: DataLoader[Any], what: str, classes: Sequence[str] | None) -> LabelledData:
    if isinstance(loader.dataset, IterableDataset):
        raise UserError(
            f"{what} is a loader of an iterable data set, whose examples have no numbers: give a data set with "
            "__getitem__ and __len__, or its images and labels as arrays"
        )
    if not isinstance(loader.sampler, SequentialSampler | RandomSampler):
        raise UserError(
            f"{what} is a loader with a {type(loader.sampler).__name__}, which would not be used: give loader.dataset, "
            "whose examples are then all drawn equally often"
        )
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        raise UserError(
            f"{what} is a loader with a batch sampler, {type(loader.batch_sampler).__name__}, which would not be used: "
            "give loader.dataset, whose examples are then all drawn equally often"
        )
    found = labelled_data(loader.dataset, what, classes)
    if isinstance(found, DatasetImages):
        return replace(found, workers=loader.num_workers, collate=loader.collate_fn or default_collate)
    return found


def _of_dataset(dataset: Any, what: str, classes: Sequence[str] | None) -> LabelledData:
    if len(dataset) == 0:
        raise UserError(f"{what} has no examples")
    with own_random_state():
        image, _ = image_and_label(dataset[0])
    y = torch.from_numpy(class_numbers(np.asarray(_labels(dataset)), what).astype(np.int64))
    names = classes or getattr(_innermost(dataset), "classes", None) or range(max(2, int(y.max()) + 1))
    channels, height, width = image.shape
    shape = (int(channels), int(height), int(width))
    found = DatasetImages(dataset, torch.arange(len(y)), y, tuple(map(str, names)), shape, listed=y)
    check_data(found[:8], what)
    return found


def _innermost(dataset: Any) -> Any:
    while isinstance(dataset, TorchSubset):
        dataset = dataset.dataset
    return dataset.datasets[0] if isinstance(dataset, ConcatDataset) else dataset


def _labels(dataset: Any) -> Any:
    """Return the labels of a data set: those that it lists, if they are those of its items, or else of every item."""
    listed = _listed(dataset)
    with own_random_state():
        if listed is not None and len(listed) == len(dataset):
            few = range(0, len(dataset), max(1, len(dataset) // 8))
            if all(image_and_label(dataset[i])[1] == listed[i] for i in few):
                return listed
        return [image_and_label(dataset[i])[1] for i in range(len(dataset))]


def _listed(dataset: Any) -> list[int] | None:
    """Return the class numbers that a data set lists; None if it lists none, or something else by that name."""
    if isinstance(dataset, TorchSubset):
        inner = _listed(dataset.dataset)
        return None if inner is None else [inner[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_listed(each) for each in dataset.datasets]
        return None if any(part is None for part in parts) else [each for part in parts for each in part or ()]
    if getattr(dataset, "target_transform", None) is not None:  # as in torchvision: it changes what is listed
        return None
    found = next((found for name in ("targets", "labels") if (found := getattr(dataset, name, None)) is not None), ())
    try:
        return [int(each) for each in found] or None
    except (TypeError, ValueError, RuntimeError):  # names, a target of several numbers, or no list at all
        return None


@dataclass(frozen=True, slots=True)
class GivenData:
    """Data that were handed over as objects, so that a file can only describe them.

    Args:
        kind: What they are, for people.
        fingerprint: Hash of labels and images, or of the labels alone if the images are not in memory.
        train: The training data; None where a recipe was read from a file.
        test: The test data; None if there are none.
    """

    kind: str
    fingerprint: str
    train: LabelledData | None = field(default=None, repr=False, compare=False, metadata={"on_disk": False})
    test: LabelledData | None = field(default=None, repr=False, compare=False, metadata={"on_disk": False})

    @classmethod
    def of(cls, train: LabelledData, test: LabelledData | None) -> "GivenData":
        """Describe data."""
        parts = [part for part in (train, test) if part is not None]
        kind = " and ".join(f"{len(part):,} images {'x'.join(map(str, part.shape))}" for part in parts)
        return cls(kind, _fingerprint(parts), train, test)

    def load(self) -> TrainTest:
        if self.train is None:
            raise UserError(
                f"the data of this run were handed to sparring.fit as objects ({self.kind}), which no file holds: hand "
                "them over again, as data="
            )
        return self.train, self.train[:0] if self.test is None else self.test


def _fingerprint(parts: Sequence[LabelledData]) -> str:
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(part.y.cpu().contiguous().numpy().data)
        if isinstance(part, TensorData):
            found.update(part.x.cpu().contiguous().view(-1).numpy().data)
    return found.hexdigest()


def as_source(data: object, classes: Sequence[str] | None = None) -> Source:
    """Makes a source of the forms that training data come in.

    Args:
        data: A source; a name such as `npz:FILE`; data as `labelled_data` takes them; or a pair (training data, test
            data) of these.
        classes: Names of the classes; None for those of the data set, or else their numbers.

    Returns:
        The source. Without test data, its test set is empty.

    Raises:
        UserError: If the data are of another form, or training and test data do not fit together.
    """
    if isinstance(data, str):
        return source_of(data)
    if hasattr(data, "load"):
        return data
    if isinstance(data, tuple | list) and len(data) == 2 and not _is_arrays(data):
        train, test = (labelled_data(part, name, classes) for part, name in zip(data, ("train", "test"), strict=True))
        return GivenData.of(train, with_classes(test, train.classes, "test data", "training data"))
    return GivenData.of(labelled_data(data, "data", classes), None)


def evaluation_data(data: object, what: str) -> LabelledData:
    """Reads the images and labels of an evaluation.

    Args:
        data: Data as `labelled_data` takes them; or the test part of a source, of a name such as `npz:FILE`, or of a
            pair (training data, test data), whose labels follow the names of the classes of the training data.
        what: Name of the data, for messages.

    Returns:
        The labelled data.

    Raises:
        UserError: If the data are of another form, or the test data have a class of a name that is new.
    """
    if isinstance(data, str):
        return load_test(data)
    if hasattr(data, "load"):
        return test_images(data)
    if isinstance(data, tuple | list) and len(data) == 2 and not _is_arrays(data):
        test = labelled_data(data[1], what)
        train = data[0].dataset if isinstance(data[0], DataLoader) else data[0]
        names = tuple(map(str, getattr(_innermost(train), "classes", None) or ()))
        named = bool(names) and not (numbered(test.classes) or numbered(names))
        return with_classes(test, names, "test data", "training data") if named else test
    return labelled_data(data, what)


def _is_arrays(data: Sequence[object]) -> bool:
    """Return True for (images, labels), and False for (training data, test data).

    Raises `UserError` for a list of two batches, which would be taken for such a pair.
    """
    first, second = data
    if isinstance(data, list) and all(isinstance(each, tuple | list) and len(each) == 2 for each in (first, second)):
        raise UserError(
            "a list of two batches is no data set: pass the DataLoader, or all images and labels as (images, labels); "
            "a pair (training data, test data) is a tuple"
        )
    return isinstance(second, Tensor | np.ndarray) or (
        isinstance(second, list) and not isinstance(second[0], tuple) and getattr(second[0], "ndim", 0) == 0
    )
