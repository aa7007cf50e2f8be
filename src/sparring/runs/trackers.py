"""Experiment trackers: TensorBoard, Weights & Biases, MLflow and trackio show a run besides its own folder.

A tracker of one's own is any object with the methods of `Tracker`. Nothing that a run needs depends on a tracker: one
that fails is named in a warning, and the run goes on without it.
"""

import contextlib
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import UserError, nearest
from ..core.optional import first_line, library
from ..records.run_folder import RunFolder

PROJECT = "sparring"
"""Name of the project or experiment in which runs are shown."""


class Tracker(Protocol):
    """Shows a run elsewhere."""

    def begin(self, run: RunFolder, step: int) -> None:
        """Begin to show a run, or go on after `step`."""
        ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers of a step, by name."""
        ...

    def picture(self, path: Path) -> None:
        """Show a picture in a file."""
        ...

    def verdict(self, values: Mapping[str, float | str]) -> None:
        """Show what came out in the end, by name."""
        ...

    def end(self) -> None:
        """Finish."""
        ...


class TensorBoard:
    """Writes TensorBoard events to the folder `tensorboard` of the run."""

    def begin(self, run: RunFolder, step: int) -> None:
        found = library("torch.utils.tensorboard", "tensorboard", "this tracker")
        self._writer = found.SummaryWriter(str(run.tensorboard), purge_step=step + 1)
        if step == 0:
            self._writer.add_text("recipe", _as_text(run.recipe()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image(path.stem, np.asarray(image.convert("RGB")), dataformats="HWC")

    def verdict(self, values: Mapping[str, float | str]) -> None:
        self._writer.add_text("verdict", _as_text(dict(values)))

    def end(self) -> None:
        self._writer.close()


class WandB:
    """Shows a run in Weights & Biases, as the environment says: WANDB_MODE=offline needs no account."""

    def begin(self, run: RunFolder, step: int) -> None:
        self._library = library("wandb", "wandb", "this tracker")
        known = run.tracked().get("wandb") or uuid.uuid4().hex[:8]
        self._run = self._library.init(
            project=PROJECT, name=run.path.name, id=known, resume="allow", config=run.recipe() or {}
        )
        run.set_tracked("wandb", known)
        # wandb's own steps only rise: it drops what a run logs that went back to an earlier checkpoint
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def picture(self, path: Path) -> None:
        self._run.log({path.stem: self._library.Image(str(path))})

    def verdict(self, values: Mapping[str, float | str]) -> None:
        self._run.summary.update(dict(values))

    def end(self) -> None:
        self._run.finish()


class MLflow:
    """Shows a run in MLflow, where MLFLOW_TRACKING_URI says."""

    def begin(self, run: RunFolder, step: int) -> None:
        self._client = library("mlflow", "mlflow", "this tracker").MlflowClient()
        known = run.tracked().get("mlflow")
        if known is None:
            name = PROJECT
            found = self._client.get_experiment_by_name(name)
            experiment = self._client.create_experiment(name) if found is None else found.experiment_id
            known = self._client.create_run(experiment, run_name=run.path.name).info.run_id
            for key, value in _flat(run.recipe() or {}):
                self._client.log_param(known, key, str(value)[:500])
            run.set_tracked("mlflow", known)
        else:
            self._client.update_run(known, status="RUNNING")
        self._id = known

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def picture(self, path: Path) -> None:
        self._client.log_artifact(self._id, str(path))

    def verdict(self, values: Mapping[str, float | str]) -> None:
        for name, value in values.items():
            self._client.set_tag(self._id, name, value)

    def end(self) -> None:
        self._client.set_terminated(self._id)


class Trackio:
    """Shows a run in trackio."""

    def begin(self, run: RunFolder, step: int) -> None:
        self._library = library("trackio", "trackio", "this tracker")
        known = run.tracked().get("trackio")
        name = known or f"{run.path.name}-{uuid.uuid4().hex[:6]}"
        resume = "never" if known is None else "allow"
        self._run = self._library.init(project=PROJECT, name=name, config=run.recipe() or {}, resume=resume)
        run.set_tracked("trackio", name)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, path: Path) -> None:
        self._run.log({path.stem: self._library.Image(str(path))})

    def verdict(self, values: Mapping[str, float | str]) -> None:
        self._run.log(dict(values))

    def end(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[], Tracker]] = {
    "mlflow": MLflow,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WandB,
}
"""The trackers by their names on the command line."""

Track = str | Tracker | Sequence[str | Tracker]


@contextlib.contextmanager
def tracked(track: Track, run: RunFolder, step: int) -> Iterator["Together"]:
    """Begin the trackers that are named, and end them. Raises `UserError` for one that cannot begin."""
    given = [track] if isinstance(track, str) or not isinstance(track, Sequence) else track
    found = [_named(each) if isinstance(each, str) else each for each in given]
    begun: list[Tracker] = []
    together = Together(begun)
    try:
        for tracker in found:
            try:
                tracker.begin(run, step)
            except UserError:
                raise
            except Exception as error:  # of the tracker's library, or of the network
                raise UserError(
                    f"{type(tracker).__name__} cannot begin ({first_line(error)}): leave it out, or "
                    "set it up as its own documentation says"
                ) from error
            begun.append(tracker)
        yield together
    finally:
        together.end()


class Together:
    """Several trackers as one; one that fails is left out from then on."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers of a step."""
        self._each(lambda tracker: tracker.log(values, step))

    def picture(self, path: Path) -> None:
        """Show a picture, if it was drawn."""
        if path.exists():
            self._each(lambda tracker: tracker.picture(path))

    def verdict(self, values: Mapping[str, float | str]) -> None:
        """Show what came out."""
        self._each(lambda tracker: tracker.verdict(values))

    def end(self) -> None:
        """End all of them."""
        self._each(lambda tracker: tracker.end())

    def _each(self, use: Callable[[Tracker], None]) -> None:
        for tracker in tuple(self._trackers):
            try:
                use(tracker)
            except Exception as error:  # of the tracker's library, or of the network
                self._trackers.remove(tracker)
                warnings.warn(
                    f"{type(tracker).__name__} failed ({first_line(error)}): the run goes on without it",
                    stacklevel=3,
                )


def _named(name: str) -> Tracker:
    if name not in TRACKERS:
        raise UserError(f"no tracker {name!r}: {nearest(name, TRACKERS)}")
    return TRACKERS[name]()


def _as_text(values: Mapping[str, Any] | None) -> str:
    import yaml

    text = yaml.safe_dump(dict(values or {}), sort_keys=False, allow_unicode=True)
    return "\n".join(f"    {line}" for line in text.splitlines())  # a block of code in Markdown


def _flat(plain: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the numbers and words of a recipe with their paths, as the flags of the command name them."""
    if isinstance(plain, Mapping):
        for key, value in plain.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    elif isinstance(plain, list | tuple):
        for i, value in enumerate(plain):
            yield from _flat(value, f"{name}.{i}")
    elif plain is not None:
        yield name.replace("$", "is"), plain
