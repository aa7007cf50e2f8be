"""The run folder: what is written, typed. Needs no torch, so that reports and tools read it fast."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.reading import REMEDY, Array, check_arrays, conform, open_file, parse_json, read_arrays, read_json, reading
from ..core.writing import replacing, write_bytes, write_json
from .clearing import RUN, STATE, deletable, delete, settled
from .locking import locked
from .results import EvaluationResult, Memory
from .schemas import Begun, Counted, Events, Row, Sessions, Status


class RunFolder:
    """The files of a run. What a run needs is written under another name, flushed and renamed."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
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
        self._training = self.path / "training.npz"
        self.learning_curve = self.path / "learning-curve.png"
        self.adversarial_examples = self.path / "adversarial-examples.png"
        self.hardest_examples = self.path / "hardest-examples.png"
        self.robustness_curve = self.path / "robustness-curve.png"

    def weights(self, which: str) -> Path:
        """`which` is `best` or `last`."""
        return self.path / f"{which}.safetensors"

    def flags(self, which: str) -> Path:
        """Per-example results of `best` or `last`."""
        return self.path / f"evaluation-{which}.npz"

    def analysis(self, name: str, ending: str) -> Path:
        """What an analysis found: `json` its figures, `npz` those of each image, `png` the picture."""
        return self.path / f"analysis-{name}.{ending}"

    def read_analysis(self, name: str) -> dict[str, Any]:
        """The figures of an analysis."""
        return read_json(self.analysis(name, "json"), "delete it, and analyse again")

    def read_images(self, name: str, *needed: str) -> dict[str, Array]:
        """What an analysis found of each image."""
        return read_arrays(self.analysis(name, "npz"), "delete it, and analyse again", *needed)

    def state(self, which: str) -> Path:
        """Where an evaluation under way keeps what it has found."""
        return self.path / f"evaluation-{which}.state"

    def forget_state(self, which: str) -> None:
        folder = self.state(which)
        delete([*deletable(folder, STATE), folder])

    # -- the life of a run

    def begin(self, recipe: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self._recipe, recipe)

    def recipe(self) -> dict[str, Any] | None:
        return read_json(self._recipe) if self._recipe.exists() else None

    def finished(self) -> bool:
        return self._status.exists() and bool(self.status()["finished"])

    def status(self) -> dict[str, Any]:
        return read_json(self._status, hint=Status)

    def set_status(self, status: Mapping[str, Any]) -> None:
        write_json(self._status, status)

    def backend(self) -> dict[str, Any] | None:
        """The precision of the attacks and whether they are compiled, as the run was begun."""
        return read_json(self._search, hint=Begun) if self._search.exists() else None

    def set_backend(self, backend: Mapping[str, Any]) -> None:
        write_json(self._search, backend)

    def guard(self) -> list[dict[str, Any]]:
        """What the guard saw and did: `step`, `action` and `what` of each event."""
        return list(read_json(self._guard, hint=Events)["events"]) if self._guard.exists() else []

    def set_guard(self, events: Sequence[Mapping[str, Any]]) -> None:
        write_json(self._guard, {"events": [dict(event) for event in events]})

    def foreign(self) -> bool:
        """There are files here, but not those of a run, whose recipe says that it is one of ours."""
        if not self.path.is_dir():
            return self.path.exists()
        if self._recipe.exists():
            return read_json(self._recipe).get("$") not in ("Recipe", "recipe:Recipe")
        return any(path.name != ".lock" and settled(path.name) == path.name for path in self.path.iterdir())

    def clearable(self) -> list[Path]:
        """What `clear` removes. Raises `UserError` if something else has a name of it."""
        return deletable(self.path, RUN)

    def clear(self) -> None:
        """Removes what a run writes, and nothing else."""
        delete(self.clearable())

    def locked(self) -> AbstractContextManager[None]:
        """Keeps a second process out, whatever either of them writes here."""
        return locked(self.path)

    # -- what is recorded

    def add_session(self, session: Mapping[str, Any]) -> None:
        """One entry for each start or resumption: versions, commit, device, threads, seed."""
        before = self.sessions() if self._environment.exists() else []
        write_json(self._environment, {"sessions": [*before, dict(session)]})

    def sessions(self) -> list[dict[str, Any]]:
        """The starts and resumptions of the run."""
        return list(read_json(self._environment, hint=Sessions)["sessions"])

    def add_metrics(self, row: Mapping[str, Any]) -> None:
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

    def rewind(self, step: int) -> None:
        """Forgets what was logged and remembered after `step`: it will be trained again."""
        kept = [json.dumps(row) + "\n" for row in self.metrics() if row["step"] <= step]
        write_bytes(self._metrics, "".join(kept).encode())
        for path in self._memories():
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()

    def settle_training(self, arrays: Mapping[str, Array]) -> None:
        """Which images were trained on (`rows`), with which labels (`y`), and which are `true`.

        Raises `UserError` if the run was begun on others.
        """
        if self._training.exists():
            begun = read_arrays(self._training, "start a new run in another folder")
            if not all(name in begun and np.array_equal(begun[name], each) for name, each in arrays.items()):
                raise UserError(
                    f"{self.path} was begun on other training examples or labels ({self._training}), than its recipe "
                    "gives now: restore the data, or the runs that it chooses by; or start a new run in another folder"
                )
            return
        with replacing(self._training) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def training(self) -> dict[str, Array] | None:
        """The same arrays; none if nothing was changed and nothing remembered."""
        if not self._training.exists():
            return None
        with reading(self._training, "train again"):
            arrays = read_arrays(self._training, "train again", "rows", "y", "true")
            check_arrays(arrays, len(arrays["y"]), {"rows": "i", "y": "i", "true": "i"})
            return arrays

    def add_memory(self, step: int, epoch: float, facts: Mapping[str, Array]) -> None:
        """Losses and correctness of all training examples after `step`, in some 4 bytes an example."""
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
        return self._training.exists() and bool(self._memories())

    def read_memory(self) -> Memory:
        """What was remembered of the training examples. Raises `UserError` if nothing was."""
        paths, training = self._memories(), self.training()
        if not paths or training is None:
            raise UserError(
                f"{self.path} has no history of its training examples: train it with a recipe that has "
                "example_history=ExampleHistory(..)"
            )
        y = training["y"]
        looks = [_look(path, len(y)) for path in paths]
        facts = {name: np.stack([look[name] for look in looks]) for name in _FACTS}
        return Memory(y, training["true"], np.array([float(look["epoch"]) for look in looks]), **facts)

    def write_flags(self, which: str, evaluated: EvaluationResult) -> None:
        write_evaluated(self.flags(which), evaluated)

    def read_flags(self, which: str) -> EvaluationResult:
        return read_evaluated(self.flags(which))

    def evaluated(self) -> bool:
        """Whether its best and its last weights were evaluated."""
        return self._evaluation.exists() and all(self.flags(which).exists() for which in ("best", "last"))

    def evaluated_images(self) -> int:
        """On how many images the evaluation is that the folder holds; 0 if it holds none."""
        if not self._evaluation.exists():
            return 0
        with reading(self._evaluation, remedy := "delete it, or --overwrite it"):
            tables = read_json(self._evaluation, remedy).values()
            clean = [table["clean"] for table in tables if isinstance(table, dict) and "clean" in table]
            conform(clean, list[Counted], "its clean accuracies")
            return max((each["examples"] for each in clean), default=0)

    def write_evaluation(self, table: Mapping[str, Any]) -> None:
        write_json(self._evaluation, table)

    def evaluation(self) -> dict[str, Any]:
        return read_json(self._evaluation)


