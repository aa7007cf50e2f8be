"""Weights of RobustBench's models: where they are looked for, and what is refused. No real ones are needed."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sparring
from sparring import UserError
from sparring.cli import run
from sparring.models import dm_wide_resnet, robustbench_zoo, wide_resnet
from sparring.runs import robustbench
from sparring.runs.external_models import imported_model
from sparring.runs.robustbench import robustbench_model
from sparring.training.checkpoint import read_nested

NAME = "cifar10/Linf/Tiny2026Net"
FACT = {"eps": "8/255", "clean": 90.0, "autoattack": 60.0, "architecture": "dm_wide_resnet", "drive": ["abc"]}
FACT |= {"options": {"depth": 10, "width": 1}, "normalize": [[0.5, 0.4, 0.3], [0.2, 0.3, 0.25]]}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A model of a leaderboard, its weights under RobustBench's names, and a cache that is empty."""
    facts = {NAME: FACT, "cifar10/L2/Tiny2026Net": {**FACT, "external": 58.5}}
    models = {key: robustbench_zoo._model(key, fact) for key, fact in facts.items()}
    monkeypatch.setattr(robustbench_zoo, "published_models", lambda: models)
    monkeypatch.setenv("SPARRING_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv(robustbench.FOLDER, raising=False)
    torch.manual_seed(0)
    model = dm_wide_resnet(10, 1)
    model(torch.rand(8, 3, 32, 32))
    state = {"module." + n.removeprefix("body.").replace("head.", "logits."): t for n, t in model.state_dict().items()}
    return model.eval(), state


def put(state, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


@pytest.mark.parametrize("place", ["cifar10/Linf/Tiny2026Net.pt", "Tiny2026Net.pt", "cifar10/Linf/Tiny2026Net.pth.tar"])
def test_weights_are_found_in_a_folder_as_robustbench_keeps_it_or_a_flat_one(tiny, tmp_path, place):
    model, state = tiny
    put({"state_dict": state}, tmp_path / "models" / place)
    x = torch.rand(2, 3, 32, 32)
    scaled = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)
    loaded = sparring.load(f"robustbench:{NAME}", weights=tmp_path / "models")
    assert not loaded.training and torch.allclose(loaded(x), model(scaled), atol=1e-6)
    by_option = imported_model(f"robustbench:{NAME},weights={tmp_path / 'models'}")
    assert torch.equal(by_option(x), loaded(x))


def test_a_variable_names_the_folder_and_a_file_may_be_given(tiny, tmp_path, monkeypatch):
    path = put(tiny[1], tmp_path / "Tiny2026Net.pt")
    assert isinstance(robustbench_model(NAME, path), nn.Module)
    monkeypatch.setenv(robustbench.FOLDER, str(tmp_path))
    assert isinstance(robustbench_model(NAME), nn.Module)


def test_missing_weights_are_answered_with_their_address(tiny, tmp_path):
    with pytest.raises(
        UserError, match=r"Tiny2026Net are not on this machine: .*drive.google.com/file/d/abc, and name"
    ):
        robustbench_model(NAME)
    with pytest.raises(UserError, match=r"there is no cifar10/Linf/Tiny2026Net.pt in .*empty: get them from "):
        robustbench_model(NAME, tmp_path / "empty")


class Unsafe:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


def test_a_file_that_holds_more_than_tensors_is_refused_and_nothing_in_it_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "Tiny2026Net.pt"
    path.write_bytes(pickle.dumps({"state_dict": Unsafe()}))
    with pytest.raises(UserError, match="wanted is an undamaged file of weights that holds only tensors"):
        robustbench_model(NAME, path)
    assert not Path("touched").exists()


def test_weights_of_another_architecture_are_refused(tiny, tmp_path):
    path = put(wide_resnet(10, 1).state_dict(), tmp_path / "Tiny2026Net.pt")
    with pytest.raises(UserError, match="another architecture"):
        robustbench_model(NAME, path)


def test_a_download_keeps_the_sum_that_it_came_with(tiny, tmp_path, monkeypatch):
    source = put(tiny[1], tmp_path / "elsewhere.pt")
    model = robustbench_zoo._model(NAME, {**FACT, "url": "https://example.org/tiny.pt"})
    asked = []

    def retrieve(url, known, fname, path):
        asked.append(url)
        target = Path(path) / fname
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        return str(target)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    (path,) = robustbench.weights_of(model)
    assert path == tmp_path / "cache" / "robustbench" / "cifar10" / "Linf" / "Tiny2026Net.pt"
    assert robustbench.weights_of(model) == [path] and asked == ["https://example.org/tiny.pt"]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"SHA-256 sum is not the one in Tiny2026Net.pt.sha256.*delete it"):
        robustbench.weights_of(model)


