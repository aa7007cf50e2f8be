"""The state of an evaluation on disk: what was found, batch by batch, so that a kill loses one batch at most.

A journal is a folder of parts, each written under another name and renamed when it is on the disk. A part that cannot
be read is passed over with a warning, and its examples are attacked again.
"""

import hashlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..plain import differences
from ..results import read_json, replacing, write_json
from ..scores import Array


class Part(NamedTuple):
    """What one batch came to under one stage.

    `rows`, `broken`, `margin`, `norm` and `predicted` are `[B]`; `images` are the adversarial images of the broken.
    """

    rows: Array
    broken: Array
    margin: Array
    norm: Array
    predicted: Array
    images: Array


class Journal:
    """The parts in `folder`, which belong to the evaluation that `about` describes.

    Raises `UserError` if the folder holds another one.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self._about = folder, folder / "about.json"
        plain = _without_addresses(about)
        if self._about.exists():
            changed = differences(read_json(self._about), plain)
            if changed:
                raise UserError(
                    f"{folder} holds the state of another evaluation ({'; '.join(changed)[:300]}): name another "
                    "folder, or delete it"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} holds files that are not of an evaluation: name another folder")
        else:
            _make(folder)
            write_json(self._about, plain)

    def parts(self, stage: str) -> Iterator[Part]:
        for path in sorted(self.folder.glob(f"{_file_name(stage)}-{_NUMBER}.npz")):
            try:
                with path.open("rb") as file, np.load(file) as held:
                    yield Part(*(held[name] for name in Part._fields))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                warnings.warn(f"{path} is damaged ({error}): what it held is done again", stacklevel=2)
                path.unlink()

    def add(self, stage: str, part: Part) -> None:
        number = 1 + max((int(path.stem[-6:]) for path in self.folder.glob("*.npz")), default=-1)
        with replacing(self.folder / f"{_file_name(stage)}-{number:06d}.npz") as file:
            np.savez(file, **part._asdict())


_NUMBER = "[0-9]" * 6


def _file_name(stage: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]", "_", stage)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot hold the state of an evaluation: {error.strerror}") from error


def _without_addresses(value: Any) -> Any:
    """Plain values, without the places in memory that Python shows of objects that do not say what they are."""
    if isinstance(value, Mapping):
        return {str(name): _without_addresses(part) for name, part in value.items()}
    return re.sub(r" at 0x[0-9a-f]+", "", value) if isinstance(value, str) else value


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """What tells apart weights or images: 16 hexadecimal digits of SHA-256 over names and bytes."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()[:16]
