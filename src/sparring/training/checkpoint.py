"""Checkpoints that survive a crash: written atomically, verified by checksums, and exact.

A checkpoint is a folder `step-000000120` with the weights (safetensors), the rest of the state (loadable with
`weights_only=True`) and their checksums. It is written under another name and renamed once it is on the disk, so a
folder with a checkpoint's name is complete. Two are kept: if the newer one is damaged later, the older one is used.
"""

import contextlib
import copy
import hashlib
import json
import math
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..core import ranks
from ..core.errors import UserError
from ..core.reading import LARGEST_JSON, conform, open_file, parse_json, read_bytes, reading
from ..core.writing import replacing, sync_folder, write_bytes
from ..evaluation.journal import digest
from ..records.clearing import STEP
from ..records.run_folder import RunFolder
from ..records.schemas import About
from .engine import State

_WEIGHTS, _REST, _SUMS = "weights.safetensors", "state.pt", "checksums.json"
_KEPT = 2


class Checkpoints:
    """The checkpoints of one run, newest last. The newest two and the one of step `pinned` are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pinned: int | None = None
        for aside in (
            self._named(rf"\.{STEP}\.old") if ranks.first() else ()
        ):  # the process was killed between two renames
            original = folder / aside.name[1 : -len(".old")]
            shutil.rmtree(aside) if original.exists() else aside.rename(original)

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint of `step`."""
        return self.folder / f"step-{step:09d}"

    def paths(self) -> list[Path]:
        """Return the folders of all checkpoints, newest last."""
        return self._named(STEP)

    def _named(self, pattern: str) -> list[Path]:
        """Folders that match `pattern`. Other folders, and links, are neither counted nor deleted."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(p for p in found if re.fullmatch(pattern, p.name) and p.is_dir() and not p.is_symlink())

    def save(self, state: State) -> Path:
        """Write a checkpoint of the state, and return its folder.

        On an `OSError` (a full disk) the earlier checkpoints are unchanged. Raises `NotFinite` for weights that are
        not finite, because training cannot continue from them. Of several processes, which all call this, one writes.
        """
        state.check_finite()
        rest = state.state_dict()  # what is divided between processes is gathered here
        return ranks.from_first(lambda: self._saved(state, rest))

    def _saved(self, state: State, rest: Mapping[str, Any]) -> Path:
        target = self.path(state.step)
        writing = self.folder / ".writing"
        try:
            self._write(writing, state, rest)
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
        """Load the checkpoint of `step` into `state`, and delete the later ones; return False if it is damaged."""
        path = self._loaded(state, [self.path(step)])
        for later in self.paths() if path is not None and ranks.first() else ():
            if later.name > self.path(step).name:
                shutil.rmtree(later)
        return path is not None

    def _write(self, folder: Path, state: State, rest: Mapping[str, Any]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        modules = state.modules().items()
        weights = {f"{part}.{name}": t for part, m in modules for name, t in m.state_dict().items()}
        write_bytes(folder / _WEIGHTS, safetensors.torch.save(_plain(weights)))
        _save(folder / _REST, rest)
        sums = {name: _sum(folder / name) for name in (_WEIGHTS, _REST)}
        write_bytes(folder / _SUMS, json.dumps(sums).encode())

    def load_latest(self, state: State) -> Path | None:
        """Load the newest undamaged checkpoint into `state`, and return its folder; None if there is no checkpoint.

        A warning names each damaged checkpoint that is skipped. Raises `UserError` if all are damaged.
        """
        paths = self.paths()
        path = self._loaded(state, paths[::-1], tell=True)
        if path is None and ranks.any_of(bool(paths)):
            raise UserError(f"every checkpoint in {self.folder} is damaged: start again with --overwrite")
        for damaged in paths[paths.index(path) + 1 :] if path is not None and ranks.first() else ():
            shutil.rmtree(damaged)  # else it would count as one of the two that are kept
        return path

    def _loaded(self, state: State, paths: Sequence[Path], tell: bool = False) -> Path | None:
        """Load the first undamaged checkpoint of `paths`, which the first process chooses, and return its folder."""

        def undamaged() -> Path | None:
            for path in paths:
                if _is_whole(path):
                    return path
                if tell:
                    warnings.warn(f"checkpoint {path} is damaged: going back to the one before", stacklevel=4)
            return None

        path = ranks.from_first(undamaged)
        if path is not None:
            _fill(state, path)
            ranks.wait()  # before the first process may replace it
        return path


def _save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a state in pieces, since a bank in it may be larger than memory."""
    with replacing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own, when it ends a file after the disk has refused a part of it
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _sum(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(path: Path) -> bool:
    """Return True for an undamaged checkpoint. Other disk errors may be temporary, and are raised."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, RecursionError):
        sums = parse_json(read_bytes(path / _SUMS, LARGEST_JSON))
        conform(sums, dict[str, str], "it")
        return all(_sum(path / name) == sums[name] for name in (_WEIGHTS, _REST))
    return False


def _fill(state: State, path: Path) -> None:
    with reading(path, "it is from another program or version: start again with --overwrite"):
        tensors = safetensors.torch.load_file(path / _WEIGHTS)
        for part, module in state.modules().items():
            own = {k.removeprefix(part + "."): t for k, t in tensors.items() if k.startswith(part + ".")}
            module.load_state_dict(own)
        # mapped, since a bank in it may be larger than memory; the optimiser would go on in the mapped file
        rest = torch.load(path / _REST, weights_only=True, map_location="cpu", mmap=True)
        state.load_state_dict({**rest, "optimizer": copy.deepcopy(rest["optimizer"])})


def save_weights(path: Path, model: nn.Module, about: Mapping[str, Any]) -> None:
    """Write the weights of `model` to one file, with `about` as JSON and the checksum of its tensors in the header.

    The header has a single entry, because safetensors writes several in a random order, and equal runs shall give equal
    files.
    """
    tensors = _plain(model.state_dict())
    header = {"sparring": json.dumps({**about, "sha256": _checksum(tensors)})}
    write_bytes(path, safetensors.torch.save(tensors, header))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a .safetensors file, or of a .pt file of tensors only, and the `about` of `save_weights`.

    Raises `UserError` for a missing, damaged or unsafe file.
    """
    with reading(path, "wanted is an undamaged file of weights that holds only tensors"):
        if not path.exists():
            raise UserError(f"there is no file {path}")
        open_file(path).close()  # refuses pipes and devices, which may never end
        if path.suffix == ".safetensors":
            return _safetensors(path)
        return _tensors(_unpickled(path), path), {}


def read_nested(path: Path) -> dict[str, Tensor]:
    """Return all tensors in a .pt file, those in nested dicts by their path, as in `model.fc.weight`.

    Raises `UserError` for a missing, damaged or unsafe file.
    """
    with reading(path, "wanted is an undamaged file of weights that holds only tensors"):
        open_file(path).close()
        return dict(_leaves(_unpickled(path), ""))


def _leaves(held: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(held, Tensor):
        yield path, held
    elif isinstance(held, dict):
        for name, value in held.items():
            yield from _leaves(value, f"{path}.{name}" if path else str(name))


def _unpickled(path: Path) -> Any:
    """Contents of a .pt file. Torch's error explains how to run other objects in it; ours must not repeat that."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:
        raise ValueError("it holds other objects than tensors, or is another kind of file") from None


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safetensors.safe_open(path, "pt") as file:
        about = parse_json((file.metadata() or {}).get("sparring", "{}"))
    conform(about, About, "its header")
    shape = about.get("shape", [1, 1, 1])
    if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > _LARGEST_IMAGE:
        raise ValueError(f"its header gives the impossible image shape {shape}")
    tensors = safetensors.torch.load_file(path)
    if about.pop("sha256", None) not in (None, _checksum(tensors)):
        raise ValueError("it is damaged: its tensors do not match their checksum")
    return tensors, about


_LARGEST_IMAGE = 2**28  # numbers


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    return digest({name: tensors[name] for name in sorted(tensors)})  # the order in a file is another than in the model


def fill(model: nn.Module, tensors: Mapping[str, Tensor], otherwise: str) -> nn.Module:
    """Load weights into `model` and return it. Raises `UserError` with `otherwise` and a detail if they do not fit."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{otherwise}: {str(error).splitlines()[-1].strip()}") from error
    return model


def started(model: nn.Module, path: str) -> nn.Module:
    """Load the best weights of the run in folder `path`, or the weights in file `path`, into `model` and return it.

    If the head or its bank differs in shape, the model keeps its own. Raises `UserError` for a folder without best
    weights, and for a body that does not fit.
    """
    file = RunFolder(path).weights("best") if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(
            f"training cannot start from {path}, which has no best weights: train that run first, "
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
