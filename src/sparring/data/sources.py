"""Data sets as values; their `load` returns the checked training set and test set."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ..core.errors import UserError
from ..core.reading import Array
from ..core.types import LabelledData, TensorData
from ..core.validation import check_data
from .arrays import Pair, both, channels_first, class_numbers, count_classes, labelled, own_arrays, varied
from .files import Remote, locate
from .folders import class_folders, listed
from .formats import read_cifar, read_idx, read_names, read_stl10, read_svhn
from .looks import CentralSquare, Centre, Interpolation, RandomWindow
from .pictures import Pictures, Unreadable, mixed

TrainTest = tuple[LabelledData, LabelledData]

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Folder of Debian's package `dataset-fashion-mnist`."""


class Source(Protocol):
    """Interface of a source of labelled images."""

    def load(self) -> TrainTest:
        """Return the training and the test set. Raises `UserError`, which names a missing or broken file."""
        ...


def test_images(source: Source) -> LabelledData:
    """Return the test set of a source, without its training set where that can be.

    Args:
        source: the source; its method `load_test`, if it has one, gives the test set alone.

    Returns:
        The test images; pictures in files stay there.

    Raises:
        UserError: when a file is missing or broken.
    """
    alone: Callable[[], LabelledData] | None = getattr(source, "load_test", None)
    return source.load()[1] if alone is None else alone()


@dataclass(frozen=True, slots=True)
class Digits:
    """1,797 handwritten digits of 8x8 pixels from scikit-learn; 360, a fifth of each class, are the test set."""

    def load(self) -> TrainTest:
        train, test = _digits()
        return both(train, test, range(10), "digits")