def test_a_download_that_fails_says_so_with_the_address(tiny, monkeypatch):
    model = robustbench_zoo._model(NAME, {**FACT, "url": "https://example.org/tiny.pt"})

    def retrieve(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr("pooch.retrieve", retrieve)
    with pytest.raises(UserError, match=r"could not be downloaded from https://example.org/tiny.pt .*no network"):
        robustbench.weights_of(model)


def test_an_ensemble_has_a_file_for_each_part(tiny, tmp_path):
    model = robustbench_zoo._model(NAME, {**FACT, "drive": ["a", "b"]})
    for i in (0, 1):
        put({}, tmp_path / f"Tiny2026Net.pt_m{i}.pt")
    assert [path.name for path in robustbench.weights_of(model, tmp_path)] == [
        f"Tiny2026Net.pt_m{i}.pt" for i in (0, 1)
    ]


def test_tensors_in_nested_dicts_have_their_path_as_name(tmp_path):
    path = put({"last": {"w": torch.ones(2)}, "bn": {"m": torch.zeros(1)}, "epoch": 3}, tmp_path / "nested.pt")
    assert {name: t.tolist() for name, t in read_nested(path).items()} == {"last.w": [1.0, 1.0], "bn.m": [0.0]}


def test_a_part_of_a_file_is_read_where_it_holds_several(tiny, tmp_path, monkeypatch):
    state = tiny[1]
    path = put({"last": state, "best": {name: torch.zeros_like(t) for name, t in state.items()}}, tmp_path / "two.pt")
    models = {NAME: robustbench_zoo._model(NAME, {**FACT, "part": "last"})}
    monkeypatch.setattr(robustbench_zoo, "published_models", lambda: models)
    assert robustbench_model(NAME, path).head.weight.any()


@pytest.mark.slow
def test_the_shell_evaluates_a_model_by_name_and_adds_what_robustbench_measured(tiny, tmp_path, capsys):
    put(tiny[1], tmp_path / "cifar10" / "L2" / "Tiny2026Net.pt")
    images = tmp_path / "images.npz"
    rng = np.random.default_rng(0)
    x = {name: rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8) for name in ("x_train", "x_test")}
    np.savez(images, **x, y_train=np.arange(8), y_test=np.arange(8))
    command = ["evaluate", "robustbench:L2/Tiny2026Net", "--weights", str(tmp_path), "--data", f"npz:{images}"]
    assert run([*command, "--attack", "fgsm", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "L2(" in printed, "its own threat"
    assert "RobustBench has for cifar10/L2/Tiny2026Net, at l2:8/255: 90.00 % clean, 60.00 % under AutoAttack" in printed
    assert "58.50 % under the strongest attack known" in printed


def test_weights_are_a_flag_of_robustbench_alone(tmp_path, capsys):
    assert run(["evaluate", "mymodels:build", "--data", "digits", "--threat", "linf:0.1", "--weights", "x"]) == 2
    assert (
        "--weights names the folder of RobustBench's weights: leave it out for mymodels:build"
        in capsys.readouterr().err
    )


def test_an_ambiguous_or_unknown_name_is_refused_by_the_shell(tiny, capsys):
    assert run(["evaluate", "robustbench:Tiny2026Net"]) == 2
    assert "names 2 models: write robustbench:cifar10/Linf/Tiny2026Net or " in capsys.readouterr().err
    assert run(["evaluate", "robustbench:Tiny2026Ned"]) == 2
    assert "RobustBench has no model 'Tiny2026Ned': did you mean Tiny2026Net?" in capsys.readouterr().err
