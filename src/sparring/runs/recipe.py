"""The recipe: everything that decides a run, as one typed value."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import UserError, need_seed, need_whole
from ..core.foreign import is_foreign
from ..core.public_names import FORMAT, WRITTEN_BY
from ..core.schedules import EpsWarmUp, MultiStep, PiecewiseConstant, Ramp, WarmUp
from ..core.serialization import Build, check_types, from_plain, to_plain
from ..core.types import Attack, LabelledData, Objective, Schedule, TensorData, Update
from ..core.walk import walk
from ..data import (
    Alteration,
    Augment,
    CorruptedImages,
    ExtraData,
    ProgressiveResizing,
    Source,
    TargetAugment,
    TrainingSet,
    altered,
    hold_out,
)
from ..evaluation import Adversary, Cascade, check_adversary_name
from ..models import Normalize
from ..models.classifier import normalized
from ..records.results import Memory
from ..records.run_folder import RunFolder
from ..training.averaging import EMA, SWA
from ..training.checkpoint import started
from ..training.engine import Method
from ..training.example_history import ExampleHistory
from ..training.flatness import ASAM, RWP, SAM
from ..training.free import Free
from ..training.guard import Guard
from ..training.optimizers import LAMB, LARS, SGD, Adam, AdamW, RMSProp
from ..training.updates import AWP, OptimizerStep
from .given import GivenModel


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The attacks of an evaluation, and the test images that they are run on.

    Args:
        adversaries: The attacks by name.
        examples: Number of test images, taken from the beginning; None for all.
        batch_size: Number of images at a time; None for the default of `evaluate`.
        corruptions: Corrupted versions of the test images, on which the model is run without an attack; None for none.

    Raises:
        UserError: If a number is below 1, or a name is not allowed.
    """

    adversaries: Mapping[str, Adversary | Cascade]
    examples: int | None = None
    batch_size: int | None = None
    corruptions: CorruptedImages | None = None

    def __post_init__(self) -> None:
        if any(count is not None and count < 1 for count in (self.batch_size, self.examples)):
            raise UserError(
                f"an evaluation needs at least one example, in batches of at least 1: not {self.examples} in batches "
                f"of {self.batch_size}"
            )
        for name in self.adversaries:
            check_adversary_name(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a run; change it with `dataclasses.replace`, train it with `sparring.fit`.

    The best epoch is the one of the highest accuracy under `selection` on the held-out images; the test set selects
    nothing.

    Args:
        data: Source of the training and test images.
        model: Call that builds the model; or a model that was given as an object.
        method: The training method: the attack, the loss and the model modes.
        epochs: Number of epochs.
        lr: Learning rate.
        selection: Attack under which the best epoch is selected.
        evaluation: Attacks and test images of `sparring evaluate`.
        batch_size: Number of images in a batch.
        views_per_image: Number of views of each image in a batch, each augmented separately.
        augment: Augmentations of the training images, applied in order; `CutMix`, `InputMixup`, `RandomChoice` and
            `SmoothedLabels` change the targets, too.
        extra_data: A second source of training images, which has a fixed share of each batch, such as images of a
            generative model; None for none.
        init_from: Run whose best weights training starts from: a folder, or the name of one next to the folder of this
            run, where {seed} stands for the seed. If it has another kind of head, only the body is used. Empty to start
            from random weights.
        image_size: Sizes of the training images in the course of the epochs; None leaves them as they are.
        alterations: Changes of the training images or labels, applied to what is not held out.
        optimizer: The optimiser.
        update: The update of the weights in each step.
        averaging: Averaging of the weights; None for none.
        held_out: Share of the training set that selects the best epoch, but at most 10,000 images. With 0, all images
            are trained on and the last epoch counts as the best.
        drop_last: Use full batches only; otherwise the remaining images of an epoch are a smaller batch.
        normalize: Normalise by the statistics of the training set, if the function that builds the model takes them; or
            by a mean and a standard deviation for each channel, which any model gets.
        guard: Monitor of overfitting during training; None for none.
        example_history: Records the state of the model on each training example; None to record nothing.
        seed: Seed of all random numbers.

    Raises:
        UserError: If a field has a wrong type or value, or if fields do not fit together.
    """

    data: Source
    model: Build[nn.Module] | GivenModel
    method: Method | Free
    epochs: int
    lr: float | Schedule[float]
    selection: Attack
    evaluation: Evaluation
    batch_size: int = 128
    views_per_image: int = 1
    augment: tuple[Augment | TargetAugment, ...] = ()
    extra_data: ExtraData | None = None
    init_from: str = ""
    image_size: ProgressiveResizing | None = None
    alterations: tuple[Alteration, ...] = ()
    optimizer: SGD | Adam | AdamW | LARS | LAMB | RMSProp = field(default_factory=SGD)
    update: OptimizerStep | AWP | ASAM | RWP | SAM | Schedule[Update] = field(default_factory=OptimizerStep)
    averaging: EMA | SWA | None = None
    held_out: float = 0.02
    drop_last: bool = True
    normalize: bool | tuple[tuple[float, ...], tuple[float, ...]] = True
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
        bound = [each for each in walk(self.method) if isinstance(each, Objective) and not each.takes_any_attack]
        if self.guard is not None and self.guard.action == "rescue" and bound:
            raise UserError(
                f"{type(bound[0]).__name__} is made for its own attack, which a rescue would exchange: let the guard "
                "report or stop"
            )
        for each in walk(self.lr):
            rate = getattr(each, "peak", each)
            if isinstance(each, Schedule | int | float) and isinstance(rate, int | float) and not 0 <= rate < math.inf:
                raise UserError(f"lr = {rate:g} is no learning rate: it is a finite number from 0 on")
        for name in ("epochs", "batch_size", "views_per_image"):
            need_whole(name, getattr(self, name))
        self._check_epochs()
        if not 0 <= self.held_out < 1:
            raise UserError(
                f"held_out = {self.held_out:g} is not in [0, 1): a share of the images selects the best epoch, or with "
                "0 all train and the last epoch counts"
            )
        need_seed(self.seed)

    def _check_epochs(self) -> None:
        """Raise `UserError` if the training ends before a part of it takes effect."""
        for ramp in (each for each in walk(self.method) if isinstance(each, Ramp)):
            if ramp.start > self.epochs:
                raise UserError(
                    f"a weight begins to rise at epoch {ramp.start:g}, after the end of these {self.epochs}: it would "
                    "be 0 throughout. Let it begin earlier, or train longer"
                )
        for warm_up in (each for each in walk(self.method) if isinstance(each, EpsWarmUp)):
            if warm_up.epochs - warm_up.ahead > self.epochs:
                raise UserError(
                    f"eps rises for {warm_up.epochs:g} epochs, longer than the training of {self.epochs}: it would "
                    "never be reached. Let it rise faster, or train longer"
                )
        if isinstance(self.averaging, SWA) and self.averaging.start >= self.epochs:
            raise UserError(
                f"averaging starts after epoch {self.averaging.start}, and the training ends with epoch {self.epochs}: "
                "nothing would be averaged. Start earlier, or train longer"
            )

    def never(self) -> list[str]:
        """Return sentences about parts that the training ends before, as in a short trial."""
        begins: list[float] = []
        for part in walk((self.method, self.update, self.lr)):
            if isinstance(part, PiecewiseConstant):
                begins += [begin for begin, _ in part.phases]
            elif isinstance(part, MultiStep):
                begins += part.milestones
            elif isinstance(part, Objective):
                begins.append(part.begins)
        late = [f"what begins at epoch {each:g} never comes" for each in dict.fromkeys(begins) if each >= self.epochs]
        warming = (each.epochs for each in walk(self.lr) if isinstance(each, WarmUp))
        late += [f"the rate's warm-up of {each:g} epochs does not end" for each in warming if each > self.epochs]
        return [f"{each}: the training ends with epoch {self.epochs}" for each in late]

    def build_model(self, data: LabelledData) -> nn.Module:
        """Build the model for the classes and image shape of `data`, normalising by the statistics of `data` if at all.

        A function without a parameter `normalize` has its own normalisation: then no image of `data` is read.
        """
        given = self.normalize if isinstance(self.normalize, tuple) else None
        of_data: dict[str, Normalize | None] = {}
        if self.model.takes("normalize"):
            layer = Normalize.given(*given, data.shape[0]) if given else Normalize.of(data) if self.normalize else None
            of_data["normalize"] = layer
        model = self._called(num_classes=len(data.classes), shape=data.shape, **of_data)
        if not isinstance(model, nn.Module):
            raise UserError(f"{self.model!r:.60} gives a {type(model).__name__}: wanted is a torch.nn.Module")
        return normalized(model, *given, data.shape[0]) if self.wraps_model and given else model

    def _called(self, **given: object) -> nn.Module:
        """Call the function that makes the model; one of the user's own may raise anything, or train the model."""
        with torch.enable_grad():
            try:
                return self.model(**given)
            except UserError:
                raise
            except Exception as error:
                if not isinstance(self.model, Build) or not is_foreign(self.model.function):
                    raise
                reason = str(error).strip().partition("\n")[0]
                raise UserError(f"{self.model!r:.60} raised {type(error).__name__}: {reason}") from error

    @property
    def wraps_model(self) -> bool:
        """True if `build_model` puts a normalisation in front of the model."""
        return isinstance(self.normalize, tuple) and not self.model.takes("normalize")

    def initial_model(self, data: LabelledData, folder: Path) -> nn.Module:
        """Build the model before its first step, from the seed or from another run. Seeds torch's own generator."""
        torch.manual_seed(self.seed)
        model = self.build_model(data)
        return started(model, beside(self.init_from, folder, self.seed)) if self.init_from else model

    def unfilled(self) -> "Recipe":
        """Return the recipe without the weights that the model begins with, as those of a file will be loaded."""
        if not isinstance(self.model, Build):
            return replace(self, init_from="")
        options = {name: _UNFILLED.get(name, value) for name, value in self.model.options.items()}
        return replace(self, model=Build(self.model.function, **options), init_from="")

    def split(self, train: LabelledData, folder: Path, device: torch.device) -> tuple[TrainingSet, TensorData | None]:
        """Return the training data of a run in `folder` and the held-out images, if any, on the device."""
        rest, held = hold_out(train, self.held_out) if self.held_out else (train, None)
        training = altered(rest.to(device), self.alterations, self.seed, lambda name: self._history(name, folder))
        return training, None if held is None else held.to(device)

    def _history(self, name: str, folder: Path) -> Memory:
        path = Path(beside(name, folder, self.seed))
        if not path.is_dir():
            raise UserError(f"there is no run {str(path)!r} to choose examples by, neither here nor next to this run")
        return RunFolder(path).read_memory()

    @property
    def selected(self) -> str:
        """Description of how the best epoch is selected."""
        return f"best on {self.held_out:g} of the training images" if self.held_out else "last epoch, nothing held out"

    def plain(self) -> dict[str, Any]:
        return {"format": FORMAT, **to_plain(self)}


def beside(name: str, folder: Path, seed: int) -> str:
    """Finds the folder of another run by its name.

    Args:
        name: A path, or the name of a folder next to `folder`; {seed} in it is replaced by the seed.
        folder: The folder of this run.
        seed: The seed of this run.

    Returns:
        The folder of that name next to `folder` if there is one, or else `name` as a path.
    """
    name = name.replace("{seed}", str(seed))
    near = folder.parent / name
    return str(near) if Path(name).name == name and near.is_dir() else name


_UNFILLED: Mapping[str, Any] = {"pretrained": False, "texts": ""}
"""Options of functions that build a model which say what it begins with, by which it begins with nothing."""


_AS_FIELD = "give a value of that type, as the recipes of sparring.recipes.small do"


def recipe_from_plain(plain: Mapping[str, Any]) -> Recipe:
    """Makes a recipe from the plain data of a run folder or of a file of weights.

    Args:
        plain: The plain data, as `Recipe.plain` writes it.

    Returns:
        The recipe.

    Raises:
        UserError: If it is not a recipe of this package, or of another format.
    """
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
