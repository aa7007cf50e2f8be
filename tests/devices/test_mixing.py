"""Devices never mix: trainings, evaluations and analyses on a pretended GPU, which refuses what a GPU refuses."""

import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import toy_data
from every_method import CHANGES
from helpers import demanding, stop_at
from pretended import OnGPU, pretended

import sparring as sp
from sparring import APGD, L1, L2, PGD, Linf, State, TrainingLoop, WhiteBox, evaluate
from sparring.acceleration import AcceleratedCopy
from sparring.attacks import FAB, Square
from sparring.cli import run
from sparring.core.serialization import Build
from sparring.core.types import pixels
from sparring.data import Batches, Digits, Subset
from sparring.evaluation import AuditBudget, AutoAttack, MinimumNorm, MultiTargeted
from sparring.models import SmoothBackward, amdim, encode_bank, small_cnn
from sparring.recipes import find, selfsup
from sparring.runs.fit import fit
from sparring.runs.load import evaluate_run
from sparring.runs.recipe import Evaluation
from sparring.training.guard import Guard
from sparring.training.hooks import Interrupted

pytestmark = pytest.mark.slow

BALL = Linf(0.1)
FEW = Subset(Digits(), 150, 20)
EVALUATION = Evaluation({"pgd": WhiteBox(PGD(BALL, 2, patience=0))})
ENCODER = Build(amdim, width=4, dim=8, depth=1, k=3)


def small(tiny, **changes):
    """A few steps on few images."""
    model = Build(small_cnn, width=2, batch_norm=True)
    recipe = replace(tiny, model=model, data=FEW, batch_size=40, epochs=1, evaluation=EVALUATION, held_out=0.1)
    return replace(recipe, **changes)


