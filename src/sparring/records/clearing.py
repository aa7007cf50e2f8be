"""Deletion of the files that a run writes, which are known by their names, and of nothing else. Needs no torch.

Nothing is deleted through a link, and folders are deleted only when they are empty.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from ..core.errors import UserError

ANALYSES = ("landscape", "memorization", "representation", "information", "transfer", "inversion")
"""The kinds of analysis that leave files in a run folder."""
OF_STUDIES = ("one-step",)
"""Those that only studies do."""

Tree: TypeAlias = Mapping[str, "Tree | None"]
"""Patterns of names: None for a file, another tree for a folder and what it holds."""

STEP = r"step-\d{9}"
"""The name of a checkpoint."""

SHARD = r"-shard-\d+-of-\d+"
"""The end of the names of results on one part of the examples."""

STATE: Tree = {
    r"about\.json": None,
    r"clean\.npy": None,
    r"[\w-]+-[0-9a-f]{8}-(\d{6}|[0-9a-f]{32})\.(npz|damaged)": None,
}

_CHECKPOINT: Tree = {r"weights\.safetensors|state\.pt|checksums\.json": None}

RUN: Tree = {
    r"(environment|status|search|guard|profile|evaluation|certification|tracking|audit)\.json": None,
    r"metrics\.jsonl|profile\.txt|training\.npz": None,
    r"(best|last)\.safetensors": None,
    rf"(evaluation|certification)-(best|last)({SHARD})?\.npz": None,
    rf"analysis-({'|'.join((*ANALYSES, *OF_STUDIES))})\.(json|npz|png)|analysis-inversion-features\.png": None,
    r"report\.html|model-card\.md": None,
    r"(learning-curve|adversarial-examples|hardest-examples|robustness-curve|certified-accuracy)\.png": None,
    r"checkpoints": {rf"{STEP}|\.{STEP}\.old|\.writing": _CHECKPOINT},
    r"memory": {r"step-\d{8}\.npz": None},
    r"tensorboard": {r"events\.out\.tfevents\..+": None},
    rf"(evaluation|certification)-\w+({SHARD})?\.state": STATE,
    r"recipe\.json": None,  # last: without it, no run is here
}


def deletable(folder: Path, tree: Tree) -> list[Path]:
    """List the files and folders that may be deleted, in an order in which that works. Nothing is deleted yet.

    Raises `UserError` where a link or a file has the name of a folder of a run, or a folder the name of a file.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [path for pattern, inner in tree.items() for name in names for path in _named(folder / name, pattern, inner)]


def _named(path: Path, pattern: str, inner: Tree | None) -> Iterator[Path]:
    """The path with all that is deletable inside it, if its name matches the pattern."""
    if not re.fullmatch(pattern, path.name if inner is not None else settled(path.name)):
        return
    is_folder = path.is_dir() and not path.is_symlink()
    if is_folder != (inner is not None):
        due, found = ("folder", "link or a file") if inner is not None else ("file", "folder")
        raise UserError(f"{path} is a {found}, and a run has a {due} of that name: move it away, nothing was deleted")
    if inner is not None:
        yield from deletable(path, inner)
    yield path


def settled(name: str) -> str:
    """The final name of a file from its name while it is being written: `a.png` from `.a.png.writing`.

    One that several processes may write has 32 hexadecimal digits in between.
    """
    found = re.fullmatch(r"\.(.+?)(?:\.[0-9a-f]{32})?\.writing(\.\w+)?", name)
    return name if found is None else found[1] + (found[2] or "")


def delete(paths: list[Path]) -> None:
    """Delete the paths that `deletable` found; folders that are not empty stay."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        else:
            path.unlink(missing_ok=True)
