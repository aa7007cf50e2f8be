"""Models that are analyzed, with their images: those of run folders, and any others."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..core.errors import UserError
from ..core.types import LabelledData, TensorData, Threat
from ..data import TrainingSet
from ..evaluation import threat_of
from ..objectives.example_bank import fingerprint
from ..records.run_folder import RunFolder
from ..runs.environment import device_of
from ..runs.load import load_model, recipe_of
from ..runs.recipe import Recipe


@dataclass(frozen=True, slots=True)
class AnalyzedModel:
    """A model on a device, its training set and its test images.

    Results are written to the folder `run`. `recipe` is None for a model that was not trained here: nothing is known of
    its training then.
    """

    run: RunFolder
    recipe: Recipe | None
    model: torch.nn.Module
    training: TrainingSet
    test: TensorData

    @property
    def seed(self) -> int:
        """Seed of the recipe, or 0."""
        return 0 if self.recipe is None else self.recipe.seed

    @classmethod
    def of(
        cls, model: torch.nn.Module, train: LabelledData, test: LabelledData, out: Path, examples: int, device: str
    ) -> "AnalyzedModel":
        """Make one of any model and its images, of which the first `examples` test images are used."""
        where = device_of(device)
        data = train.to(where)
        training = TrainingSet(data, torch.arange(len(data), device=where), data.y)
        return cls(RunFolder(out), None, model.to(where), training, test[:examples].to(where))

    def check_alike(self, other: "AnalyzedModel") -> None:
        """Raise `UserError` for runs with different training examples or labels, whose losses cannot be compared."""
        if not torch.equal(fingerprint(self.training.data), fingerprint(other.training.data)):
            raise UserError(
                "the two runs were trained on different examples or labels, so it cannot be measured whether the same "
                "examples are hard for both: analyze each run by itself"
            )


def open_run(path: Path, weights: str, examples: int, device: str) -> AnalyzedModel:
    """Load a run with the first `examples` test images and the training set as the run altered it.

    Raises `UserError` if the path is no run folder, or the run has no such weights yet.
    """
    if not path.is_dir():
        raise UserError(f"{path} is no run folder")
    where, recipe, run = device_of(device), recipe_of(path), RunFolder(path)
    if not run.weights(weights).exists():
        raise UserError(f"{path} has no {weights} weights yet: train it first")
    train, test = recipe.data.load()
    training, _ = recipe.split(train, path, where)
    if recipe.alterations:
        run.settle_training(training.arrays())
    return AnalyzedModel(
        run, recipe, load_model(run.weights(weights), recipe).to(where), training, test[:examples].to(where)
    )


def open_last(run: RunFolder, examples: int, device: str) -> tuple[AnalyzedModel, Threat]:
    """Load a run of a study with its last weights, and return it with the threat of its evaluation."""
    subject = open_run(run.path, "last", examples, device)
    assert subject.recipe is not None
    threat = threat_of(dict(subject.recipe.evaluation.adversaries))
    assert threat is not None
    return subject, threat