RUNS = {
    "everything": lambda tiny: small(
        demanding(tiny),
        guard=Guard(BALL, "report", examples=16),
        example_history=sp.training.ExampleHistory(PGD(BALL, 1)),
    ),
    "memory": lambda tiny: small(
        tiny, method=sp.Method(PGD(BALL, 1), sp.Sum((sp.CrossEntropy(), sp.objectives.TemporalEnsembling(1.0))))
    ),
    "without labels": lambda tiny: replace(
        selfsup.digits_amdim(), model=ENCODER, data=FEW, batch_size=50, epochs=1, augment=()
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_interrupted_resumed_and_evaluated_mixes_no_devices(name, tiny, tmp_path):
    recipe = RUNS[name](tiny)
    how = {"device": "cuda", "precision": "fp32"}
    with pretended():
        with pytest.raises(Interrupted):
            fit(recipe, tmp_path / "cut", **how, on_progress=stop_at(2))
        cut, whole = fit(recipe, tmp_path / "cut", **how), fit(recipe, tmp_path / "whole", **how)
        found = evaluate_run(cut, replace(recipe, evaluation=EVALUATION), device="cuda", which=("last",))
    assert cut.weights("last").read_bytes() == whole.weights("last").read_bytes()
    assert found["last"].table()["pgd"].examples == 20


@pytest.mark.parametrize("name", CHANGES)
def test_an_epoch_of_every_method_mixes_no_devices(name, tiny):
    recipe = replace(small(tiny), **CHANGES[name])
    torch.manual_seed(0)
    with pretended():
        data = FEW.load()[0][:80].to("cuda")
        model = recipe.model(num_classes=10, shape=(1, 8, 8), normalize=None).to("cuda").train()
        state = State.start(recipe.method, model, recipe.optimizer.build(model), data)
        batches = Batches(data, 40, recipe.augment, 0, recipe.views_per_image)
        loop = TrainingLoop(1, recipe.lr, recipe.update, recipe.averaging, backend=AcceleratedCopy("fp32", "off"))
        loop.run(recipe.method, state, batches)
        assert state.step == 2
        assert all(isinstance(p, OnGPU) for p in model.parameters())


@dataclass(frozen=True)
class ShortAutoAttack(AutoAttack):
    """The stages of AutoAttack, with fewer steps."""

    def stages(self, num_classes):
        apgd, fab = APGD(BALL, 2, ties_halve=True), FAB(BALL, 2, final_search=0, bring_back=False)
        return {
            "apgd-ce": WhiteBox(apgd),
            "apgd-t": MultiTargeted(apgd, targets=2),
            "fab-t": MultiTargeted(fab, sp.Margin, targets=2),
            "square": WhiteBox(Square(BALL, 4, rescale=False, last_place=False), sp.Margin),
        }


ADVERSARIES = {
    "cascade": ShortAutoAttack(BALL),
    "l2": WhiteBox(APGD(L2(0.5), 3)),
    "l1": WhiteBox(APGD(L1(3.0), 3)),
    "targets": MultiTargeted(APGD(BALL, 2), targets=2),
    "square": WhiteBox(Square(BALL, 5), sp.Margin),
    "fab": WhiteBox(FAB(BALL, 3), sp.Margin),
    "nearest": MinimumNorm.of(L2(1.0), steps=3),
    "smooth": sp.evaluation.SurrogateGradient(SmoothBackward(), WhiteBox(PGD(BALL, 2))),
}


def trained_somehow(count=20):
    torch.manual_seed(0)
    model = small_cnn(10, (1, 8, 8), width=2, batch_norm=True).to("cuda").eval()
    data = FEW.load()[1][:count]
    with torch.no_grad():
        y = model(pixels(data.x).to("cuda")).argmax(1).cpu()
    return model, sp.TensorData(data.x, y, data.classes)  # right everywhere, so that all are attacked


RANDOMISED = {"draws": WhiteBox(PGD(BALL, 2), draws=2)}


@pytest.mark.parametrize("where", ["cuda", "cpu"])
@pytest.mark.parametrize("adversaries", [ADVERSARIES, RANDOMISED], ids=["once", "draws"])
def test_an_evaluation_mixes_no_devices(adversaries, where, tmp_path):
    with pretended():
        model, data = trained_somehow()
        found = evaluate(model, data.to(where), adversaries, state=tmp_path, keep_images=True)
        assert len(found.robust["clean"]) == 20
        assert isinstance(next(model.parameters()), OnGPU)


def test_the_audit_and_perturb_mix_no_devices():
    with pretended():
        model, data = trained_somehow(4)
        data = data.to("cuda")
        assert sp.audit(model, data, BALL, budget=AuditBudget(2, 4, 20, surrogate_steps=5))
        assert isinstance(sp.perturb(model, pixels(data.x), data.y, PGD(BALL, 2)), OnGPU)


KINDS = {
    "information": ["--examples", "20", "--jacobian-examples", "2", "--count", "4"],
    "memorization": ["--threat", "linf:0.1", "--examples", "20", "--jacobian-examples", "8", "--steps", "2"],
    "representation": ["--threat", "linf:0.1", "--examples", "4", "--bank", "30", "--k", "3", "--steps", "2"],
    "landscape": ["--threat", "linf:0.1", "--examples", "4", "--points", "2", "--steps", "2"],
    "transfer": ["--to", "digits", "--shots", "20", "--seeds", "1", "--mode", "layers", "--layers", "4"],
    "inversion": ["--examples", "4", "--steps", "3", "--features", "2"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_analysis_mixes_no_devices(kind, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    x, y = rng.random((60, 8, 8)).astype(np.float32), np.arange(60) % 3
    np.savez(tmp_path / "mine.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    (tmp_path / f"analysed_{kind}.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    more = ["--epochs", "1", "--distance-examples", "0"] if kind == "transfer" else []
    with pretended() as counts:
        args = ["analyze", f"analysed_{kind}:build", kind, "--data", "npz:mine.npz", "--device", "cuda"]
        assert run([*args, *KINDS[kind], *more]) == 0, capsys.readouterr().err
        assert counts["kernels"] > 100
    sys.modules.pop(f"analysed_{kind}", None)


MODEL = """
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(),
        nn.Linear(12, 3),
    )
"""


@pytest.mark.parametrize(
    "name", ["fashion_rocl", "fashion_acl", "fashion_sat_released", "fashion_npid", "fashion_simclr"]
)
def test_a_step_of_every_contrastive_method_mixes_no_devices(name):
    recipe = find(name)()
    recipe = replace(recipe, model=Build(recipe.model.function, **recipe.model.options | {"width": 4}))
    torch.manual_seed(0)
    data = toy_data(48, 10)
    data = replace(data, x=F.interpolate(data.x.float(), size=28).to(torch.uint8))
    with pretended():
        data = data.to("cuda")
        model = recipe.model(num_classes=10, shape=(1, 28, 28), normalize=None).to("cuda").train()
        model.head.k = 3
        encode_bank(model, data)
        batches = Batches(data, 12, recipe.augment, 0, recipe.views_per_image)
        state = State.start(recipe.method, model, recipe.optimizer.build(model), data)
        TrainingLoop(1, 1e-3).run(recipe.method, state, batches, until=1)
        assert all(isinstance(p, OnGPU) for p in model.parameters())
