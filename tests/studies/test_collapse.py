"""Catastrophic overfitting as a number of a training."""

from types import SimpleNamespace

import numpy as np
import pytest

from sparring.studies.collapse import COLLAPSED, ONSET, collapse
from sparring.studies.findings import _collapses


def test_a_fall_below_half_of_the_best_is_a_collapse():
    assert collapse(np.array([0.2, 0.4, 0.3, 0.1])) == {COLLAPSED: 1.0, ONSET: 0.75}
    assert collapse(np.array([0.2, 0.4, 0.3])) == {COLLAPSED: 0.0, ONSET: 1.0}


def test_a_training_that_a_guard_stopped_has_collapsed_even_in_its_first_epoch():
    assert collapse(np.zeros(0), stopped_of=10) == {COLLAPSED: 1.0, ONSET: 0.0}
    assert collapse(np.array([0.2, 0.4]), stopped_of=10) == {COLLAPSED: 1.0, ONSET: 0.2}
    arm = SimpleNamespace(name="a", recipe=SimpleNamespace(epochs=4))
    study = SimpleNamespace(arms=(arm,), seeds_of=lambda arm: 2)
    status = {0: {"stopped": "catastrophic overfitting by step 5"}, 1: {}}
    runs = {("a", seed): SimpleNamespace(status=lambda seed=seed: status[seed]) for seed in range(2)}
    histories = {("a", 0): (np.zeros(0), np.zeros(0)), ("a", 1): (np.arange(4), np.full(4, 0.5))}
    found = _collapses(study, runs, histories)
    assert found["a", COLLAPSED].tolist() == [1.0, 0.0] and found["a", ONSET].tolist() == [0.0, 1.0]
    nothing = _collapses(study, runs, {key: (steps, np.zeros(0)) for key, (steps, _) in histories.items()})
    assert nothing == {}, "no image was held out"
    status[1] = status[0]
    found = _collapses(study, runs, {key: (np.zeros(0), np.zeros(0)) for key in histories})
    assert found["a", COLLAPSED].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("share", [0.5, 0.51])
def test_half_of_the_best_is_no_collapse(share):
    assert collapse(np.array([0.4, 0.4 * share]))[COLLAPSED] == 0.0
