"""Memory of a training step: predicted for any batch size, and the largest batch that fits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import toy_data, toy_net

from sparring import AWP, PGD, CrossEntropy, Linf, Method, UserError, evaluate
from sparring.core.serialization import Build
from sparring.data import Digits, ProgressiveResizing, Subset
from sparring.models import preact_resnet18, small_cnn
from sparring.recipes.small import quickstart
from sparring.runs.compute import ComputeSettings
from sparring.runs.fit import fit
from sparring.runs.memory import StepMemory, Trials, largest_batch, step_memory, with_largest_batch
from sparring.training.optimizers import AdamW

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
PLAIN = replace(quickstart(0.1), method=Method(PGD(Linf(0.1), 2), CrossEntropy()))
RECIPES = {
    "small": replace(PLAIN, model=Build(small_cnn, width=8, batch_norm=True)),
    "resnet": replace(PLAIN, model=Build(preact_resnet18, width=1 / 8)),
    "awp, adam": replace(PLAIN, model=Build(small_cnn, width=8), update=AWP(0.01), optimizer=AdamW()),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_peak_of_a_large_batch_is_predicted_within_a_tenth(name):
    recipe, settings = RECIPES[name], ComputeSettings("fp32", "off")
    predicted = step_memory(recipe, "cpu", settings)
    counted = Trials(recipe, CPU, settings, Path()).peak(200)
    assert counted > 1.5 * predicted.peak(32), "the batch matters here"
    assert predicted.peak(200) == pytest.approx(counted, rel=0.1)


def test_images_have_the_largest_size_of_the_training(monkeypatch):
    seen = []
    monkeypatch.setattr(Method, "step", lambda self, state, batch, *rest: seen.append(batch.x.shape[2:]))
    recipe = replace(RECIPES["resnet"], epochs=3, image_size=ProgressiveResizing(((0, 8), (1, 24), (2, 12))))
    list(Trials(recipe, CPU, ComputeSettings("fp32", "off"), Path())._steps(16))
    assert seen == [(24, 24)] * 2


def test_the_largest_batch_fits_and_a_tenth_more_does_not():
    recipe, settings = replace(RECIPES["small"], data=Subset(Digits(), 300, 10)), ComputeSettings("fp32", "off")
    limit = step_memory(recipe, "cpu", settings).peak(150)
    size = largest_batch(recipe, "cpu", settings, limit=limit)
    trials = Trials(recipe, CPU, settings, Path())
    assert size % 8 == 0
    assert 128 <= size <= 152
    assert trials.peak(size) <= limit < trials.peak(round(1.1 * size) + 8)
    assert largest_batch(recipe, "cpu", settings, limit=1e12) == len(trials.data)


def test_a_batch_that_does_not_fit_after_all_is_made_smaller(monkeypatch):
    asked = []

    def peak(self, size):
        asked.append(size)
        if size > 80 and len(asked) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 10.0 * size

    monkeypatch.setattr(Trials, "peak", peak)
    assert largest_batch(RECIPES["small"], "cpu", limit=1000.0) == 80
    assert asked == [32, 64, 96, 88, 80]


def test_no_batch_no_gpu():
    with pytest.raises(UserError, match=r"looked for on a GPU, and the device is cpu.*Give --batch-size"):
        largest_batch(RECIPES["small"], "cpu")
    with pytest.raises(UserError, match="not even a small batch of this recipe fits into"):
        largest_batch(RECIPES["small"], "cpu", limit=1.0)
    assert StepMemory(100.0, 10.0).largest(50.0) == 0


def test_a_run_that_is_resumed_keeps_its_batch(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("sparring.runs.memory.largest_batch", lambda *_: 96)
    assert with_largest_batch(tiny, tmp_path, "cpu", ComputeSettings(), overwrite=False).batch_size == 96
    fit(replace(tiny, epochs=1, batch_size=200), tmp_path)
    assert with_largest_batch(tiny, tmp_path, "cpu", ComputeSettings(), overwrite=False).batch_size == 200
    assert with_largest_batch(tiny, tmp_path, "cpu", ComputeSettings(), overwrite=True).batch_size == 96


def test_training_without_enough_memory_says_what_to_set(tmp_path, tiny, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("sparring.training.engine._crafted", full)
    with pytest.raises(UserError, match=r"not enough memory for batches of \d+ images after step 0 .*--fit-batch"):
        fit(tiny, tmp_path)


def test_an_evaluation_without_enough_memory_says_what_to_set():
    model = toy_net().eval()

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match=r"not enough memory to attack 256 images at once: .* 128 for example"):
        evaluate(model, toy_data(), {"mine": lambda model, x, y, rng: full()})
