"""The run folder: typed reading and writing of its files. Needs no torch, so that reports and tools start fast."""

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np

from ..core.errors import UserError
from ..core.reading import REMEDY, Array, check_arrays, conform, open_file, parse_json, read_arrays, read_json, reading
from ..core.writing import replacing, write_bytes, write_json
from .clearing import RUN, SHARD, STATE, STEP, deletable, delete, settled
from .gallery import Gallery
from .locking import locked
from .results import EvaluationResult, Memory, Shard
from .schemas import Audited, Begun, Counted, Events, Row, Sessions, Status

P = ParamSpec("P")


def _writes(method: Callable[P, None]) -> Callable[P, None]:
    """Let a method of a run folder do nothing where another process writes."""

    @functools.wraps(method)
    def written(*args: P.args, **kwargs: P.kwargs) -> None:
        folder = args[0]
        if isinstance(folder, RunFolder) and folder.writes:
            method(*args, **kwargs)

    return written


class RunFolder:
    """The folder of one training: recipe, metrics, checkpoints, weights and evaluations.

    Files that a run needs are written under another name, flushed and renamed, so that a crash leaves no partial file.

    Args:
        path: The folder; it need not exist.
        writes: Whether this process writes. Of several that train a model together, one does; in the others the methods
            that write do nothing.
    """

    def __init__(self, path: Path | str, writes: bool = True) -> None:
        self.path, self.writes = Path(path), writes
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.memory = self.path / "memory"
        self._recipe = self.path / "recipe.json"
        self._environment = self.path / "environment.json"
        self._status = self.path / "status.json"
        self._metrics = self.path / "metrics.jsonl"
        self._search = self.path / "search.json"
        self._guard = self.path / "guard.json"
        self._evaluation = self.path / "evaluation.json"
        self._audit = self.path / "audit.json"
        self._training = self.path / "training.npz"
        self._tracking = self.path / "tracking.json"
        self.learning_curve = self.path / "learning-curve.png"
        self.adversarial_examples = self.path / "adversarial-examples.png"
        self.hardest_examples = self.path / "hardest-examples.png"
        self.robustness_curve = self.path / "robustness-curve.png"
        self.report = self.path / "report.html"
        self.model_card = self.path / "model-card.md"

    def __repr__(self) -> str:
        """Return what came out of the training, in a line."""
        if not self.finished():
            return f"{self.path}: {'an unfinished run' if self.recipe() is not None else 'no run yet'}"
        return f"{self.path}: {self.outcome()}"

    def outcome(self) -> str:
        """Return a sentence on a finished training: its steps, the best epoch, and the held-out accuracy there."""
        status = self.status()
        best, stopped = status["best"], status.get("stopped")
        found = "last epoch counts, as nothing was held out"
        if "robust" in best:
            accuracy = f"{100 * best['clean']:.1f} % clean, {100 * best['robust']:.1f} % robust"
            found = f"best after step {best['step']:.0f}, held-out accuracy {accuracy}"
        return f"trained {status['step']} steps; {found}{f'; stopped: {stopped}' if stopped else ''}"

    def weights(self, which: str) -> Path:
        """The file of the weights; `which` is `best` or `last`."""
        return self.path / f"{which}.safetensors"

    def flags(self, which: str) -> Path:
        """The file of per-example results of the weights `best` or `last`."""
        return self.path / f"evaluation-{which}.npz"

    def shards(self, which: str, of: int | None = None) -> list[Path]:
        """The files of results of some weights on parts of the examples, or on those of `of` parts."""
        found = re.compile(rf"evaluation-{re.escape(which)}{SHARD}\.npz")
        paths = sorted(path for path in self.path.glob("evaluation-*.npz") if found.fullmatch(path.name))
        return paths if of is None else [path for path in paths if path.stem.endswith(f"-of-{of}")]

    def analysis(self, name: str, ending: str) -> Path:
        """A file of an analysis: its results (`json`), the results of each image (`npz`), or its figure (`png`)."""
        return self.path / f"analysis-{name}.{ending}"

    def read_analysis(self, name: str) -> dict[str, Any]:
        """The results of an analysis."""
        return read_json(self.analysis(name, "json"), "delete it, and analyse again")

    def read_images(self, name: str, *needed: str) -> dict[str, Array]:
        """The results of an analysis for each image; `needed` names arrays that have to be there."""
        return read_arrays(self.analysis(name, "npz"), "delete it, and analyse again", *needed)

    def state(self, which: str) -> Path:
        """The folder for the state of an evaluation under way."""
        return self.path / f"evaluation-{which}.state"

    @_writes
    def forget_state(self, which: str) -> None:
        """Delete the state of an evaluation."""
        folder = self.state(which)
        delete([*deletable(folder, STATE), folder])

    # -- the life of a run

    @_writes
    def begin(self, recipe: Mapping[str, Any]) -> None:
        """Make the folder and write the recipe."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self._recipe, recipe)

    def recipe(self) -> dict[str, Any] | None:
        """The recipe; None if no run is here."""
        return read_json(self._recipe) if self._recipe.exists() else None

    def tracked(self) -> dict[str, str]:
        """The names by which trackers know this run, by tracker."""
        return read_json(self._tracking, "delete it") if self._tracking.exists() else {}

    @_writes
    def set_tracked(self, tracker: str, name: str) -> None:
        """Write the name by which a tracker knows this run."""
        write_json(self._tracking, {**self.tracked(), tracker: name})

    def finished(self) -> bool:
        """Return True if the run came to its end."""
        return self._status.exists() and bool(self.status()["finished"])

    def status(self) -> dict[str, Any]:
        """The state in which the run ended."""
        return read_json(self._status, hint=Status)

    @_writes
    def set_status(self, status: Mapping[str, Any]) -> None:
        """Write the status."""
        write_json(self._status, status)

    def saved_step(self) -> int | None:
        """The step of the newest checkpoint; None if there is none."""
        names = os.listdir(self.checkpoints) if self.checkpoints.is_dir() else []
        return max((int(name[len("step-") :]) for name in names if re.fullmatch(STEP, name)), default=None)

    def backend(self) -> dict[str, Any] | None:
        """Return how the run computes, as set at its start: number formats, compilation, notes on the copy."""
        return read_json(self._search, hint=Begun) if self._search.exists() else None

    @_writes
    def set_backend(self, backend: Mapping[str, Any]) -> None:
        """Write how the run computes."""
        write_json(self._search, backend)

    def guard(self) -> list[dict[str, Any]]:
        """The events of the guard: the `step`, the `action` of the guard, and `what` it detected."""
        return list(read_json(self._guard, hint=Events)["events"]) if self._guard.exists() else []

    @_writes
    def set_guard(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Write all events of the guard."""
        write_json(self._guard, {"events": [dict(event) for event in events]})

    def foreign(self) -> bool:
        """Return True if there are files here that are not of a run; a run is known by its recipe."""
        if not self.path.is_dir():
            return self.path.exists()
        if self._recipe.exists():
            return read_json(self._recipe).get("$") not in ("Recipe", "recipe:Recipe")
        return any(path.name != ".lock" and settled(path.name) == path.name for path in self.path.iterdir())

    def clearable(self) -> list[Path]:
        """The paths that `clear` deletes. Raises `UserError` if something else has one of their names."""
        return deletable(self.path, RUN)

    @_writes
    def clear(self, keep: Collection[str] = ()) -> None:
        """Delete the files that a run writes, but those with the names to keep, and nothing else."""
        delete([path for path in self.clearable() if path.name not in keep])

    def locked(self) -> AbstractContextManager[None]:
        """Lock the folder against a second process, whatever the two write here."""
        return locked(self.path) if self.writes else contextlib.nullcontext()

    # -- records of a run

    @_writes
    def add_session(self, session: Mapping[str, Any]) -> None:
        """Add an entry for a start or a resumption: versions, commit, device, threads, seed."""
        before = self.sessions() if self._environment.exists() else []
        write_json(self._environment, {"sessions": [*before, dict(session)]})

    def has_sessions(self) -> bool:
        """Return True if a training was started here."""
        return self._environment.exists()

    def sessions(self) -> list[dict[str, Any]]:
        """The starts and resumptions of the run."""
        return list(read_json(self._environment, hint=Sessions)["sessions"])

    @_writes
    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row to the metrics, and flush it to the disk."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint must not outlive the metrics before it

    def metrics(self) -> list[dict[str, Any]]:
        """One row per logged step and one per epoch. A line that a crash cut short or damaged is left out."""
        if not self._metrics.exists():
            return []
        with reading(self._metrics, REMEDY), open_file(self._metrics) as file:
            return [row for row in map(_row, file) if row is not None]

    @_writes
    def rewind(self, step: int) -> None:
        """Delete the metrics and the example history after `step`, from which training continues."""
        kept = [json.dumps(row) + "\n" for row in self.metrics() if row["step"] <= step]
        write_bytes(self._metrics, "".join(kept).encode())
        for path in self._memories():
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()

    def settle_training(self, arrays: Mapping[str, Array]) -> None:
        """Write the images that are trained on (`rows`), their labels (`y`), and the `true` labels, if not written yet.

        Raises `UserError` if the run was begun on others.
        """
        if self._training.exists():
            begun = read_arrays(self._training, "start a new run in another folder")
            if not all(name in begun and np.array_equal(begun[name], each) for name, each in arrays.items()):
                raise UserError(
                    f"{self.path} was begun on other training examples or labels ({self._training}) than its recipe "
                    "gives now: restore the data or the runs that select examples, or start a new run in another folder"
                )
            return
        if not self.writes:
            return
        with replacing(self._training) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def training(self) -> dict[str, Array] | None:
        """The arrays of `settle_training`; None if no labels were changed and no example history was recorded."""
        if not self._training.exists():
            return None
        with reading(self._training, "train again"):
            arrays = read_arrays(self._training, "train again", "rows", "y", "true")
            check_arrays(arrays, len(arrays["y"]), {"rows": "i", "y": "i", "true": "i"})
            return arrays

    @_writes
    def add_memory(self, step: int, epoch: float, facts: Mapping[str, Array]) -> None:
        """Write losses and correctness of all training examples after `step`, in some 4 bytes per example."""
        self.memory.mkdir(exist_ok=True)
        packed = {
            name: np.packbits(each) if each.dtype == bool else np.minimum(each, _LARGEST).astype(np.float16)
            for name, each in facts.items()
        }
        with replacing(self.memory / f"step-{step:08d}.npz") as file:
            np.savez(file, epoch=epoch, **packed)  # type: ignore[arg-type]

    def _memories(self) -> list[Path]:
        return sorted(path for path in self.memory.glob("step-*.npz") if re.fullmatch(r"step-\d{8}", path.stem))

    def remembers(self) -> bool:
        """Return True if there is an example history."""
        return self._training.exists() and bool(self._memories())

    def read_memory(self) -> Memory:
        """The history of the training examples. Raises `UserError` if none was recorded."""
        paths, training = self._memories(), self.training()
        if not paths or training is None:
            raise UserError(
                f"{self.path} has no history of its training examples: train it with a recipe that has "
                "example_history=ExampleHistory(..)"
            )
        y = training["y"]
        records = [_read_record(path, len(y)) for path in paths]
        facts = {name: np.stack([record[name] for record in records]) for name in _FACTS}
        return Memory(y, training["true"], np.array([float(record["epoch"]) for record in records]), **facts)

    @_writes
    def write_flags(self, which: str, evaluated: EvaluationResult) -> None:
        """Write the per-example results of the weights `best` or `last`."""
        write_evaluated(self.flags(which), evaluated)

    def write_shard(self, which: str, evaluated: EvaluationResult) -> None:
        """Write the results of some weights on one part of the examples."""
        with replacing(self.flags(sharded(which, evaluated.shard)), shared=True) as file:
            np.savez_compressed(file, **evaluated.arrays(pictures=True))  # type: ignore[arg-type]

    def read_shards(self, which: str, of: int | None = None) -> list[EvaluationResult]:
        """Read all results of some weights on parts of the examples, or those on `of` parts."""
        return [read_evaluated(path) for path in self.shards(which, of)]

    def forget_shards(self, which: str) -> None:
        """Delete the results of some weights on parts of the examples."""
        delete(self.shards(which))

    def read_flags(self, which: str) -> EvaluationResult:
        """Read the per-example results of the weights `best` or `last`."""
        return read_evaluated(self.flags(which))

    def evaluated(self) -> bool:
        """Return True if the best and the last weights were evaluated."""
        return self._evaluation.exists() and all(self.flags(which).exists() for which in ("best", "last"))

    def has_evaluation(self) -> bool:
        """Return True if there is an evaluation."""
        return self._evaluation.exists()

    def evaluated_images(self) -> int:
        """Number of images of the evaluation in the folder; 0 if there is no evaluation."""
        if not self._evaluation.exists():
            return 0
        with reading(self._evaluation, remedy := "delete it, or --overwrite it"):
            tables = read_json(self._evaluation, remedy).values()
            clean = [table["clean"] for table in tables if isinstance(table, dict) and "clean" in table]
            conform(clean, list[Counted], "its clean accuracies")
            return max((each["examples"] for each in clean), default=0)

    @_writes
    def write_evaluation(self, table: Mapping[str, Any]) -> None:
        """Write the accuracies of the evaluations."""
        write_json(self._evaluation, table)

    def evaluation(self) -> dict[str, Any]:
        """The accuracies of the evaluations."""
        return read_json(self._evaluation)

    @_writes
    def write_audit(self, audit: Mapping[str, Any]) -> None:
        """Write the findings of an audit, as `sparring audit --json` prints them."""
        write_json(self._audit, audit)

    def audit(self) -> dict[str, Any] | None:
        """The findings of the last audit; None if there was none."""
        return read_json(self._audit, "audit again", Audited) if self._audit.exists() else None


