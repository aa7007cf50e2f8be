"""The start of a run: its data and its state before the first step, checked."""

from dataclasses import is_dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..acceleration import prefer_channels_last
from ..core import ranks
from ..core.errors import UserError
from ..core.modes import eval_mode
from ..core.serialization import Build, check_types, stored
from ..core.teachers import ORIGINAL, TeacherMemory
from ..core.types import LabelledData, TensorData, pixels, refreshable
from ..core.validation import check_data, check_logits
from ..core.walk import walk
from ..data import TrainingSet
from ..data.extra import ExtraImages
from ..models.robustbench_zoo import PREFIX
from ..records.run_folder import RunFolder
from ..training.checkpoint import Checkpoints
from ..training.engine import State
from .external_models import LIBRARIES, load
from .recipe import Recipe, beside


def check_annotations(recipe: Recipe) -> None:
    """Raise `UserError` for a value of a user's own class that could not be read again when the run is loaded."""
    for value in walk(recipe):
        if is_dataclass(value) and not isinstance(value, type | Build):
            remedy = "the run could not be loaded; annotate the field so that it allows this value"
            check_types(type(value), stored(value), type(value).__name__, remedy)


def load_data(
    recipe: Recipe, folder: Path, device: torch.device
) -> tuple[TrainingSet, TensorData | None, ExtraImages | None]:
    """Return the training data, the held-out images and the extra training images, if any, on the device.

    The test images are checked, but not used.
    """
    train, test = recipe.data.load()
    for data, name in ((train, "training"), *(((test, "test"),) if len(test) else ())):
        few = data if isinstance(data, TensorData) else data[:8]  # files are checked when they are read
        check_data(few, name)
    if train.shape != test.shape:
        raise UserError(f"training images are {train.shape}, but test images are {test.shape}")
    training, held_out = recipe.split(train, folder, device)
    extra = None if recipe.extra_data is None else recipe.extra_data.load(training.data)
    return training, held_out, extra


@torch.no_grad()
def initial_state(
    recipe: Recipe,
    train: LabelledData,
    extra: ExtraImages | None,
    run: RunFolder,
    device: torch.device,
    overwrite: bool,
) -> State:
    """Return the state before the first step, with a model that was checked to give logits for these data."""
    resumed = not overwrite and bool(Checkpoints(run.checkpoints).paths())  # then the checkpoint has the weights
    model = (recipe.unfilled() if resumed else recipe).initial_model(train, run.path).to(device).train()
    for module in refreshable(model):
        module.refresh(model, train)
    ranks.broadcast_(list(model.state_dict().values()))  # a function of the user's own may have drawn others here
    few = pixels(train[:8].x)
    with eval_mode(model):
        try:
            logits = model(few)
        except Exception as error:  # the user's code may raise anything
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"the model cannot take images of shape {train.shape} ({type(error).__name__}: {reason})"
            ) from error
    check_logits(logits, len(few), len(train.classes))
    if recipe.image_size is not None:
        recipe.image_size.check(model, few)
    prefer_channels_last(model, few)
    every = train if extra is None else extra.joined(train)
    state = State.start(recipe.method, model, recipe.optimizer.build(model), every, recipe.seed)
    for holder in (each for each in state.memory.modules() if isinstance(each, TeacherMemory)):
        if holder.teacher == ORIGINAL:
            _fill_original(holder, recipe, run.path, train, device)
        else:
            _fill(holder, recipe, run.path, few, len(train.classes))
    if recipe.averaging is not None:
        state.average = recipe.averaging.init(model)
    return state


def _fill_original(
    holder: TeacherMemory, recipe: Recipe, folder: Path, train: LabelledData, device: torch.device
) -> None:
    """Build the model as it is before the first step once more, also where a run is resumed."""
    with torch.random.fork_rng(devices=[]):
        model = recipe.initial_model(train, folder).to(device)
    ranks.broadcast_(list(model.state_dict().values()))
    holder.fill(model)


def _fill(holder: TeacherMemory, recipe: Recipe, folder: Path, few: Tensor, classes: int) -> None:
    """Load the model of a teacher unless it was given, and check that it gives logits of as many classes."""
    if not holder.is_filled:
        holder.fill(_named(beside(holder.teacher.source, folder, recipe.seed)))
    try:
        check_logits(holder.logits(few), len(few), classes)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"the teacher {holder.teacher.source!r} does not fit the training data: {reason}") from error


def _named(source: str) -> nn.Module:
    """Load the model of a run, of a file of weights or of a library: a file may not name code to be imported."""
    kind, colon, _ = source.partition(":")
    if colon and kind not in LIBRARIES and f"{kind}:" != PREFIX and not Path(source).exists():
        raise UserError(
            f"the teacher {source!r} is no run, no file of weights and none of robustbench:NAME, "
            f"{', '.join(f'{each}:NAME' for each in LIBRARIES)}: give a model of your own as Teacher.of(model)"
        )
    return load(source)
