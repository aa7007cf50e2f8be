"""Runs by several processes: killed, stopped, resumed by another number of them; and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import bits
from safetensors.torch import load_file
from scenes import recipe

from sparring import fit
from sparring.cli import run
from sparring.records.run_folder import RunFolder

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def torchrun(folder, scenes, *options, processes=2):
    """Start processes as torchrun does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    paths = os.pathsep.join([str(HERE), *sys.path])
    done = subprocess.run(
        [*command, *options, str(HERE / "scenes.py"), str(folder), scenes],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def near(a, b):
    one, other = (load_file(run.weights("last")) for run in (a, b))
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def test_runs_that_are_killed_stopped_and_resumed_by_another_number_end_alike(tmp_path):
    said = torchrun(tmp_path, "whole,stopped,evaluated")
    alone = fit(recipe(), tmp_path / "alone")
    whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    assert near(alone, whole) < 1e-5, "two processes train as one, up to the rounding of sums"
    assert alone.status()["best"] == pytest.approx(whole.status()["best"], abs=0.01)
    rows = [[row["step"] for row in run.metrics()] for run in (alone, whole)]
    assert rows[0] == rows[1], "one of the processes writes"
    assert said.count("epoch 2/2") == 1, "one of the processes speaks"
    ours, theirs = (run.read_memory().adversarial_loss for run in (alone, whole))
    assert ours.shape == theirs.shape
    assert abs(ours - theirs).max() < 0.01, "the history is gathered by index"
    assert int((tmp_path / "stopped-at").read_text()) in (2, 3, 4)
    fit(recipe(), tmp_path / "stopped")  # one process goes on with what two have begun
    assert stopped.finished()
    assert near(stopped, whole) < 1e-5
    ours, table = whole.read_flags("last"), whole.evaluation()["last"]
    assert run(["evaluate", str(whole.path), "--attack", "apgd"]) == 0
    theirs = whole.read_flags("last")
    assert ours.robust.keys() == theirs.robust.keys() == {"clean", "apgd"}
    assert all((ours.robust[name] == theirs.robust[name]).all() for name in ours.robust), "verdicts of one process"
    assert table == whole.evaluation()["last"]
    torchrun(tmp_path, "killed", "--max-restarts", "1")
    assert bits(RunFolder(tmp_path / "killed")) == bits(whole), "a killed process loses nothing, to the bit"


def test_what_would_be_wrong_on_several_processes_is_refused_on_all_of_them(tmp_path):
    torchrun(tmp_path, "wrong")
    said = dict(line.split(": ", 1) for line in (tmp_path / "said").read_text().splitlines())
    assert "the loss term 'ce' became nan at step 2" in said["nan"]
    assert "the processes have different weights" in said["alone"]
    assert "sparring.training.backward" in said["alone"]
    assert "wrapped in DistributedDataParallel" in said["wrapped"]
    assert "Derived is derived from batch norm and has a forward of its own" in said["derived"]
    assert "holds files that are not of a run" in said["folder"]
    assert "a batch of 1 images cannot be divided" in said["few"]
