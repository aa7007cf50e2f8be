"""Numbers of a training that claims can use beside accuracy: collapse, the share of one step, margins."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from sparring import Linf, RunFolder, TensorData
from sparring.records.outcomes import Outcomes
from sparring.studies import one_step
from sparring.studies.collapse import COLLAPSED, ONSET, collapse


@pytest.mark.parametrize(
    ("robust", "collapsed", "onset"),
    [
        ([0.1, 0.3, 0.4, 0.5], 0, 1.0),
        ([0.1, 0.3, 0.4, 0.1], 1, 0.75),
        ([0.4, 0.1, 0.5, 0.5], 1, 0.25),  # it recovers, and did collapse
        ([0.4, 0.2, 0.2, 0.2], 0, 1.0),  # half is not below half
        ([0.5, 0.0], 1, 0.5),
    ],
)
def test_a_training_collapses_when_it_falls_below_half_of_its_best(robust, collapsed, onset):
    assert collapse(np.array(robust)) == {COLLAPSED: collapsed, ONSET: onset}


@pytest.fixture
def linear():
    """Two classes and 600 images of four pixels, away from 0 and 1; a model whose worst case is known."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    x = 0.3 + 0.4 * torch.rand(600, 1, 2, 2)
    return model, TensorData(x, torch.randint(2, (600,)), ("a", "b"))


def test_many_steps_find_the_worst_case_of_a_linear_model_and_one_step_a_part_of_it(linear):
    model, data = linear
    weights = (model[1].weight[0] - model[1].weight[1]).detach()
    gap = (data.x.flatten(1) @ weights + model[1].bias[0].detach() - model[1].bias[1].detach()) * (1 - 2 * data.y)
    eps = 0.1
    clean, one, many = (
        one_step._loss(model, data, attack) for attack in (None, *one_step._attacks(Linf(eps), steps=30))
    )
    assert clean == pytest.approx(float(nn.functional.softplus(-gap).mean().detach()), rel=1e-5)
    assert many == pytest.approx(float(nn.functional.softplus(-(gap - eps * weights.abs().sum())).mean()), rel=1e-5)
    assert 0.6 < (one - clean) / (many - clean) < 0.9  # from a uniform start, three quarters of the way


def test_the_share_of_one_step_is_measured_on_more_images_than_a_training_tests_on(linear, tmp_path, monkeypatch):
    model, data = linear
    recipe = type("Recipe", (), {})()
    recipe.data = type("Source", (), {"load": lambda self: (data, data)})()
    recipe.evaluation = type("Evaluation", (), {"adversaries": {"pgd": one_step.PGD(Linf(0.1))}})()
    monkeypatch.setattr(one_step, "recipe_of", lambda path: recipe)
    monkeypatch.setattr(one_step, "load_model", lambda weights, recipe: model)
    run, measurement = RunFolder(tmp_path), one_step.one_step(images=550, steps=30)
    measurement.look(run, "cpu", measurement.how)
    assert measurement.done(run) and not one_step.one_step(images=500, steps=30).done(run)
    found = json.loads((tmp_path / "analysis-one-step.json").read_text())
    assert found["how"] == {"images": 550, "steps": 30}
    share = (found["one step"] - found["clean"]) / (found["30 steps"] - found["clean"])
    assert one_step.share_of_one_step(run) == share
    measurement.look(run, "cpu", measurement.how)
    assert one_step.share_of_one_step(run) == share, "random numbers are counted"


def test_margins_are_compared_image_by_image():
    """A small gain that all images have is seen, however different the images are."""
    hard = np.random.default_rng(0).normal(0, 5, (1, 300))
    noise = np.random.default_rng(1).normal(0, 0.1, (2, 4, 300))
    margins = {(arm, "last", "margin: pgd"): hard + noise[i] + 0.1 * i for i, arm in enumerate("ab")}
    outcomes = Outcomes({}, margins=margins)
    one = outcomes.estimate(lambda c: c("b", "margin: pgd"))
    low, high = one.interval(0.025)
    assert high - low > 0.5
    low, high = outcomes.estimate(lambda c: c("b", "margin: pgd") - c("a", "margin: pgd")).interval(0.025)
    assert 0.05 < low < 0.1 < high < 0.15