@cache  # 20 ms of reading text, which a study would spend for each run and analysis
def _digits() -> tuple[Pair, Pair]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    held = load_digits()
    x = np.round(held.images[:, None] * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(np.arange(len(x)), test_size=360, stratify=held.target, random_state=0)
    return (x[train], held.target[train]), (x[test], held.target[test])


_IDX = (
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
)


def _load_idx(
    dataset: str, base: str, sums: tuple[str, ...], folder: str | None, classes: Iterable[object], *places: Path
) -> TrainTest:
    found = iter(sums)

    def part(names: tuple[str, str]) -> Pair:
        x, y = (read_idx(locate(Remote(name, base, next(found)), folder, dataset, places)) for name in names)
        return x[:, None] if x.ndim == 3 else x, y

    return both(part(_IDX[0]), part(_IDX[1]), classes, folder or dataset)


@dataclass(frozen=True, slots=True)
class MNIST:
    """70,000 handwritten digits of 28x28 pixels (idx files).

    Args:
        folder: folder that holds the files; None searches the cache, and downloads what is missing.
    """

    folder: str | None = None

    def load(self) -> TrainTest:
        sums = (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        )
        return _load_idx("mnist", "https://ossci-datasets.s3.amazonaws.com/mnist/", sums, self.folder, range(10))


@dataclass(frozen=True, slots=True)
class KMNIST:
    """70,000 cursive Japanese characters of 28x28 pixels in 10 classes (idx files).

    Args:
        folder: folder that holds the files; None searches the cache, and downloads what is missing.
    """

    folder: str | None = None

    def load(self) -> TrainTest:
        sums = (
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        )
        names = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
        return _load_idx("kmnist", "https://codh.rois.ac.jp/kmnist/dataset/kmnist/", sums, self.folder, names)


@dataclass(frozen=True, slots=True)
class FashionMNIST:
    """70,000 pictures of clothing of 28x28 pixels in 10 classes (idx files).

    The files of Debian's package `dataset-fashion-mnist` are found without a download.

    Args:
        folder: folder that holds the files; None searches the folder of Debian's package and the cache, and downloads
            what is missing.
    """

    folder: str | None = None

    def load(self) -> TrainTest:
        sums = (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        )
        names = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot"]
        base = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
        return _load_idx("fashion-mnist", base, sums, self.folder, names, DEBIAN)


_CIFAR = "https://www.cs.toronto.edu/~kriz/"


def _archive(name: str, unpacked: str, md5: str, folder: str | None, dataset: str, base: str = _CIFAR) -> Path:
    """Path of the archive, or of its unpacked folder if `folder` holds that."""
    if folder and os.path.isdir(Path(folder) / unpacked):
        return Path(folder) / unpacked
    return locate(Remote(name, base, md5), folder, dataset)


@dataclass(frozen=True, slots=True)
class CIFAR10:
    """60,000 photographs of 32x32 pixels in 10 classes: the official binary archive, or its unpacked folder.

    Args:
        folder: folder that holds the official binary archive or its unpacked folder; None searches the cache, and
            downloads the archive if it is missing.
    """

    folder: str | None = None

    def load(self) -> TrainTest:
        top = "cifar-10-batches-bin"
        path = _archive("cifar-10-binary.tar.gz", top, "c32a1d4ab5d03f1284b67883e8d87530", self.folder, "cifar10")
        names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
        train = read_cifar(path, [f"{top}/data_batch_{i}.bin" for i in range(1, 6)], 1)
        return both(train, read_cifar(path, [f"{top}/test_batch.bin"], 1), names, str(path))


@dataclass(frozen=True, slots=True)
class CIFAR100:
    """60,000 photographs of 32x32 pixels in 100 classes: the official binary archive, or its unpacked folder.

    Args:
        folder: folder that holds the official binary archive or its unpacked folder; None searches the cache, and
            downloads the archive if it is missing.
    """

    folder: str | None = None

    def load(self) -> TrainTest:
        top = "cifar-100-binary"
        path = _archive("cifar-100-binary.tar.gz", top, "03b5dce01913d631647c71ecec9e9cb8", self.folder, "cifar100")
        names = read_names(path, f"{top}/fine_label_names.txt")
        train, test = (read_cifar(path, [f"{top}/{part}.bin"], 2) for part in ("train", "test"))
        return both(train, test, names, str(path))


@dataclass(frozen=True, slots=True)
class SVHN:
    """99,289 house numbers of 32x32 pixels, cropped to digits (.mat files).

    Args:
        folder: folder that holds the files; None searches the cache, and downloads what is missing.
    """

    folder: str | None = None

    def load(self) -> TrainTest:
        base = "http://ufldl.stanford.edu/housenumbers/"
        files = (
            Remote("train_32x32.mat", base, "e26dedcc434d2e4c54c9b2d4a06d8373"),
            Remote("test_32x32.mat", base, "eb5a983be6a315427106f1b164d9cef3"),
        )
        train, test = (locate(file, self.folder, "svhn") for file in files)
        return both(read_svhn(train), read_svhn(test), range(10), str(train.parent))


@dataclass(frozen=True, slots=True)
class STL10:
    """13,000 labelled photographs of 96x96 pixels in 10 classes: the official binary archive, or its unpacked folder.

    5,000 are the training set; the 100,000 without a label are not read.

    Args:
        folder: folder that holds the official binary archive or its unpacked folder; None searches the cache, and
            downloads the archive if it is missing.
    """

    folder: str | None = None

    def load(self) -> TrainTest:
        top, md5 = "stl10_binary", "91f7769df0f17e558f3565bffb0c7dfb"
        path = _archive(f"{top}.tar.gz", top, md5, self.folder, "stl10", "https://ai.stanford.edu/~acoates/stl10/")
        names = read_names(path, f"{top}/class_names.txt")
        train, test = (read_stl10(path, f"{top}/{part}_X.bin", f"{top}/{part}_y.bin") for part in ("train", "test"))
        return both(train, test, names, str(path))


_NPZ = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True, slots=True)
class NPZ:
    """Your own arrays: an .npz file with `x_train`, `y_train`, `x_test`, `y_test`.

    Images are `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`, with 1 or 3 channels; bytes, or floats in [0, 1]. Labels
    are integers `[N]`, and each class from 0 to the highest has a training image. All are held in memory; for larger
    data sets see `MappedArrays`.

    Args:
        path: path of the file.
    """

    path: str

    def load(self) -> TrainTest:
        return self._parts(own_arrays(self.path, *_NPZ))

    def load_test(self) -> TensorData:
        """Return the test images; a file without training images may hold `x_test` and `y_test`, or `x` and `y`."""
        held = own_arrays(self.path)
        if held.keys() >= set(_NPZ):
            return self._parts(held)[1]
        pairs = [pair for pair in (("x_test", "y_test"), ("x", "y")) if pair[0] in held and pair[1] in held]
        if not pairs:
            there = ", ".join(held) or "nothing"
            raise UserError(f"{self.path} holds {there}: wanted are x_test and y_test, or x and y")
        x, y = (held[name] for name in pairs[0])
        y = class_numbers(y, self.path)
        return labelled(channels_first(x, self.path), y, range(max(2, int(y.max(initial=0)) + 1)), self.path)

    def _parts(self, held: dict[str, Array]) -> tuple[TensorData, TensorData]:
        train, test = (self._part(held, part) for part in ("train", "test"))
        return both(train, test, range(count_classes(train[1], test[1], self.path)), self.path)

    def _part(self, held: dict[str, Array], part: str) -> Pair:
        what = f"{self.path}, {part}"
        return channels_first(held[f"x_{part}"], what), class_numbers(held[f"y_{part}"], what)


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Pictures in `folder`/train/CLASS/ and `folder`/test/CLASS/ (or val), cut to their central square and resized.

    In training all pictures are held in memory; for larger data sets see `ImageStream`. An evaluation reads the test
    pictures batch by batch; they are in a fixed random order, so that the first few are of all classes.

    Args:
        folder: folder that holds the folders train and test (or val).
        size: height and width of the images in pixels.
        unreadable: "stop" raises an error for a file that cannot be read; "skip" leaves it out, named and counted.
        share: side of the central square, as a share of the shorter side of a picture.
        interpolation: "bicubic" or "bilinear".
    """

    folder: str
    size: int = 32
    unreadable: Unreadable = "stop"
    share: float = 1.0
    interpolation: Interpolation = "bicubic"

    def load(self) -> TrainTest:
        top = Path(self.folder)
        classes = class_folders(top / "train")
        train, test = self._pictures(top / "train", classes), mixed(self._pictures(self._of_test(), classes))
        return varied(self._read(train, top / "train"), self.folder), self._read(test, self._of_test())

    def load_test(self) -> Pictures:
        """Return the test pictures, which stay in their files: the folder need not hold training pictures."""
        top, test = Path(self.folder), self._of_test()
        return mixed(self._pictures(test, class_folders(top / "train" if (top / "train").is_dir() else test)))

    def _of_test(self) -> Path:
        top = Path(self.folder)
        return next((top / name for name in ("test", "val") if (top / name).is_dir()), top / "test")

    def _read(self, pictures: Pictures, top: Path) -> TensorData:
        data = pictures[:]
        check_data(data, str(top))
        return data

    def _pictures(self, top: Path, classes: list[str]) -> Pictures:
        look = CentralSquare(self.size, self.share, self.interpolation)
        return Pictures(top, *listed(top, classes), tuple(classes), look, self.unreadable)


@dataclass(frozen=True, slots=True)
class ImageStream:
    """Pictures in `folder`/train/CLASS/ and `folder`/val/CLASS/ (or test), as of ImageNet, read during training.

    Training pictures are decoded and cut to random windows in other processes, ahead of training. The validation
    (held-out) set is decoded into memory, and the test pictures of an evaluation batch by batch, both cut to a central
    square. The pictures are in a fixed random order, so that the first few are of all classes.

    Args:
        folder: folder that holds the folders train and val (or test).
        size: height and width of the images in pixels.
        scale: least and most share of the area of a picture that a random window covers, in (0, 1].
        workers: number of processes that decode training pictures; None takes one per core.
        unreadable: "stop" raises an error for a file that cannot be read; "skip" skips it, named and counted.
        middle: central square of evaluation, as in `sparring.data.looks.RandomWindow`.
    """

    folder: str
    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    workers: int | None = None
    unreadable: Unreadable = "stop"
    middle: Centre = "seven-eighths"

    def load(self) -> TrainTest:
        top = Path(self.folder)
        classes = class_folders(top / "train")
        test = next((top / name for name in ("val", "test") if (top / name).is_dir()), top / "val")
        return self._part(top / "train", classes), self._part(test, classes)

    def _part(self, top: Path, classes: list[str]) -> Pictures:
        look = RandomWindow(self.size, self.scale, self.middle)
        return mixed(Pictures(top, *listed(top, classes), tuple(classes), look, self.unreadable, self.workers))


@dataclass(frozen=True, slots=True)
class Subset:
    """The first training images and the first test images of another source.

    Args:
        source: the other source.
        train: number of training images, at least 1.
        test: number of test images, at least 1; None takes all.

    Raises:
        UserError: when `train` or `test` is below 1, or `load` finds fewer images in the source.
    """

    source: Source
    train: int
    test: int | None = None

    def __post_init__(self) -> None:
        if self.train < 1 or (self.test is not None and self.test < 1):
            raise UserError(f"train = {self.train} and test = {self.test} of a subset must be at least 1")

    def load(self) -> TrainTest:
        train, test = self.source.load()
        _need(self.train, len(train), "training")
        _need(self.test or 0, len(test), "test")
        return _first(train, self.train), _first(test, self.test)

    def load_test(self) -> LabelledData:
        """Return the test images alone; pictures in files stay there."""
        test = test_images(self.source)
        _need(self.test or 0, len(test), "test")
        return _first(test, self.test)


def _first(data: LabelledData, count: int | None) -> LabelledData:
    """Return the first images; those in files stay there, as training may draw their windows anew in each epoch."""
    if isinstance(data, TensorData):
        return data[:count]
    return data.part(torch.arange(len(data) if count is None else count))


def _need(count: int, there: int, name: str) -> None:
    if count > there:
        raise UserError(f"{count} {name} images are asked for, and there are {there}")
