"""The guard: what it sees, when it calls an alarm, what it does about it, and that a resumed run does the same."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import Linear, toy_data, toy_net

from sparring import (
    FGSM,
    PGD,
    Build,
    CrossEntropy,
    Guard,
    Linf,
    Method,
    OriginalModel,
    Progress,
    State,
    Sum,
    TensorData,
    UserError,
    fit,
)
from sparring.attacks import Split
from sparring.core.schedules import Cyclic
from sparring.models import small_cnn
from sparring.objectives import EAT, FGSMMEP
from sparring.recipes.small import quickstart
from sparring.training import ExampleHistory, Saving
from sparring.training.checkpoint import read_weights
from sparring.training.guard import Health, OverfittingMonitor, examine

pytestmark = pytest.mark.slow

BALL = Linf(0.1)


def health(**changed):
    return replace(Health(clean=0.9, fgsm=0.7, pgd=0.65, cosine=0.8, zeros=0.0), **changed)


def test_a_linear_model_looks_healthy_and_has_one_gradient_everywhere():
    x = (torch.rand(40, 1, 4, 4) * 255).to(torch.uint8)
    model = Linear()
    y = model(x.float() / 255).argmax(1)
    found = examine(model, TensorData(x, y, ("a", "b")), Guard(BALL), OriginalModel())
    assert found.clean == 1.0
    assert found.fgsm == found.pgd < 1.0
    assert found.cosine == pytest.approx(1.0, abs=1e-5)
    assert found.zeros == 0.0
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    torch.nn.init.zeros_(flat[1].weight)
    found = examine(flat, TensorData(x, y, ("a", "b")), Guard(BALL), OriginalModel())
    assert found.zeros == 1.0
    assert math.isnan(found.cosine)


def test_looking_changes_nothing():
    model, data = toy_net().train(), toy_data()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    a, b = (examine(model, data, Guard(BALL), OriginalModel(), seed=3) for _ in range(2))
    assert a == b
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("seen", "best", "why"),
    [
        (health(), 0.7, None),
        (health(fgsm=0.9, pgd=0.55), 0.7, "robust accuracy is 90.0 % under FGSM, 55.0 % under PGD-10"),
        (health(fgsm=0.4, pgd=0.3), 0.7, "robust accuracy under PGD-10 is 30.0 %, after 70.0 % at its best"),
        (health(fgsm=0.4, pgd=0.36), 0.7, None),
        (health(fgsm=0.02, pgd=0.0), 0.09, None),  # nothing was learned yet
    ],
)
def test_the_alarm_is_a_gap_or_a_fall(seen, best, why):
    assert Guard(BALL).alarm(seen, best) == why


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": "hope"}, "'hope' of a guard is none of report, stop, rescue"),
        ({"checks": 0}, "checks = 0 of a guard must be at least 1"),
        ({"gap": 0.0}, "differences and shares"),
        ({"rescue_epochs": 0.0}, "rescue_epochs = 0 of a guard must be above 0"),
    ],
)
def test_a_guard_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        Guard(BALL, **change)


def collapsing(action, epochs=3, width=8, **guard):
    """FGSM with a large eps on the digits: the step soon fools a model less than PGD does."""
    threat = Linf(0.35)
    return replace(
        quickstart(threat.eps),
        model=Build(small_cnn, width=width, batch_norm=True),
        method=Method(FGSM(threat), CrossEntropy()),
        lr=Cyclic(0.05, 0.3),
        epochs=epochs,
        selection=PGD(threat, steps=10, step_size=threat.eps / 4, patience=0),
        guard=None if action is None else Guard(threat, action, **guard),
    )


NERVOUS = {"gap": 0.02, "examples": 64, "rescue_epochs": 0.4}


def held_out(run):
    return [row["held_out"]["robust"] for row in run.metrics() if "held_out" in row]


def test_a_report_changes_nothing_but_the_report(tmp_path):
    said = []
    watched = fit(collapsing("report", **NERVOUS), tmp_path / "a", log=said.append)
    alone = fit(collapsing(None), tmp_path / "b")
    tensors = [read_weights(run.weights("last"))[0] for run in (watched, alone)]
    assert all(torch.equal(t, tensors[1][n]) for n, t in tensors[0].items())
    event, *_ = watched.guard()
    alarmed = [row["guard"]["fgsm"] - row["guard"]["pgd"] > 0.02 for row in watched.metrics() if "guard" in row]
    began = sum(now and not before for now, before in pairwise([False, *alarmed][::-1]))
    assert len(watched.guard()) == began >= 1  # once, not at every check
    assert event["action"] == "reported"
    assert f"guard, step {event['step']}: catastrophic overfitting" in "".join(said)
    assert "the guard checks 2 times an epoch, which adds up to" in said[0]
    assert alone.guard() == []


def test_a_stopped_run_ends_with_its_last_healthy_weights(tmp_path):
    history = ExampleHistory(PGD(Linf(0.35), 2), every=2)
    run = fit(replace(collapsing("stop", **NERVOUS), example_history=history), tmp_path / "r")
    status, (event,) = run.status(), run.guard()
    assert status["finished"]
    assert "catastrophic overfitting by step" in status["stopped"]
    assert status["step"] == event["step"] < 3 * 20
    assert max(row["step"] for row in run.metrics()) <= status["step"]
    assert read_weights(run.weights("last"))[1]["step"] == status["step"]
    assert status["best"]["step"] <= status["step"]
    assert run.weights("best").exists()
    assert run.read_memory().epochs[-1] == status["step"] / 20, "a training that was stopped has a history, too"


def test_a_rescue_without_a_healthy_checkpoint_says_so_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(Guard, "alarm", lambda self, health, best: "made up" if best == 0.0 else None)
    seen = []
    run = fit(collapsing("rescue", 1, **NERVOUS), tmp_path / "r", log=seen.append)
    assert run.finished()
    assert "no healthy checkpoint to go back to at step 10" in run.guard()[0]["what"]
    assert run.guard()[0]["health"]["fgsm"] >= 0.0
    monkeypatch.undo()
    monkeypatch.setattr(Guard, "alarm", lambda self, health, best: "made up")
    stopped = fit(collapsing("stop", 2, checks=1), tmp_path / "s")
    assert stopped.status()["step"] == 20
    assert stopped.weights("best").exists()


@pytest.mark.parametrize(("checks", "size"), [(2, 391), (2, 45), (4, 10), (6, 11), (1, 7)])
def test_it_looks_as_often_as_it_says(checks, size):
    looks = [Guard(BALL, checks=checks).due(Progress(step, size, 3)) for step in range(1, 2 * size + 1)]
    assert sum(looks) == 2 * checks
    assert looks[size - 1]
    assert looks[-1]


class Killed(BaseException):
    """As a kill would be: nothing is saved that was not saved before."""


@pytest.fixture(scope="module")
def rescued(tmp_path_factory):
    recipe = collapsing("rescue", **NERVOUS)
    return recipe, fit(recipe, tmp_path_factory.mktemp("rescued") / "whole")


@pytest.mark.parametrize("saving", [Saving(), Saving(steps=7)], ids=["by-epoch", "every-7-steps"])
def test_a_rescued_run_that_is_killed_goes_on_bit_for_bit(rescued, tmp_path, saving):
    recipe, whole = rescued
    assert [event["action"] for event in whole.guard()].count("rescued") >= 2
    done, limit = 0, 5

    def kill(news):
        nonlocal done
        done += 1
        if done % limit == 0:
            raise Killed

    for attempt in range(60):
        limit = 5 + 12 * attempt  # at another moment each time
        try:
            run = fit(recipe, tmp_path / "cut", on_progress=kill, saving=saving)
            break
        except Killed:
            done = 0
    assert attempt >= 3
    assert run.weights("last").read_bytes() == whole.weights("last").read_bytes()
    assert run.guard() == whole.guard()
    rows = [[row for row in each.metrics() if "guard" in row] for each in (run, whole)]
    assert rows[0] == rows[1]


def test_the_guard_catches_a_collapse_and_saves_the_run(tmp_path):
    """On three seeds the last three epochs of rescued runs had 0.11 to 0.13, the others 0.01 to 0.02."""
    shape = {"epochs": 10, "width": 32}
    alone = fit(collapsing(None, **shape), tmp_path / "alone")
    rescued = fit(collapsing("rescue", **shape), tmp_path / "rescued")
    lost, kept = (np.mean(held_out(run)[-3:]) for run in (alone, rescued))  # single epochs of either vary
    assert lost < 0.04
    assert kept > max(0.07, 3 * lost)
    first = rescued.guard()[0]
    # the alarm comes at the first look at which one could be seen, and no step of the collapse is kept
    looks = [row for row in rescued.metrics() if "guard" in row]
    assert first["action"] == "rescued"
    assert not any(row["guard"]["fgsm"] - row["guard"]["pgd"] > 0.3 for row in looks if row["step"] <= first["step"])
    assert "back to step" in first["what"]


@pytest.mark.parametrize(
    "method",
    [
        Method(FGSM(BALL), FGSMMEP(BALL)),
        Method(Split(((0.5, FGSM(BALL)), (0.5, FGSM(BALL)))), Sum((CrossEntropy(), EAT()))),
    ],
    ids=["FGSM-MEP", "E-AT"],
)
def test_a_method_that_is_made_for_its_attack_cannot_be_rescued_by_another(tiny, method):
    with pytest.raises(UserError, match=r"is made for its own attack, .* let the guard report or stop"):
        replace(tiny, method=method, guard=Guard(BALL))
    replace(tiny, method=method, guard=Guard(BALL, "stop"))


def test_robust_overfitting_is_told_once_for_each_best_epoch():
    watch = OverfittingMonitor(Guard(BALL), toy_data(), OriginalModel(), 0)
    model = toy_net()
    state = State.start(Method(FGSM(BALL), CrossEntropy()), model, torch.optim.SGD(model.parameters(), lr=0.1))
    told = [
        watch.overfitting(state, health(pgd=training), held)
        for training, held in [(0.5, 0.48), (0.55, 0.52), (0.6, 0.47), (0.65, 0.46), (0.7, 0.53), (0.9, 0.45)]
    ]
    assert [event is not None for event in told] == [False, False, True, False, False, True]
    assert "held-out robust accuracy is 47.0 %, after 52.0 % at its best" in told[2]
    assert "from 55.0 % to 60.0 %" in told[2]
    # falling together is no overfitting
    assert watch.overfitting(state, health(pgd=0.3), 0.2) is None
