"""Every method trains on the digits, and goes on bit for bit from a checkpoint; some do so through `fit`."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from every_method import CHANGES
from helpers import bits, stop_at

from sparring import Build, Objective, Recipe, State, TrainingLoop, fit
from sparring.core.walk import walk
from sparring.data import Batches, Digits, Subset
from sparring.models import small_cnn
from sparring.records import RunFolder
from sparring.runs.start import initial_state, load_data
from sparring.training import Interrupted
from sparring.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

THROUGH_FIT = ("moat, mixup", "free", "swa", "fgsm-mep", "lbgat", "hat", "tdat", "sam", "cutmix")
"""Methods whose memory, schedules, hooks and updates differ in kind: `fit` measures, checks and saves them."""


def small(tiny: Recipe, name: str) -> Recipe:
    recipe = replace(tiny, model=Build(small_cnn, width=4, batch_norm=True), data=Subset(Digits(), 300, 10))
    return replace(recipe, batch_size=80, epochs=2, **{"held_out": 0.0, **CHANGES[name]})


def trained(recipe: Recipe, folder: Path, *until: int) -> State:
    """Train with a checkpoint after each number of steps, from which another state goes on."""
    training, _, extra = load_data(recipe, folder, torch.device("cpu"))
    places = any(each.needs_places for each in walk(recipe.method) if isinstance(each, Objective))
    batches = Batches(
        training.data, recipe.batch_size, recipe.augment, recipe.seed, recipe.views_per_image, places=places
    )
    loop = TrainingLoop(recipe.epochs, recipe.lr, recipe.update, recipe.averaging)
    checkpoints = Checkpoints(folder)
    for steps in (*until, None):
        state = initial_state(recipe, training.data, extra, RunFolder(folder), torch.device("cpu"), overwrite=True)
        checkpoints.load_latest(state)
        loop.run(recipe.method, state, batches, steps)
        if steps is not None:
            checkpoints.save(state)
    return state


@pytest.mark.parametrize("name", CHANGES)
def test_a_method_trains_and_resumes_bit_for_bit_on_digits(name, tiny, tmp_path):
    recipe = small(tiny, name)
    whole, cut = trained(recipe, tmp_path / "whole"), trained(recipe, tmp_path / "cut", 4)
    assert whole.step == cut.step == 6
    for kind, module in {**whole.modules(), "memory": whole.memory}.items():
        other = {**cut.modules(), "memory": cut.memory}[kind]
        pairs = zip(module.state_dict().items(), other.state_dict().values(), strict=True)
        for (what, a), b in pairs:
            assert torch.equal(a, b), f"{kind}.{what}"
    start = initial_state(
        recipe, load_data(recipe, tmp_path, torch.device("cpu"))[0].data, None, RunFolder(tmp_path), whole.device, True
    )
    moved = [not torch.equal(a, b) for a, b in zip(start.model.parameters(), whole.model.parameters(), strict=True)]
    assert any(moved)


@pytest.mark.parametrize("name", THROUGH_FIT)
def test_a_run_that_is_interrupted_goes_on_bit_for_bit(name, tiny, tmp_path):
    recipe = replace(small(tiny, name), held_out=0.1, batch_size=60)
    whole = fit(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "cut", on_progress=stop_at(6))  # in the middle of the second epoch of four steps
    cut = fit(recipe, tmp_path / "cut")
    assert bits(cut) == bits(whole)
    assert [round(row["epoch"]) for row in whole.metrics() if "held_out" in row] == [1, 2]
