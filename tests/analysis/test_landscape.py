"""The landscape of the loss: against closed forms, and from the shell."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Linear, toy_data
from torch import nn

from sparring import L2, PGD, Linf, TensorData, UserError, WhiteBox, fit
from sparring.analysis import measure_landscape
from sparring.analysis.landscape.measure import MEANINGS
from sparring.cli import run as shell
from sparring.core.serialization import Build
from sparring.data import InvertedImages
from sparring.models import small_cnn
from sparring.records import RunFolder
from sparring.records.statistics import interval

pytestmark = pytest.mark.slow

GREY = TensorData(torch.full((6, 1, 4, 4), 0.5), torch.tensor([0, 1, 0, 1, 0, 1]), ("a", "b"))


class Quadratic(nn.Module):
    """Two logits whose cross-entropy is nearly s, the square of the distance to `centre`: its Hessian is 2 c I."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor(c))
        self.centre = nn.Parameter(torch.linspace(0.2, 0.8, 16).view(1, 1, 4, 4))

    def forward(self, x):
        score = 50 + self.c * (x - self.centre).flatten(1).square().sum(1)
        return torch.stack([-score, torch.zeros_like(score)], 1)  # for class 0, log(1 + exp(score)) = score


def test_the_curvature_and_the_lipschitz_constant_of_a_quadratic_are_known():
    data = TensorData(GREY.x[:4], torch.zeros(4, dtype=torch.long), ("a", "b"))
    for threat in (Linf(0.1), L2(0.3)):
        found = measure_landscape(Quadratic(3.0), data, threat, points=3).values
        assert np.allclose(found["curvature"], 6.0, rtol=1e-6)
        for name in [name for name in found if name.startswith("lipschitz")]:
            assert np.allclose(found[name], 6.0, rtol=1e-6)
        distance = (GREY.x[:1] - torch.linspace(0.2, 0.8, 16).view(1, 1, 4, 4)).norm().item()
        assert np.allclose(found["gradient"], 6 * distance, rtol=1e-5)
        assert np.allclose(found["curvature / gradient"], found["curvature"] / found["gradient"])
        assert found["loss under attack"].min() > found["loss"].max()
    # f(x + d) - f(x) - g d = c |d|^2, and the attack on L2 ends on the sphere
    assert np.allclose(found["nonlinearity"], 3 * 0.3**2, rtol=1e-3)


def test_only_the_softmax_bends_a_linear_model():
    """With logits (s, -s), the second derivative along d is 4 p (1 - p) (w d)^2, at most (w d)^2."""
    model = Linear(16)
    found = measure_landscape(model, GREY, Linf(0.05), points=2).values
    w = model.w.detach().double()
    most = float(w.norm() ** 2)
    assert np.all(found["lipschitz at 1 eps"] <= most * (1 + 1e-9))
    assert np.all(found["curvature"] <= most * (1 + 1e-9))
    assert np.all(found["curvature"] > 0)


def test_kinks_make_the_gradient_jump_however_close_and_smooth_activations_do_not():
    """At a kink the quotient grows like one over the distance; without one it stays."""

    class Bend(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.w, self.act = nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(0))), act

        def forward(self, x):
            s = self.act((x - 0.5).flatten(1) @ self.w)
            return torch.stack([s, -s], 1)

    def quotients(act):
        found = measure_landscape(Bend(act), GREY, Linf(0.1), points=10).values
        return [found[f"lipschitz at {d} eps"].mean() for d in ("1", "0.1", "0.01")]

    relu, silu = quotients(nn.ReLU()), quotients(nn.SiLU())
    assert relu[2] > 5 * relu[1] > 25 * relu[0] / 2
    assert silu[2] == pytest.approx(silu[1], rel=0.1)


def test_surfaces_hold_the_loss_at_the_image_in_their_middle():
    torch.manual_seed(0)
    model = small_cnn(3, shape=(1, 4, 4), width=4, activation="silu").eval()
    found = measure_landscape(model, toy_data(), Linf(0.1), pictures=2, resolution=5, points=1)
    assert found.surfaces.shape == (2, 5, 5) and np.allclose(found.grid, [-2, -1, 0, 1, 2])
    assert np.allclose(found.surfaces[:, 2, 2], found.values["loss"][:2])
    assert np.all(found.surfaces[:, 3, 2] > found.surfaces[:, 2, 2]), "up is up"
    assert next(model.parameters()).dtype == torch.float32
    plain = found.plain()
    assert set(plain["figures"]) == set(MEANINGS)
    for figure in plain["figures"].values():
        for estimate in (figure["mean"], figure["median"]):
            assert estimate["low"] <= estimate["value"] <= estimate["high"] <= figure["largest"] + 1e-9
    parts = measure_landscape(model, toy_data(), Linf(0.1), pictures=2, resolution=5, points=1, batch_size=7)
    assert all(np.allclose(parts.values[name], values) for name, values in found.values.items())
    again = measure_landscape(model, toy_data(), Linf(0.1), pictures=2, resolution=5, points=1)
    assert all(np.array_equal(again.values[name], values) for name, values in found.values.items())
    with pytest.raises(UserError, match="points = 0 is no whole number from 1 on"):
        measure_landscape(model, toy_data(), Linf(0.1), points=0)


