"""The state of an evaluation on disk, so that a kill loses at most one batch, or four that are refilled together.

A journal is a folder of parts, each written under another name and renamed when it is on the disk. A part that cannot
be read is skipped with a warning, and its examples are attacked again. Several processes, also on several machines that
share the folder, may write to one journal: no two parts have the same name.
"""

import hashlib
import io
import math
import re
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.public_names import FORMAT
from ..core.reading import Array, check_arrays, load_arrays, read_bytes, read_json, reading
from ..core.serialization import differences
from ..core.writing import replacing, write_json
from ..records.results import PICTURES


class Part(NamedTuple):
    """The results of one batch under one stage.

    `rows`, `broken`, `margin`, `norm` and `predicted` are `[B]`; `images` are the adversarial images of all broken
    examples, or of the first few of them.
    """

    rows: Array
    broken: Array
    margin: Array
    norm: Array
    predicted: Array
    images: Array


P = TypeVar("P", bound="Kept")


class Kept(Protocol):
    """The results of one batch, a tuple of arrays by name."""

    def _asdict(self) -> dict[str, Any]: ...


class Journal(ABC, Generic[P]):
    """The parts in `folder`, which belong to the evaluation that `about` describes.

    Parts that do not fit `images`, the shape of the evaluated images, count as damaged. Raises `UserError` if the
    folder holds the state of another evaluation.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], images: Sequence[int] = ()) -> None:
        self.folder, self._about, self._images = folder, folder / "about.json", tuple(images)
        plain = {"format": FORMAT, **_plain(about)}
        _make(folder)
        used = any(not path.name.startswith(".") for path in folder.iterdir())
        if not self._about.exists():  # asked after `used`: whoever else begins this state writes about.json first
            if used:
                raise UserError(f"{folder} holds files that are not of an evaluation: choose another folder")
            write_json(self._about, plain, shared=True)
        changed = differences(read_json(self._about, f"delete {folder}, and begin again"), plain)
        if changed:
            raise UserError(
                f"{folder} holds the state of another evaluation ({'; '.join(changed)[:300]}): choose "
                "another folder, or delete it"
            )

    @abstractmethod
    def read(self, content: bytes) -> P:
        """Return a part from the bytes of its file. Raises any exception for bytes that are no part."""

    def parts(self, stage: str) -> Iterator[P]:
        """The readable parts of a stage; a damaged part is renamed and skipped with a warning."""
        name = _file_name(stage)
        for path in sorted(self.folder.glob(f"{name}-*.npz")):
            if not _ENDING.fullmatch(path.name.removeprefix(name)):
                continue
            try:
                part = self.read(read_bytes(path))
            except FileNotFoundError:  # another process found it damaged
                continue
            except OSError as error:  # possibly temporary, so the part is not renamed
                raise UserError(f"{path} cannot be read ({error.strerror or error}): try again") from error
            except Exception as error:  # flipped bits in a zip file can raise anything
                warnings.warn(f"{path} is damaged ({error}): its examples are attacked again", stacklevel=2)
                with suppress(FileNotFoundError):
                    path.rename(path.with_suffix(".damaged"))
                continue
            yield part

    def add(self, stage: str, part: P) -> None:
        """Write a part of a stage under a name that no other process gives."""
        with replacing(self.folder / f"{_file_name(stage)}-{uuid.uuid4().hex}.npz") as file:
            np.savez(file, **part._asdict())

    def same_answers(self, predicted: Array, margin: Array) -> None:
        """Check that the model answers clean images as it did when the state was begun.

        `predicted` `[N]` are their classes, and `margin` `[N]` is a margin of their logits. The fingerprint of the
        weights does not notice a change of the code. Raises `UserError` if more than one example in a hundred is
        answered differently.
        """
        self._images = self._images or (len(predicted),)
        path = self.folder / "clean.npy"
        answers = np.stack([predicted.astype(np.float64), margin.astype(np.float64)])
        if not path.exists():
            with replacing(path, shared=True) as file:
                np.save(file, answers)
            return
        with reading(path, f"delete {self.folder}, and begin again"):
            before = np.load(io.BytesIO(read_bytes(path)))
            if (before.shape, before.dtype) != (answers.shape, answers.dtype):
                raise ValueError(f"it holds {before.dtype} {before.shape} instead of {answers.dtype} {answers.shape}")
        near = np.isclose(before[1], answers[1], rtol=1e-2, atol=1e-2, equal_nan=True) | (before[1] == answers[1])
        if (~near).mean() > 0.01:
            raise UserError(
                f"the model gives other answers than when the state in {self.folder} was begun, though its weights are "
                "the same: its code has changed. Delete the folder, or choose another"
            )


class PartStore(Journal[Part]):
    """The parts of attacks."""

    def read(self, content: bytes) -> Part:
        return _part(content, self._images)


_ENDING = re.compile(r"-(\d{6}|[0-9a-f]{32})\.npz")  # earlier versions numbered the parts


_KINDS = {"rows": "int64", "broken": "bool", "margin": "f", "norm": "float32", "predicted": "int64"}


def _part(content: bytes, images: tuple[int, ...]) -> Part:
    """Read a part. Raises `ValueError`, or an error of the zip reader, if it is damaged or does not fit `images`."""
    held = load_arrays(io.BytesIO(content), *Part._fields)
    part = Part(*(held[name] for name in Part._fields))
    check_arrays(held, len(part.rows), _KINDS)
    if (part.rows < 0).any() or (part.rows >= (images or (math.inf,))[0]).any():
        raise ValueError("its rows are out of range")
    broken = int(part.broken.sum())
    few = min(broken, PICTURES)
    if part.images.dtype != np.float32 or part.images.ndim != 4 or not few <= len(part.images) <= broken:
        raise ValueError("its images do not fit its broken examples")
    if images[1:] and part.images.shape[1:] != images[1:]:
        raise ValueError(f"its images are {part.images.shape[1:]}, the evaluated images are {images[1:]}")
    return part


def _file_name(stage: str) -> str:
    """A file name that is readable, and different for different stages."""
    return re.sub(r"[^A-Za-z0-9-]", "_", stage) + "-" + hashlib.sha256(stage.encode()).hexdigest()[:8]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot hold the state of an evaluation: {error.strerror}") from error


def _plain(value: Any) -> Any:
    """Values as JSON holds them. Raises `UserError` for an adversary whose repr does not identify it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, str) and " at 0x" in value:
        raise UserError(
            f"{value} does not say what it is, so a state on disk could be that of another adversary: make it a "
            "dataclass, or evaluate without a state"
        )
    return value


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short identifier of weights or images: the first 16 hexadecimal digits of their digest."""
    return digest(tensors)[:16]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes, types and bytes of tensors, in their order, as hexadecimal digits."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return found.hexdigest()
