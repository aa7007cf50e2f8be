"""Experiment trackers: what they are told, that they go on after an interruption, and that they cost a run nothing."""

import importlib.util
import json
import struct
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import bits, stop_at

from sparring import UserError, fit
from sparring.cli import run as shell
from sparring.core.serialization import Build
from sparring.models import small_cnn
from sparring.runs import trackers
from sparring.runs.load import evaluate_run
from sparring.runs.trackers import WandB
from sparring.training.hooks import Interrupted

pytestmark = pytest.mark.slow


class Kept:
    """A tracker of one's own that keeps what it is told."""

    def __init__(self):
        self.told = []

    def begin(self, run, step):
        self.told.append(("begin", run.path.name, step))

    def log(self, values, step):
        self.told.append(("log", dict(values), step))

    def picture(self, path):
        self.told.append(("picture", path.name))

    def verdict(self, values):
        self.told.append(("verdict", dict(values)))

    def end(self):
        self.told.append(("end",))

    def of(self, kind):
        return [each[1:] for each in self.told if each[0] == kind]


class Broken(Kept):
    def log(self, values, step):
        raise ConnectionError("no network")


def learning(tiny):
    """The recipe with a net that learns enough to be fooled, so that adversarial examples are drawn."""
    return replace(tiny, model=Build(small_cnn, width=8, batch_norm=True))


def test_a_tracker_is_told_metrics_pictures_and_the_verdict(tiny, tmp_path):
    kept, recipe = Kept(), learning(tiny)
    run = fit(recipe, tmp_path / "r", track=kept)
    assert kept.told[0] == ("begin", "r", 0)
    assert kept.told[-1] == ("end",)
    held_out = {step: values for values, step in kept.of("log") if "held_out/robust" in values}
    rows = {row["step"]: row["held_out"] for row in run.metrics() if "held_out" in row}
    assert {step: values["held_out/robust"] for step, values in held_out.items()} == {
        step: row["robust"] for step, row in rows.items()
    }
    assert kept.of("picture") == [("learning-curve.png",)]
    ((verdict,),) = kept.of("verdict")
    assert verdict["best/robust"] == run.status()["best"]["robust"]
    assert verdict["outcome"] == run.outcome()
    kept.told.clear()
    found = evaluate_run(run, recipe, track=(kept,))
    ((verdict,),) = kept.of("verdict")
    assert verdict["best/pgd-3"] == found["best"].table()["pgd-3"].value
    assert ("adversarial-examples.png",) in kept.of("picture")


def test_a_tracker_that_fails_costs_a_warning_and_no_bit(tiny, tmp_path):
    whole = fit(tiny, tmp_path / "whole")
    kept = Kept()
    with pytest.warns(UserWarning, match=r"Broken failed \(ConnectionError: no network\): the run goes on without it"):
        run = fit(tiny, tmp_path / "r", track=(Broken(), kept))
    assert bits(run) == bits(whole)
    assert kept.of("verdict")


def test_an_interrupted_run_ends_its_trackers_and_begins_them_where_it_goes_on(tiny, tmp_path):
    kept = Kept()
    with pytest.raises(Interrupted):
        fit(tiny, tmp_path, track=kept, on_progress=stop_at(5))
    assert kept.told[-1] == ("end",)
    fit(tiny, tmp_path, track=kept)
    assert kept.of("begin")[-1][1] == 5
    steps = [step for values, step in kept.of("log") if "held_out/robust" in values]
    assert steps == [5, 10, 15]


class Refused(Kept):
    def begin(self, run, step):
        raise RuntimeError("you are not logged in")


@pytest.mark.parametrize(
    ("track", "message"),
    [
        ("wandbb", "no tracker 'wandbb': did you mean wandb"),
        (Refused(), r"Refused cannot begin \(RuntimeError: you are not logged in\): leave it out"),
    ],
)
def test_a_tracker_that_cannot_begin_is_a_sentence(track, message, tiny, tmp_path):
    with pytest.raises(UserError, match=message):
        fit(tiny, tmp_path, track=track)


def test_a_tracker_that_is_not_installed_is_a_sentence(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"this tracker comes from wandb, .*: pip install 'sparring\[wandb\]'"):
        fit(tiny, tmp_path, track="wandb")


def test_only_runs_are_tracked_from_the_shell(tmp_path, capsys):
    (tmp_path / "w.safetensors").write_bytes(b"")
    command = ["evaluate", "mymodels:build", "--data", "digits", "--threat", "linf:0.1", "--track", "wandb"]
    assert shell(command) == 2
    assert "--track shows the results of a run beside its training" in capsys.readouterr().err