_LARGEST = 65504.0  # of half precision
_FACTS = {"clean_loss": "f", "adversarial_loss": "f", "clean_right": "b", "adversarial_right": "b"}


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = parse_json(line)
        conform(row, Row, "it")
    except (ValueError, RecursionError):
        return None
    return row


def _look(path: Path, count: int) -> dict[str, Array]:
    with reading(path, "train again"):
        look = read_arrays(path, "train again", "epoch", *_FACTS)
        for name, kind in _FACTS.items():
            unpacked = np.unpackbits(look[name], count=count).astype(bool) if kind == "b" else look[name]
            look[name] = unpacked if kind == "b" else unpacked.astype(np.float32)
        check_arrays(look, count, _FACTS)
        return look


def write_evaluated(path: Path, evaluated: EvaluationResult) -> None:
    """One .npz: an array for each fact, named like `robust/autoattack` or `margin/clean`."""
    with replacing(path) as file:
        np.savez_compressed(file, **evaluated.arrays())  # type: ignore[arg-type]


_EVALUATED = {"label": "i", "index": "i", "distance": "f", "robust": "b", "margin": "f", "norm": "f"}


def read_evaluated(path: Path) -> EvaluationResult:
    """What `write_evaluated` wrote. Raises `UserError` for a file that is missing, or damaged, or another."""
    with reading(path, "evaluate again"):
        arrays = read_arrays(path, "evaluate again", "label", "classes", "notes", "robust/clean")
        count = len(arrays["label"])
        check_arrays(arrays, count, _EVALUATED)
        found = EvaluationResult.from_arrays(arrays)
        if not count or found.label.min() < 0 or found.label.max() >= len(found.classes):
            raise ValueError("its labels are none of its classes")
        if any(len(images) != count for images in found.adversarial.values()):
            raise ValueError("it has not as many images as labels")
        return found