def test_intervals_of_mean_and_median_are_those_of_normal_values():
    values = np.random.default_rng(0).normal(3, 2, 2000)
    low, high = interval(values, np.mean)
    assert (high - low) / 2 == pytest.approx(1.96 * 2 / np.sqrt(2000), rel=0.1)
    low, high = interval(values, np.median)
    assert (high - low) / 2 == pytest.approx(1.96 * 2 * np.sqrt(np.pi / 2 / 2000), rel=0.15)
    assert interval(np.ones(5), np.median) == (1.0, 1.0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    import conftest

    folder, recipe = tmp_path_factory.mktemp("runs"), replace(conftest.tiny.__wrapped__(), epochs=1)
    for name in ("relu", "silu"):
        fit(replace(recipe, model=Build(small_cnn, width=2, activation=name)), folder / name, device="cpu")
    return folder


def test_a_run_is_analysed_from_the_shell(runs, capsys):
    relu = str(runs / "relu")
    assert shell(["analyze", relu, "landscape", "--examples", "8", "--points", "1", "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "curvature" in out and "analysis-landscape.json" in out
    saved = json.loads((runs / "relu" / "analysis-landscape.json").read_text())
    assert saved["examples"] == 8 and saved["threat"] == "Linf(eps=0.1)"
    assert (runs / "relu" / "analysis-landscape.png").stat().st_size > 10_000
    with np.load(runs / "relu" / "analysis-landscape.npz") as held:
        assert held["curvature"].mean() == pytest.approx(saved["figures"]["curvature"]["mean"]["value"])
    args = ["--compare-with", str(runs / "silu"), "--examples", "4", "--points", "1", "--steps", "1", "--json"]
    assert shell(["analyze", relu, "landscape", *args, "--threat", "l2:0.5", "--weights", "last"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in both["runs"]] == [relu, str(runs / "silu")] and both["how"]["weights"] == "last"
    assert both["runs"][0]["threat"] == "L2(eps=0.5)"
    assert (
        shell(
            ["analyze", relu, "landscape", "--compare-with", relu, "--examples", "4", "--points", "1", "--steps", "1"]
        )
        == 0
    )
    assert "difference" in capsys.readouterr().out


def test_runs_of_images_with_the_same_labels_are_not_compared(runs, tiny, capsys):
    fit(replace(tiny, epochs=1, data=InvertedImages(tiny.data)), runs / "inverted", device="cpu")
    args = ["--compare-with", str(runs / "inverted"), "--examples", "4", "--points", "1", "--steps", "1"]
    assert shell(["analyze", str(runs / "relu"), "landscape", *args]) == 2
    assert "have different test images" in capsys.readouterr().err


def test_runs_of_other_images_are_not_compared(runs, tiny, capsys):
    adversaries = {"pgd": WhiteBox(PGD(Linf(0.2), 2))}
    fit(
        replace(tiny, epochs=1, evaluation=replace(tiny.evaluation, adversaries=adversaries)),
        runs / "other",
        device="cpu",
    )
    args = ["--compare-with", str(runs / "other"), "--examples", "4", "--points", "1", "--steps", "1"]
    assert shell(["analyze", str(runs / "relu"), "landscape", *args]) == 2
    assert "have different threats: name one" in capsys.readouterr().err


def test_an_analysis_of_a_run_that_is_not_finished_says_so(runs, tmp_path, capsys):
    unfinished = RunFolder(shutil.copytree(runs / "relu", tmp_path / "r"))
    args = ["analyze", str(unfinished.path), "landscape", "--examples", "3", "--steps", "1", "--threat", "linf:0.1"]
    said = f"note: the training of {unfinished.path} is not finished: these are its weights so far"
    assert shell(args) == 0 and said not in capsys.readouterr().err
    unfinished.set_status({**unfinished.status(), "finished": False})
    assert shell(args) == 0 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "TARGET is missing"),
        (["runs/none"], "KIND is missing"),
        (["runs/none", "landscap"], "no analysis 'landscap': did you mean landscape"),
        (["nowhere", "landscape"], "nowhere is no run folder"),
        (["nowhere", "landscape", "--examples", "0"], "at least one image is needed, not 0"),
    ],
)
def test_an_analysis_of_nothing_is_refused(args, message, capsys):
    assert shell(["analyze", *args]) == 2
    assert message in capsys.readouterr().err


def test_overwriting_a_run_takes_its_analysis_away(runs, tiny):
    folder = runs / "silu"
    shell(["analyze", str(folder), "landscape", "--examples", "2", "--points", "1", "--steps", "1"])
    assert (folder / "analysis-landscape.json").exists()
    fit(
        replace(tiny, epochs=1, model=Build(small_cnn, width=2, activation="silu")),
        folder,
        overwrite=True,
        device="cpu",
    )
    assert not list(folder.glob("analysis-*"))