_LARGEST = 65504.0  # the largest number in half precision
_FACTS = {"clean_loss": "f", "adversarial_loss": "f", "clean_right": "b", "adversarial_right": "b"}


def _row(line: bytes) -> dict[str, Any] | None:
    """A row of metrics; None for a line that is damaged."""
    try:
        row: dict[str, Any] = parse_json(line)
        conform(row, Row, "it")
    except (ValueError, RecursionError):
        return None
    return row


def _read_record(path: Path, count: int) -> dict[str, Array]:
    """The example history at one epoch, unpacked."""
    with reading(path, "train again"):
        record = read_arrays(path, "train again", "epoch", *_FACTS)
        for name, kind in _FACTS.items():
            unpacked = np.unpackbits(record[name], count=count).astype(bool) if kind == "b" else record[name]
            record[name] = unpacked if kind == "b" else unpacked.astype(np.float32)
        check_arrays(record, count, _FACTS)
        return record


def sharded(which: str, shard: Shard | None) -> str:
    """Return the name of results on a part of the examples; without a part, the name of the weights."""
    return which if shard is None else f"{which}-shard-{shard.number}-of-{shard.of}"


def write_evaluated(path: Path, evaluated: EvaluationResult) -> None:
    """Write a result as one .npz file, with arrays named like `robust/autoattack` or `margin/clean`."""
    with replacing(path) as file:
        np.savez_compressed(file, **evaluated.arrays())  # type: ignore[arg-type]


