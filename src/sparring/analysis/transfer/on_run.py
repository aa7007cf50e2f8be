"""The transfer analysis of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...core.errors import UserError
from ...core.types import TensorData
from ...core.writing import write_json
from ...data import Resized, source_of
from ...data.adapt import Fit
from ...evaluation import evaluate
from ...records.results import Array
from ...records.run_folder import RunFolder
from ..information.plot import plot_transfers
from ..runs import AnalyzedModel, open_last
from .measure import FineTuning, measure_transfer_learning, shots, task_distance, task_embedding

SHOTS = (100, 400, 1600)
TRANSFER, POOLED_TRANSFER = "transfer", "transfer-pooled"


@dataclass(frozen=True, slots=True)
class TransferAnalysis:
    """Accuracy on test images by task, `[seeds, shots]`, and the Task2Vec distance of each task from that of the run.

    `own` is the accuracy on the test images of the task that the run was trained for.
    """

    own: float
    shots: tuple[int, ...]
    accuracy: Mapping[str, Array]
    distance: Mapping[str, float]

    def plain(self) -> dict[str, Any]:
        return {
            "own task": self.own,
            "shots": list(self.shots),
            "accuracy by seed": {task: found.tolist() for task, found in self.accuracy.items()},
            "distance": dict(self.distance),
        }


def task_for(
    subject: AnalyzedModel, spec: str, resize: bool, images: int | None, fit: Fit = "stretch"
) -> tuple[TensorData, TensorData]:
    """Return training images and the first `images` test images of the data set `spec`, on the device of the model.

    Raises `UserError` for images of another size than those of the model, unless they may be resized, as `fit` says.
    """
    own, source = subject.training.data.shape, source_of(spec)
    train, test = source.load()
    if train.shape != own:
        if not resize:
            there, here = ("x".join(map(str, shape)) for shape in (train.shape, own))
            raise UserError(
                f"{spec} has images of {there}, and the run was trained on {here}: give --resize to stretch the images "
                "and change their channels"
            )
        train, test = Resized(source, *own, fit).load()
    where = subject.test.y.device
    return train[:].to(where), test[:images].to(where)


def analyze_transfer_learning(
    subject: AnalyzedModel,
    tasks: Sequence[str],
    *,
    resize: bool = False,
    fit: Fit = "stretch",
    counts: Sequence[int] = SHOTS,
    seeds: int = 3,
    images: int | None = 1000,
    how: FineTuning = FineTuning(),  # noqa: B008
    distance_examples: int = 200,
    seed: int = 0,
) -> TransferAnalysis:
    """Fit the network to each task with each number of its images, drawn anew for each seed, and test it.

    Distances use the network of the run, on `distance_examples` images of each task; 0 leaves them out. The same images
    are drawn for every run.
    """
    if seeds < 1 or not counts or not tasks:
        raise UserError(
            f"tasks = {tasks}, counts = {counts}, seeds = {seeds}: give at least one task, one number of images and "
            "one seed"
        )
    model = subject.model
    own = evaluate(model, subject.test, {}).table()["clean"].value
    accuracy, distance = {}, {}
    loaded = {task: task_for(subject, task, resize, images, fit) for task in tasks}
    home = _embedded(subject, subject.training.data[:], distance_examples, seed) if distance_examples else None
    for task, (train, test) in loaded.items():
        accuracy[task] = np.array(
            [
                [
                    measure_transfer_learning(model, shots(train, count, seed + i), test, how, seed + i).accuracy.value
                    for count in counts
                ]
                for i in range(seeds)
            ]
        )
        if home is not None:
            distance[task] = task_distance(home, _embedded(subject, train, distance_examples, seed))
    return TransferAnalysis(own, tuple(counts), accuracy, distance)


def _embedded(subject: AnalyzedModel, train: TensorData, many: int, seed: int) -> torch.Tensor:
    count = max(len(train.classes), min(many, len(train)))
    return task_embedding(subject.model, shots(train, count, seed))


def write_transfers(run: RunFolder, found: Sequence[tuple[str, TransferAnalysis]], how: Mapping[str, Any]) -> None:
    """Write `analysis-transfer.png` of all runs and, last, `.json` of the first."""
    plot_transfers([(name, each.accuracy, each.shots) for name, each in found], run.analysis(TRANSFER, "png"))
    _write(run, TRANSFER, found[0][1], how)


def _write(run: RunFolder, kind: str, found: TransferAnalysis, how: Mapping[str, Any]) -> None:
    write_json(run.analysis(kind, "json"), {**found.plain(), "how": dict(how)})


def study_transfer(run: RunFolder, device: str, how: Mapping[str, Any]) -> None:
    """Run the analysis of a study after each training: on the last weights, with the seed of the run and no picture."""
    _study(run, TRANSFER, FineTuning(how["mode"]), device, how)


def study_pooled_transfer(run: RunFolder, device: str, how: Mapping[str, Any]) -> None:
    """Run the same analysis with a head on pooled features."""
    _study(run, POOLED_TRANSFER, FineTuning(pooled=True), device, how)


def _study(run: RunFolder, kind: str, tuning: FineTuning, device: str, how: Mapping[str, Any]) -> None:
    subject, _ = open_last(run, how["images"], device)
    given: dict[str, Any] = {key: each for key, each in how.items() if key not in ("tasks", "mode")}
    seed = subject.seed * how["seeds"]
    _write(run, kind, analyze_transfer_learning(subject, how["tasks"], how=tuning, seed=seed, **given), how)
