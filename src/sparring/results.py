"""The run folder: what is written, typed. Needs no torch, so that reports and tools read it fast."""

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from .errors import UserError
from .scores import Array, Evaluated, Memory


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
        self._profiles = (self.path / "profile.json", self.path / "profile.txt")
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

    def state(self, which: str) -> Path:
        """Where an evaluation under way keeps what it has found."""
        return self.path / f"evaluation-{which}.state"

    def forget_state(self, which: str) -> None:
        shutil.rmtree(self.state(which), ignore_errors=True)

    # -- the life of a run

    def begin(self, recipe: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self._recipe, recipe)

    def recipe(self) -> dict[str, Any] | None:
        return read_json(self._recipe) if self._recipe.exists() else None

    def finished(self) -> bool:
        return self._status.exists() and bool(read_json(self._status).get("finished"))

    def status(self) -> dict[str, Any]:
        return read_json(self._status)

    def set_status(self, status: Mapping[str, Any]) -> None:
        write_json(self._status, status)

    def search(self) -> dict[str, Any] | None:
        """The precision of the attacks and whether they are compiled, as the run was begun."""
        return read_json(self._search) if self._search.exists() else None

    def set_search(self, search: Mapping[str, Any]) -> None:
        write_json(self._search, search)

    def guard(self) -> list[dict[str, Any]]:
        """What the guard saw and did: `step`, `action` and `what` of each event."""
        return list(read_json(self._guard)["events"]) if self._guard.exists() else []

    def set_guard(self, events: Sequence[Mapping[str, Any]]) -> None:
        write_json(self._guard, {"events": [dict(event) for event in events]})

    def foreign(self) -> bool:
        """There are files here, but not those of a run, whose recipe says that it is one of ours."""
        if not self.path.is_dir():
            return self.path.exists()
        if self._recipe.exists():
            return read_json(self._recipe).get("$") != "recipe:Recipe"
        return any(not _passing(p) for p in self.path.iterdir())

    def clear(self) -> None:
        """Removes what a run writes, and nothing else."""
        folders = (self.checkpoints, self.tensorboard, self.memory, self.state("best"), self.state("last"))
        for folder in folders:
            if folder.exists():
                shutil.rmtree(folder)
        both = [path for which in ("best", "last") for path in (self.weights(which), self.flags(which))]
        files = [self._environment, self._status, self._metrics, self._evaluation, self._search, self._guard]
        files += [*self._profiles, *both, self._training]
        files += [path for path in self.path.glob("analysis-*") if path.suffix in (".json", ".npz", ".png")]
        passing = [path for path in self.path.glob(".*") if ".writing" in path.name]
        # the recipe last: without it, no run is here
        pictures = (self.learning_curve, self.adversarial_examples, self.hardest_examples, self.robustness_curve)
        for path in (*files, *pictures, *passing, self._recipe):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process out; the lock ends with the process, however that ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(f"{self.path} cannot be a run folder: {error.strerror}") from error
        with lock as file:
            if not _lock(file):
                raise UserError(f"{self.path} is in use: another process trains there")
            yield

    # -- what is recorded

    def add_session(self, session: Mapping[str, Any]) -> None:
        """One entry for each start or resumption: versions, commit, device, threads, seed."""
        sessions = read_json(self._environment)["sessions"] if self._environment.exists() else []
        write_json(self._environment, {"sessions": [*sessions, dict(session)]})

    def sessions(self) -> list[dict[str, Any]]:
        """The starts and resumptions of the run."""
        return list(read_json(self._environment)["sessions"])

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        with self._metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint must not outlive the metrics before it

    def metrics(self) -> list[dict[str, Any]]:
        """One row per logged step and one per epoch. A line cut short by a crash is left out."""
        rows = []
        for line in self._metrics.read_text().splitlines() if self._metrics.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    def rewind(self, step: int) -> None:
        """Forgets what was logged and remembered after `step`: it will be trained again."""
        kept = [json.dumps(row) + "\n" for row in self.metrics() if row["step"] <= step]
        write_bytes(self._metrics, "".join(kept).encode())
        for path in self.memory.glob("step-*.npz"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()

    def settle_training(self, arrays: Mapping[str, Array]) -> None:
        """Which images were trained on (`rows`), with which labels (`y`), and which are `true`.

        Raises `UserError` if the run was begun on others.
        """
        if self._training.exists():
            begun = _read_arrays(self._training, "training set", "start a new run in another folder")
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
        return _read_arrays(self._training, "training set", "train again") if self._training.exists() else None

    def add_memory(self, step: int, epoch: float, facts: Mapping[str, Array]) -> None:
        """Losses and correctness of all training examples after `step`, in some 4 bytes an example."""
        self.memory.mkdir(exist_ok=True)
        packed = {
            name: np.packbits(each) if each.dtype == bool else np.minimum(each, _LARGEST).astype(np.float16)
            for name, each in facts.items()
        }
        with replacing(self.memory / f"step-{step:08d}.npz") as file:
            np.savez(file, epoch=epoch, **packed)  # type: ignore[arg-type]

    def remembers(self) -> bool:
        return self._training.exists() and any(self.memory.glob("step-*.npz"))

    def read_memory(self) -> Memory:
        """What was remembered of the training examples. Raises `UserError` if nothing was."""
        paths, training = sorted(self.memory.glob("step-*.npz")), self.training()
        if not self.remembers() or training is None:
            raise UserError(
                f"{self.path} remembers no training examples: train it with a recipe that has remember=Remember(..)"
            )
        looks = [_read_arrays(path, "memory", "train again") for path in paths]
        y = training["y"]
        facts = {
            name: np.stack(
                [
                    look[name].astype(np.float32)
                    if look[name].dtype == np.float16
                    else np.unpackbits(look[name], count=len(y)).astype(bool)
                    for look in looks
                ]
            )
            for name in looks[0]
            if name != "epoch"
        }
        return Memory(y, training["true"], np.array([float(look["epoch"]) for look in looks]), **facts)

    def write_flags(self, which: str, evaluated: Evaluated) -> None:
        write_evaluated(self.flags(which), evaluated)

    def read_flags(self, which: str) -> Evaluated:
        return read_evaluated(self.flags(which))

    def evaluated(self) -> bool:
        """Whether its best and its last weights were evaluated."""
        return self._evaluation.exists() and all(self.flags(which).exists() for which in ("best", "last"))

    def write_evaluation(self, table: Mapping[str, Any]) -> None:
        write_json(self._evaluation, table)

    def evaluation(self) -> dict[str, Any]:
        return read_json(self._evaluation)


_LARGEST = 65504.0  # of half precision


def _read_arrays(path: Path, what: str, remedy: str) -> dict[str, Array]:
    try:
        with path.open("rb") as file, np.load(file) as held:
            return {name: held[name] for name in held.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} holds no {what} that can be read ({error}): {remedy}") from error


def write_evaluated(path: Path, evaluated: Evaluated) -> None:
    """One .npz: an array for each fact, named like `standing/autoattack` or `margin/clean`."""
    with replacing(path) as file:
        np.savez_compressed(file, **evaluated.arrays())  # type: ignore[arg-type]


def read_evaluated(path: Path) -> Evaluated:
    """What `write_evaluated` wrote. Raises `UserError` for a file that is missing, or damaged, or another."""
    arrays = _read_arrays(path, "evaluation", "evaluate again")
    try:
        return Evaluated.from_arrays(arrays)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} holds no evaluation that can be read ({error}): evaluate again") from error


def _passing(path: Path) -> bool:
    """A lock, or a file that was being written when the process was killed."""
    return path.name == ".lock" or (path.name.startswith(".") and ".writing" in path.name)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}")
        return value
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or start a new run in another folder") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Atomic: after a crash the file holds the old content or the new, never a part."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A rename lasts only once its folder is on the disk."""
    with contextlib.suppress(OSError):  # some systems cannot open folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _lock(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
