import html
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sparring.records.results import EvaluationResult, Examples
from sparring.report.figures import (
    finish,
    panels,
    plot_adversarial_examples,
    plot_learning_curve,
    plot_robustness_curve,
    save,
)
from sparring.report.studies import plot_study

ROWS = [
    {"step": 10, "epoch": 0.5, "lr": 0.1, "terms": {"ce_clean": 2.0, "kl": 0.1}},
    {"step": 20, "epoch": 1.0, "lr": 0.1, "terms": {"ce_clean": 1.0, "kl": 0.2}},
    {"step": 20, "epoch": 1.0, "held_out": {"clean": 0.9, "robust": 0.5}, "best": True},
]


def colours(path):
    with Image.open(path) as image:
        return len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0))


@pytest.mark.slow
def test_a_learning_curve_is_drawn(tmp_path):
    plot_learning_curve(ROWS, tmp_path / "a.png")
    assert colours(tmp_path / "a.png") > 5
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("where", [(Figure, "savefig"), (os, "fsync")], ids=["drawn", "written"])
def test_a_figure_that_fails_leaves_the_old_one_and_nothing_besides(tmp_path, monkeypatch, where):
    def fail(*args, **how):
        raise OSError("no room")

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr(*where, fail)
    with pytest.raises(OSError, match="no room"):
        plot_learning_curve(ROWS, tmp_path / "a.png")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.png", b"old")]


def test_nothing_is_on_the_disk_while_a_figure_is_drawn(tmp_path, monkeypatch):
    """Drawing takes long enough to be killed in."""
    drawn = Figure.savefig
    seen = []
    monkeypatch.setattr(
        Figure, "savefig", lambda *args, **how: (drawn(*args, **how), seen.append(list(tmp_path.iterdir())))
    )
    plot_learning_curve(ROWS, tmp_path / "a.png")
    assert seen == [[]]


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[2:]])
def test_a_learning_curve_of_little_is_drawn_too(tmp_path, rows):
    plot_learning_curve(rows, tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_of_nothing_nothing_is_drawn(tmp_path):
    plot_learning_curve([], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("count", "channels"), [(1, 1), (8, 3)])
def test_adversarial_examples_are_drawn_in_grey_and_in_colour(tmp_path, count, channels):
    rng = np.random.default_rng(0)
    clean = rng.random((count, channels, 8, 8))
    examples = Examples(
        clean,
        np.clip(clean + 0.1, 0, 1),
        np.zeros(count, int),
        np.zeros(count, int),
        np.full(count, -1),  # the model gave NaN
    )
    plot_adversarial_examples(examples, ["cat", "dog"], tmp_path / "a.png")
    assert colours(tmp_path / "a.png") > 5


@pytest.mark.slow
def test_names_with_dollars_are_no_formulas(tmp_path):
    for name in ("$5_to_$10", r"a$\b$", "$"):
        image = np.zeros((1, 1, 8, 8))
        examples = Examples(image, image, np.zeros(1, int), np.zeros(1, int), np.zeros(1, int))
        plot_adversarial_examples(examples, [name, "dog"], tmp_path / "a.png")
        rows = [(name, {"clean": (0.8, 0.7, 0.9), "worst": (0.4, 0.3, 0.5)})]
        plot_study(rows, {name: (np.arange(1, 4), np.ones(3))}, name, tmp_path / "b.svg")
        assert name in html.unescape((tmp_path / "b.svg").read_text())


def test_powers_of_ten_beside_a_logarithmic_axis_are_numbers(tmp_path):
    figure, ((axes,),) = panels(4, 3)
    axes.plot([0.003, 0.1, 3.0], [1e-3, 1.0, 1e4], label="$a$")
    axes.set(xscale="log", yscale="log", xlabel="$5_to_$10")
    finish(axes)
    save(figure, tmp_path / "a.svg")
    text = re.sub(r"<!--.*?-->", "", html.unescape((tmp_path / "a.svg").read_text()))  # without the comments
    assert "mathdefault" not in text
    assert "$5_to_$10" in text and "$a$" in text


def test_reports_need_no_torch():
    code = "import sys, sparring.report, sparring.records.run_folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_the_robustness_curve_is_drawn_from_distances(tmp_path):
    rng = np.random.default_rng(0)
    distance = np.concatenate([np.zeros(5), rng.random(40).astype(np.float32), [np.inf]])
    robust = {"clean": distance > 0, "autoattack": distance > 0.5}
    found = EvaluationResult(robust, np.zeros(46, dtype=int), ("a",), distance=distance)
    plot_robustness_curve({"best": found, "last": found}, "Linf", {"autoattack": 0.5}, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size[0] > 400
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 10


def test_a_curve_of_a_model_that_is_always_wrong_is_drawn_too(tmp_path):
    found = EvaluationResult({"clean": np.zeros(3, dtype=bool)}, np.zeros(3, dtype=int), ("a",), distance=np.zeros(3))
    plot_robustness_curve({"best": found}, "L2", {}, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 3000


def study_figure(count, tmp_path, monkeypatch):
    """The figure of a study with `count` trainings, before it is written."""
    drawn = []
    monkeypatch.setattr("sparring.report.studies.save", lambda figure, path: drawn.append(figure))
    rows = [(f"training {k}", {"clean": (0.8, 0.7, 0.9), "worst": (0.4 + k / 100, 0.3, 0.5)}) for k in range(count)]
    curves = {name: (np.array([0.1, 0.2]), np.array([0.3, 0.4])) for name, _ in rows}
    plot_study(rows, curves, "a study", tmp_path / "a.svg")
    return drawn[0]


def coloured(axes):
    """The lines of a frame that are not grey context."""
    return [line for line in axes.get_lines() if line.get_color() != "0.85"]


def test_seven_curves_share_a_frame_with_their_names_at_their_ends(tmp_path, monkeypatch):
    figure = study_figure(7, tmp_path, monkeypatch)
    frame = figure.axes[-1]
    assert len(coloured(frame)) == 7 == len({line.get_color() for line in coloured(frame)})
    assert [text.get_text() for text in frame.texts] == [f"training {k}" for k in range(7)]


def test_more_curves_have_a_frame_each(tmp_path, monkeypatch):
    figure = study_figure(8, tmp_path, monkeypatch)
    frames = [axes for axes in figure.axes[1:] if axes.get_visible()]
    assert len(frames) == 8 and all(len(coloured(axes)) == 1 for axes in frames)
    assert [axes.get_title(loc="left") for axes in frames] == [f"training {k}" for k in range(8)]
