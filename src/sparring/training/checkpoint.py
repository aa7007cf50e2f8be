"""Checkpoints that survive: atomic, checked, exact.

A checkpoint is a folder `step-000000120` of weights (safetensors), the rest of the state (loadable with
`weights_only=True`) and their checksums. It is written under another name and renamed once it is on the disk, so a
folder that has its name is whole. Two are kept: if the newer one is damaged later, the older one serves.
"""

import contextlib
import hashlib
import io
import json
import math
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.reading import LARGEST_JSON, conform, open_file, parse_json, read_bytes, reading
from ..core.writing import sync_folder, write_bytes
from ..evaluation.journal import digest
from ..records.clearing import STEP
from ..records.run_folder import RunFolder
from ..records.schemas import About
from .engine import State

_WEIGHTS, _REST, _SUMS = "weights.safetensors", "state.pt", "checksums.json"
_KEPT = 2


class Checkpoints:
    """The checkpoints of one run, newest last. The newest two are kept, and the one of step `pinned`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pinned: int | None = None
        for aside in self._named(rf"\.{STEP}\.old"):  # a kill came between two renames
            original = folder / aside.name[1 : -len(".old")]
            shutil.rmtree(aside) if original.exists() else aside.rename(original)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def paths(self) -> list[Path]:
        return self._named(STEP)

    def _named(self, pattern: str) -> list[Path]:
        """Folders of ours. What others put here, a copy of a checkpoint or a link to one, is not counted or deleted."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(p for p in found if re.fullmatch(pattern, p.name) and p.is_dir() and not p.is_symlink())

    def save(self, state: State) -> Path:
        """Writes the state; on an `OSError` (a full disk) nothing that was good before has changed.

        Raises `NotFinite` rather than keep weights that nothing can go on from.
        """
        state.check_finite()
        target = self.path(state.step)
        writing = self.folder / ".writing"
        try:
            self._write(writing, state)
            aside = self.folder / f".{target.name}.old"
            if target.exists():
                target.rename(aside)
            writing.rename(target)
            shutil.rmtree(aside, ignore_errors=True)
        except OSError:
            shutil.rmtree(writing, ignore_errors=True)
            raise
        sync_folder(self.folder)
        pinned = None if self.pinned is None else self.path(self.pinned)
        for old in self.paths()[:-_KEPT]:
            if old != pinned:
                shutil.rmtree(old)
        return target

    def go_back(self, state: State, step: int) -> bool:
        """Fills `state` from the checkpoint of `step`, and forgets those after it; False if that is not whole."""
        contents = _verified(self.path(step))
        if contents is None:
            return False
        _fill(state, self.path(step), *contents)
        for later in self.paths():
            if later.name > self.path(step).name:
                shutil.rmtree(later)
        return True

    def _write(self, folder: Path, state: State) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rest = io.BytesIO()
        torch.save(state.state_dict(), rest)
        modules = state.modules().items()
        weights = {f"{part}.{name}": t for part, m in modules for name, t in m.state_dict().items()}
        contents = {_WEIGHTS: safetensors.torch.save(_plain(weights)), _REST: rest.getvalue()}
        for name, content in contents.items():
            write_bytes(folder / name, content)
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        write_bytes(folder / _SUMS, json.dumps(sums).encode())

    def load_latest(self, state: State) -> Path | None:
        """Fills `state` from the newest checkpoint that is whole, or leaves it if there is none.

        A damaged one is named in a warning and passed over. Raises `UserError` if all are damaged.
        """
        paths = self.paths()
        for path in reversed(paths):
            contents = _verified(path)
            if contents is not None:
                _fill(state, path, *contents)
                for damaged in paths[paths.index(path) + 1 :]:
                    shutil.rmtree(damaged)  # or it would count as one of the two that are kept
                return path
            warnings.warn(f"checkpoint {path} is damaged: going back to the one before", stacklevel=2)
        if paths:
            raise UserError(f"every checkpoint in {self.folder} is damaged: start again with --overwrite")
        return None


