"""`sparring analyze` of a model that was not trained here."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from sparring.cli import run

pytestmark = pytest.mark.slow

MODELS = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(),
        nn.Linear(12, 3),
    )


def headless():
    return nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.random((80, 8, 8)).astype(np.float32), np.arange(80) % 3
    np.savez(tmp_path / "mine.npz", x_train=x[:50], y_train=y[:50], x_test=x[50:], y_test=y[50:])
    (tmp_path / "anymodels.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    yield ["--data", "npz:mine.npz"]
    sys.modules.pop("anymodels", None)


KINDS = {
    "information": ["--examples", "20", "--jacobian-examples", "2", "--count", "4"],
    "memorization": ["--threat", "linf:0.1", "--examples", "20", "--jacobian-examples", "8", "--steps", "2"],
    "representation": ["--threat", "linf:0.1", "--examples", "10", "--bank", "30", "--k", "3", "--steps", "2"],
    "landscape": ["--threat", "linf:0.1", "--examples", "6", "--steps", "2"],
    "transfer": ["--to", "digits", "--shots", "30", "--seeds", "1", "--mode", "layers", "--layers", "4"],
    "inversion": ["--examples", "4", "--steps", "3", "--features", "2"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_analysis_takes_any_model(kind, theirs, capsys):
    more = ["--epochs", "1", "--distance-examples", "0"] if kind == "transfer" else []
    assert run(["analyze", "anymodels:build", kind, *theirs, *KINDS[kind], *more]) == 0
    assert "runs/analysis-build/analysis-" in capsys.readouterr().out
    saved = json.loads(Path(f"runs/analysis-build/analysis-{kind}.json").read_text())
    assert saved["how"]["data"] == "npz:mine.npz"
    if kind == "memorization":
        assert "the weights before training are not known" in json.dumps(saved)


def test_two_models_are_compared_in_a_folder_of_ones_choice(theirs, capsys):
    command = ["analyze", "anymodels:build", "information", "--compare-with", "anymodels.py:build", *theirs]
    assert run([*command, *KINDS["information"], "--out", "here", "--estimator", "sampled", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    one, other = (each["figures"]["weights: trace: all"] for each in found["runs"])
    assert one == other
    assert Path("here/analysis-information.png").exists()


def test_options_that_a_run_folder_has_itself_are_refused(tmp_path, capsys):
    for more in (["--out", "elsewhere"], ["--data", "npz:mine.npz"], ["--mean", "0.5", "--std", "0.5"]):
        assert run(["analyze", str(tmp_path), "landscape", *more]) == 2
        assert f"is a run folder, which has all of these: leave out {more[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["anymodels:build", "information"], "--data is missing: name the training and test images of anymodels:build"),
        (
            ["anymodels:build", "landscape", "--data", "npz:mine.npz"],
            "anymodels:build has no recipe that names a",
        ),
        (["nowhere", "information"], "nowhere is no run folder: name one, or a model as module:function"),
        (["anymodels:biuld", "information", "--data", "npz:mine.npz"], "anymodels:biuld cannot be found"),
        (
            ["anymodels:headless", "information", "--data", "npz:mine.npz"],
            "no linear layer of Sequential gives its logits, so its features are not known: name a layer",
        ),
        (
            ["anymodels:build", "information", "--data", "npz:mine.npz", "--layer", "33"],
            "Sequential has no layer '33': did you mean 3",
        ),
        (["anymodels:build", "information", "--data", "digits"], "a label is 9, but the model gives 3 classes"),
    ],
)
def test_what_cannot_be_analysed_gets_a_sentence(args, message, theirs, capsys):
    assert run(["analyze", *args]) == 2
    assert re.search(message, capsys.readouterr().err)