_WHOLE = {"label": "i", "index": "i", "image_hash": "int64"}
_EVALUATED = {
    **_WHOLE,
    "distance": "f",
    "robust": "b",
    "margin": "f",
    "norm": "f",
    "calibration": "f",
    "corrupted": "b",
    "predicted": "i",
}


def read_evaluated(path: Path) -> EvaluationResult:
    """Read a file of `write_evaluated`. Raises `UserError` if it is missing, damaged, or of another kind."""
    with reading(path, "evaluate again"):
        arrays = read_arrays(path, "evaluate again", "label", "classes", "notes", "robust/clean")
        count = len(arrays["label"])
        check_arrays(arrays, count, _EVALUATED)
        found = EvaluationResult.from_arrays(arrays)
        if not count or found.label.min() < 0 or found.label.max() >= len(found.classes):
            raise ValueError("its labels do not fit its classes")
        if any(len(images) != count for images in found.adversarial.values()):
            raise ValueError("it has fewer or more images than labels")
        for shown in (found.examples, found.hardest):
            if shown is not None and len({len(getattr(shown, each.name)) for each in fields(shown)}) > 1:
                raise ValueError("it has fewer or more images to be shown than facts about them")
        if found.gallery is not None:
            _check_gallery(found.gallery, found)
        return found


def _check_gallery(gallery: Gallery, found: EvaluationResult) -> None:
    """Raise `ValueError` for a gallery that does not belong to the result, or whose images are none."""
    arrays = {name: each for name, each in gallery.arrays().items() if name != "adversary"}
    shapes = {arrays[name].shape for name in ("clean", "adversarial")}
    if len({each.shape[:1] for each in arrays.values()}) > 1 or len(shapes) > 1 or arrays["clean"].ndim != 4:
        raise ValueError("the images of its gallery have other shapes than the facts about them")
    if any(each.dtype.kind != ("i" if name == "row" else "f") for name, each in arrays.items()):
        raise ValueError("the gallery holds numbers of another kind")
    row = gallery.row
    if gallery.adversary not in found.robust or ((row < 0) | (row >= len(found.label))).any():
        raise ValueError("its gallery is of other examples")
