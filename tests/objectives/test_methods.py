"""Every method trains on the digits, and goes on bit for bit from a checkpoint; some do so through `fit`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from every_method import CHANGES
from helpers import bits, stop_at

from sparring import Build, Objective, Progress, Recipe, State, TrainingLoop, fit
from sparring.core.walk import walk
from sparring.data import Batches, Digits, Subset
from sparring.models import small_cnn
from sparring.records import RunFolder
from sparring.runs.start import initial_state, load_data
from sparring.training import Interrupted
from sparring.training.checkpoint import Checkpoints
from sparring.training.engine import Hook

pytestmark = pytest.mark.slow

THROUGH_FIT = ("moat, mixup", "free", "swa", "fgsm-mep", "lbgat", "hat", "tdat", "sam", "cutmix")
"""Methods whose memory, schedules, hooks and updates differ in kind: `fit` measures, checks and saves them."""


def small(tiny: Recipe, name: str) -> Recipe:
    recipe = replace(tiny, model=Build(small_cnn, width=4, batch_norm=True), data=Subset(Digits(), 300, 10))
    return replace(recipe, batch_size=80, epochs=2, **{"held_out": 0.0, **CHANGES[name]})


@dataclass
class SavingOnce(Hook):
    """Writes a checkpoint after a step, in the middle of the second epoch."""

    checkpoints: Checkpoints
    step: int = 4

    def on_step(self, state: State, progress: Progress, terms: Mapping[str, float]) -> None:
        if progress.step == self.step:
            self.checkpoints.save(state)


@pytest.mark.parametrize("name", CHANGES)
def test_a_method_trains_and_resumes_bit_for_bit_on_digits(name, tiny, tmp_path):
    recipe, run, cpu = small(tiny, name), RunFolder(tmp_path), torch.device("cpu")
    training, _, extra = load_data(recipe, tmp_path, cpu)
    places = any(each.needs_places for each in walk(recipe.method) if isinstance(each, Objective))
    batches = Batches(
        training.data, recipe.batch_size, recipe.augment, recipe.seed, recipe.views_per_image, places=places
    )
    checkpoints, how = Checkpoints(tmp_path), (recipe.epochs, recipe.lr, recipe.update, recipe.averaging)
    whole, cut = (initial_state(recipe, training.data, extra, run, cpu, overwrite=True) for _ in range(2))
    start = [p.clone() for p in whole.model.parameters()]
    TrainingLoop(*how, [SavingOnce(checkpoints)]).run(recipe.method, whole, batches)
    checkpoints.load_latest(cut)
    assert cut.step == 4
    TrainingLoop(*how).run(recipe.method, cut, batches)
    assert whole.step == cut.step == 6
    for kind, module in {**whole.modules(), "memory": whole.memory}.items():
        other = {**cut.modules(), "memory": cut.memory}[kind]
        pairs = zip(module.state_dict().items(), other.state_dict().values(), strict=True)
        for (what, a), b in pairs:
            assert torch.equal(a, b), f"{kind}.{what}"
    assert any(not torch.equal(a, b) for a, b in zip(start, whole.model.parameters(), strict=True))


@pytest.mark.parametrize("name", THROUGH_FIT)
def test_a_run_that_is_interrupted_goes_on_bit_for_bit(name, tiny, tmp_path):
    recipe = replace(small(tiny, name), held_out=0.1, batch_size=60)
    whole = fit(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "cut", on_progress=stop_at(6))  # in the middle of the second epoch of four steps
    cut = fit(recipe, tmp_path / "cut")
    assert bits(cut) == bits(whole)
    assert [round(row["epoch"]) for row in whole.metrics() if "held_out" in row] == [1, 2]