def has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def interrupted_and_whole(name, tiny, folder):
    """A run that is interrupted, goes on and is evaluated, with the tracker of this name."""
    recipe = learning(tiny)
    with pytest.raises(Interrupted):
        fit(recipe, folder, track=name, on_progress=stop_at(7))
    run = fit(recipe, folder, track=name)
    evaluate_run(run, recipe, track=name)
    return run


@pytest.mark.skipif(not has("wandb"), reason="wandb is not installed")
def test_wandb_offline_keeps_a_run_under_one_id(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    run = interrupted_and_whole("wandb", tiny, tmp_path / "mine")
    sessions = list((tmp_path / "wandb").glob("offline-run-*"))
    assert sessions, "one for each start, unless two began in the same second"
    assert {path.name.split("-")[3] for path in sessions} == {run.tracked()["wandb"]}
    assert all(list(path.glob("*.wandb")) for path in sessions)
    assert list((tmp_path / "wandb").rglob("learning-curve*.png"))


def wandb_rows(path):
    """The rows that a session logged: protocol buffers in a log of blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:  # the rest of a block is too short for a header
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", raw[at : at + 7])
        record += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            items = Record.FromString(record).history.item
            if items:
                yield {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
            record = b""


@pytest.mark.skipif(not has("wandb"), reason="wandb is not installed")
def test_wandb_keeps_the_steps_of_a_run_that_went_back(tiny, tmp_path, monkeypatch):
    """Its own steps only rise, and it dropped what a rescued or resumed run logged for steps that it had seen."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    tracker = WandB()
    tracker.begin(fit(tiny, tmp_path / "mine"), 0)
    import wandb

    kept = Path(wandb.run.dir).parent  # in the folder where the first run of this process was
    wanted = [(1, 3.0), (2, 9.0), (1, 2.0), (2, 1.0)]
    for step, loss in wanted:
        tracker.log({"loss": loss}, step)
    tracker.end()
    (path,) = kept.glob("*.wandb")

    def rows():
        return [(row["step"], row["loss"]) for row in wandb_rows(path) if "loss" in row]

    until = time.monotonic() + 10
    while rows() != wanted and time.monotonic() < until:  # another process writes them
        time.sleep(0.1)
    assert rows() == wanted


@pytest.mark.skipif(not has("mlflow"), reason="mlflow is not installed")
def test_mlflow_keeps_a_run_in_files(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    run = interrupted_and_whole("mlflow", tiny, tmp_path / "mine")
    from mlflow import MlflowClient

    client = MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("sparring").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["epochs"] == "3"
    assert found.data.params["method.attack.steps"] == "2"
    rows = {row["step"]: row["held_out"]["clean"] for row in run.metrics() if "held_out" in row}
    shown = client.get_metric_history(found.info.run_id, "held_out/clean")
    assert {each.step: each.value for each in shown} == rows
    assert "trained 15 steps" in found.data.tags["outcome"]
    assert float(found.data.tags["best/pgd-3"]) <= float(found.data.tags["best/clean"])
    pictures = {each.path for each in client.list_artifacts(found.info.run_id)}
    assert {"learning-curve.png", "adversarial-examples.png"} <= pictures


@pytest.mark.skipif(not has("trackio"), reason="trackio is not installed")
def test_trackio_keeps_a_run(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    run = interrupted_and_whole("trackio", tiny, tmp_path / "mine")
    assert run.tracked()["trackio"].startswith("mine-")
    assert list((tmp_path / "store").rglob("*.db")) or list((tmp_path / "store").rglob("*.parquet"))


@pytest.mark.skipif(not has("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_keeps_pictures_and_the_verdict(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = interrupted_and_whole("tensorboard", tiny, tmp_path / "mine")
    tags = EventAccumulator(str(run.tensorboard)).Reload().Tags()
    assert {"learning-curve", "adversarial-examples"} <= set(tags["images"])
    assert any(tag.startswith("verdict") for tag in tags["tensors"])
    run.clear()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [".lock"], "what was shown is deleted with the run"


def test_the_names_in_the_help_are_those_there_are():
    from typing import get_args, get_type_hints

    from sparring.cli.train import _TrainOptions

    (choices, _) = get_args(get_type_hints(_TrainOptions)["track"])
    assert sorted(get_args(choices)) == sorted(trackers.TRACKERS)


def test_the_recipe_is_told_flat():
    flat = dict(trackers._flat({"a": {"$": "PGD", "b": [1, {"c": 2}]}, "d": None, "e": 0.5}))
    assert flat == {"a.is": "PGD", "a.b.0": 1, "a.b.1.c": 2, "e": 0.5}
    assert json.dumps(flat)
