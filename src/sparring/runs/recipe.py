"""A recipe: everything that decides a run, as one typed value."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import UserError, need_seed, need_whole
from ..core.names import FORMAT, WRITTEN_BY
from ..core.schedules import Ramp
from ..core.serialization import Build, check_types, from_plain, to_plain
from ..core.types import Attack, LabelledData, Schedule, TensorData, Update
from ..core.walk import walk
from ..data import Alteration, Augment, Source, Training, altered, hold_out
from ..evaluation import Adversary, Cascade, check_name
from ..models import Normalize
from ..records.results import Memory
from ..records.run_folder import RunFolder
from ..training.averaging import EMA, SWA
from ..training.checkpoint import started
from ..training.engine import Method
from ..training.example_history import ExampleHistory
from ..training.free import Free
from ..training.guard import Guard
from ..training.optimizers import SGD, Adam, AdamW
from ..training.updates import AWP, GradientStep


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `sparring evaluate` does: each adversary on the first `examples` test images (all, if left out)."""

    adversaries: Mapping[str, Adversary | Cascade]
    examples: int | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.examples is not None and self.examples < 1):
            raise UserError(f"an evaluation needs at least one example, not {self.examples} by {self.batch_size}")
        for name in self.adversaries:
            check_name(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a run. Vary it with `dataclasses.replace`; train it with `sparring.fit`.

    "best" is the epoch of the highest accuracy under `selection` on the share `held_out` of the training set; the test
    set selects nothing. With `held_out` 0 all images train, and the last epoch counts as the best. Batches are full
    unless `drop_last` is off; models normalise by the training set unless `normalize` is off. What is trained on is the
    rest, altered by `alterations`; what the model is like on its examples is recorded if there is an `example_history`.
    Training begins with the best weights of the run `init_from`, a folder or the name of one beside the own, with
    {seed} in it if need be; of another kind of head, the body alone is taken.
    """

    data: Source
    model: Build[nn.Module]
    method: Method | Free
    epochs: int
    lr: float | Schedule[float]
    selection: Attack
    evaluation: Evaluation
    batch_size: int = 128
    views: int = 1
    augment: tuple[Augment, ...] = ()
    init_from: str = ""
    alterations: tuple[Alteration, ...] = ()
    optimizer: SGD | Adam | AdamW = field(default_factory=SGD)
    update: GradientStep | AWP | Schedule[Update] = field(default_factory=GradientStep)
    averaging: EMA | SWA | None = None
    held_out: float = 0.02
    drop_last: bool = True
    normalize: bool = True
    guard: Guard | None = None
    example_history: ExampleHistory | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(Recipe, {each.name: getattr(self, each.name) for each in fields(self)}, "Recipe", _AS_FIELD)
        if self.guard is not None and self.guard.action == "rescue" and not isinstance(self.method, Method):
            raise UserError(
                f"{type(self.method).__name__} has no attack that a rescue could take the place of: let the guard "
                "report or stop"
            )
        for name in ("epochs", "batch_size", "views"):
            need_whole(name, getattr(self, name))
        for ramp in (each for each in walk(self.method) if isinstance(each, Ramp)):
            if ramp.start > self.epochs:
                raise UserError(
                    f"a weight begins to rise at epoch {ramp.start:g}, after the end of these {self.epochs}: it would "
                    "be 0 throughout. Let it begin earlier, or train longer"
                )
        if not 0 <= self.held_out < 1:
            raise UserError(
                f"held_out = {self.held_out:g} is not in [0, 1): a share of the images selects the best epoch, or with "
                "0 all train and the last epoch counts"
            )
        need_seed(self.seed)

    def build_model(self, data: LabelledData) -> nn.Module:
        """The model for the classes and the shape of `data`, normalising by the statistics of `data` if at all.

        A function that takes no `normalize` has a normalisation of its own: then no image of `data` is read.
        """
        takes = self.model.takes("normalize")
        of_data = {"normalize": Normalize.of(data) if self.normalize else None} if takes else {}
        return self.model(num_classes=len(data.classes), shape=data.shape, **of_data)

    def initial_model(self, data: LabelledData, folder: Path) -> nn.Module:
        """The same before its first step in `folder`, from the seed or another run. Torch's own generator is set."""
        torch.manual_seed(self.seed)
        model = self.build_model(data)
        return started(model, beside(self.init_from, folder, self.seed)) if self.init_from else model

    def split(self, train: LabelledData, folder: Path, device: torch.device) -> tuple[Training, TensorData | None]:
        """What is trained on in `folder`, and what is held out, if anything is, on the device."""
        rest, held = hold_out(train, self.held_out) if self.held_out else (train, None)
        training = altered(rest.to(device), self.alterations, self.seed, lambda name: self._history(name, folder))
        return training, None if held is None else held.to(device)

    def _history(self, name: str, folder: Path) -> Memory:
        path = Path(beside(name, folder, self.seed))
        if not path.is_dir():
            raise UserError(f"there is no run {str(path)!r} to choose examples by, neither here nor beside this run")
        return RunFolder(path).read_memory()

    @property
    def selected(self) -> str:
        """By what the best epoch is chosen, in words."""
        return f"best on {self.held_out:g} of the training images" if self.held_out else "last epoch, nothing held out"

    def plain(self) -> dict[str, Any]:
        return {"format": FORMAT, **to_plain(self)}


def beside(name: str, folder: Path, seed: int) -> str:
    """The folder of another run: a mere name is one beside `folder`, if there is; {seed} in it is filled in."""
    name = name.replace("{seed}", str(seed))
    near = folder.parent / name
    return str(near) if Path(name).name == name and near.is_dir() else name


_AS_FIELD = "give a value of that type, as the recipes of sparring.recipes.small do"


def recipe_from_plain(plain: Mapping[str, Any]) -> Recipe:
    """The recipe of a run folder or of a weights file. Raises `UserError` if it is not ours, or of another format."""
    values = dict(plain)
    number = values.pop("format", 1 if str(values.get("$", "")).endswith(":Recipe") else FORMAT)
    if number != FORMAT:
        by = (
            f"sparring {WRITTEN_BY[number]} wrote and reads it" if number in WRITTEN_BY else "a later sparring reads it"
        )
        raise UserError(f"this recipe is of format {number}, and this version reads format {FORMAT}: {by}")
    value = from_plain(values)
    if not isinstance(value, Recipe):
        raise UserError(f"this is a {type(value).__name__}, not a recipe")
    return value