def _verified(path: Path) -> tuple[bytes, bytes] | None:
    """The contents of a checkpoint that is whole. Other errors of the disk may pass, and are not called damage."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, RecursionError):
        sums = parse_json(read_bytes(path / _SUMS, LARGEST_JSON))
        conform(sums, dict[str, str], "it")
        contents = [read_bytes(path / name) for name in (_WEIGHTS, _REST)]
        if [hashlib.sha256(c).hexdigest() for c in contents] == [sums[_WEIGHTS], sums[_REST]]:
            return contents[0], contents[1]
    return None


def _fill(state: State, path: Path, weights: bytes, rest: bytes) -> None:
    with reading(path, "it is of another program or version, so start again with --overwrite"):
        tensors = safetensors.torch.load(weights)
        for part, module in state.modules().items():
            own = {k.removeprefix(part + "."): t for k, t in tensors.items() if k.startswith(part + ".")}
            module.load_state_dict(own)
        state.load_state_dict(torch.load(io.BytesIO(rest), weights_only=True, map_location="cpu"))


def save_weights(path: Path, model: nn.Module, about: Mapping[str, Any]) -> None:
    """One file of weights that says in its header what it is: `about`, as JSON, and the checksum of its tensors.

    It is one entry, for safetensors writes several in a random order, and equal runs shall give equal files.
    """
    tensors = _plain(model.state_dict())
    header = {"sparring": json.dumps({**about, "sha256": _checksum(tensors)})}
    write_bytes(path, safetensors.torch.save(tensors, header))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a .safetensors file, or of a .pt file that holds nothing else, and what `save_weights` added.

    Raises `UserError` for a missing, damaged or unsafe file, whatever it holds.
    """
    with reading(path, "wanted is a file of weights, whole, that holds tensors and nothing else"):
        if not path.exists():
            raise UserError(f"there is no file {path}")
        open_file(path).close()  # a pipe or a device may never end
        if path.suffix == ".safetensors":
            return _safetensors(path)
        return _tensors(_unpickled(path), path), {}


def _unpickled(path: Path) -> Any:
    """What a .pt file holds. Torch's error says how to run what else is in it; ours must not pass that on."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:
        raise ValueError("it holds other things than tensors, or is of another kind of file") from None


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safetensors.safe_open(path, "pt") as file:
        about = parse_json((file.metadata() or {}).get("sparring", "{}"))
    conform(about, About, "what it says of itself")
    shape = about.get("shape", [1, 1, 1])
    if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > _LARGEST_IMAGE:
        raise ValueError(f"its images are said to be of shape {shape}")
    tensors = safetensors.torch.load_file(path)
    if about.pop("sha256", None) not in (None, _checksum(tensors)):
        raise ValueError("it is damaged: its tensors are not those that were saved")
    return tensors, about


_LARGEST_IMAGE = 2**28  # numbers


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    return digest({name: tensors[name] for name in sorted(tensors)})  # a file has an order of its own


def fill(model: nn.Module, tensors: Mapping[str, Tensor], otherwise: str) -> nn.Module:
    """The model with these weights in it. Raises `UserError` with `otherwise` and a detail if they do not fit."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{otherwise}: {str(error).splitlines()[-1].strip()}") from error
    return model


def started(model: nn.Module, path: str) -> nn.Module:
    """The model with the best weights of a run in `path`, or those of a file; of another head or bank, without its.

    Raises `UserError` for a folder without them, and for a body that does not fit.
    """
    file = RunFolder(path).weights("best") if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(
            f"training is to start from {path}, which has no best weights: train that run first, "
            "or name another with --weights-from"
        )
    tensors, _ = read_weights(file)
    own = model.state_dict()
    ours, theirs = ({n: t for n, t in each.items() if n.startswith("head.")} for each in (own, tensors))
    if {n: t.shape for n, t in ours.items()} != {n: t.shape for n, t in theirs.items()}:
        tensors = {**{n: t for n, t in tensors.items() if n not in theirs}, **ours}
    return fill(model, tensors, f"training cannot start from {file}, which is of another model")


def _tensors(held: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    if not isinstance(held, dict) or not all(isinstance(t, Tensor) for t in held.values()):
        raise UserError(f"{path} holds no state dict of tensors")
    return held


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU: safetensors refuses views and shared memory."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
