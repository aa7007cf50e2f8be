"""The start of a run: its data and its state before the first step, checked."""

from dataclasses import replace
from pathlib import Path

import torch

from ..acceleration import prefer_channels_last
from ..core import ranks
from ..core.errors import UserError
from ..core.modes import eval_mode
from ..core.types import LabelledData, TensorData, pixels, refreshable
from ..core.validation import check_data, check_logits
from ..data import TrainingSet
from ..records.run_folder import RunFolder
from ..training.checkpoint import Checkpoints
from ..training.engine import State
from .recipe import Recipe


def load_data(recipe: Recipe, folder: Path, device: torch.device) -> tuple[TrainingSet, TensorData | None]:
    """Return the training data and the held-out images, if any, on the device.

    The test images are checked, but not used.
    """
    train, test = recipe.data.load()
    for data, name in ((train, "training"), *(((test, "test"),) if len(test) else ())):
        few = data if isinstance(data, TensorData) else data[:8]  # files are checked when they are read
        check_data(few, name)
    if train.shape != test.shape:
        raise UserError(f"training images are {train.shape}, but test images are {test.shape}")
    return recipe.split(train, folder, device)


@torch.no_grad()
def initial_state(recipe: Recipe, train: LabelledData, run: RunFolder, device: torch.device, overwrite: bool) -> State:
    """Return the state before the first step, with a model that was checked to give logits for these data."""
    if not overwrite and Checkpoints(run.checkpoints).paths():
        recipe = replace(recipe, init_from="")  # the checkpoint has the weights
    model = recipe.initial_model(train, run.path).to(device).train()
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
    state = State.start(recipe.method, model, recipe.optimizer.build(model), train, recipe.seed)
    if recipe.averaging is not None:
        state.average = recipe.averaging.init(model)
    return state
