"""The files that certifications leave in a run folder. Needs no torch."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.reading import check_arrays, conform, read_arrays, read_json, reading
from ..core.writing import replacing, write_json
from .certification import Certification
from .clearing import SHARD, STATE, deletable, delete
from .results import Shard
from .run_folder import RunFolder, sharded
from .schemas import Certified

_REMEDY = "delete it, and certify again"
_KINDS = dict.fromkeys(("chosen", "votes", "label", "index", "image_hash"), "int64")


class CertificationFiles:
    """The certifications in a folder: votes by the name of the weights, tables, and the curve.

    Args:
        run: The folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.path = run.path
        self.tables = run.path / "certification.json"
        self.curve = run.path / "certified-accuracy.png"

    def votes(self, which: str, shard: Shard | None = None) -> Path:
        """The file of the votes on each example, or on those of a shard."""
        return self.path / f"certification-{sharded(which, shard)}.npz"

    def state(self, which: str, shard: Shard | None = None) -> Path:
        """The folder for the state of a certification under way."""
        return self.path / f"certification-{sharded(which, shard)}.state"

    def write(self, which: str, found: Certification) -> None:
        """Write the votes of some weights, and delete the state of their certification."""
        with replacing(self.votes(which, found.shard), shared=True) as file:
            np.savez_compressed(file, **found.arrays())  # type: ignore[arg-type]
        folder = self.state(which, found.shard)
        delete([*deletable(folder, STATE), folder])

    def read(self, which: str) -> Certification:
        """Read the certification of some weights. Raises `UserError` if it is missing or damaged."""
        return _read(self.votes(which))

    def shards(self, which: str, of: int | None = None) -> list[Certification]:
        """Read all certifications of some weights on parts of the examples, or on those of `of` parts."""
        paths = self._shards(which)
        return [_read(path) for path in paths if of is None or path.stem.endswith(f"-of-{of}")]

    def forget_shards(self, which: str) -> None:
        """Delete the certifications of some weights on parts of the examples."""
        delete(self._shards(which))

    def _shards(self, which: str) -> list[Path]:
        found = re.compile(rf"certification-{re.escape(which)}{SHARD}\.npz")
        return sorted(path for path in self.path.glob("certification-*.npz") if found.fullmatch(path.name))

    def write_tables(self, tables: Mapping[str, Any]) -> None:
        """Write the certified accuracies by the name of the weights."""
        write_json(self.tables, tables)

    def images(self) -> int:
        """Number of images that are certified in the folder; 0 if there is no certification."""
        if not self.tables.exists():
            return 0
        with reading(self.tables, _REMEDY):
            held = list(read_json(self.tables, _REMEDY).values())
            conform(held, list[Certified], "its tables")
            return max((table["images"] for table in held), default=0)


def _read(path: Path) -> Certification:
    with reading(path, _REMEDY):
        arrays = read_arrays(path, _REMEDY, *_KINDS, "samples", "sigma", "alpha", "classes")
        count = len(arrays["label"])
        check_arrays(arrays, count, _KINDS)
        found = Certification.from_arrays(arrays)
        if not count or found.label.min() < 0 or found.label.max() >= len(found.classes):
            raise ValueError("its labels do not fit its classes")
        if found.votes.min() < 0 or found.votes.max() > found.samples:
            raise ValueError("its votes do not fit its samples")
        return found
