"""Runs by several processes: killed, stopped, resumed by another number of them; and what is refused."""

import json
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


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The folder in which two processes have played all scenes, and what they said.

    torchrun starts them twice, since one is killed in the first scene.
    """
    folder = tmp_path_factory.mktemp("scenes")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    scenes = "killed,whole,stopped,evaluated,skipping,wrong"
    done = subprocess.run(
        [*launcher, "--max-restarts", "1", str(HERE / "scenes.py"), str(folder), scenes],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def near(a, b):
    one, other = (load_file(run.weights("last")) for run in (a, b))
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def test_runs_that_are_killed_stopped_and_resumed_by_another_number_end_alike(played, tmp_path):
    folder, said = played
    alone = fit(recipe(), tmp_path / "alone")
    whole, stopped = RunFolder(folder / "whole"), RunFolder(folder / "stopped")
    assert near(alone, whole) < 1e-5, "two processes train as one, up to the rounding of sums"
    assert alone.status()["best"] == pytest.approx(whole.status()["best"], abs=0.01)
    rows = [[row["step"] for row in run.metrics()] for run in (alone, whole)]
    assert rows[0] == rows[1], "one of the processes writes"
    ends = [line for line in said.splitlines() if "step 6/6" in line and "held-out" in line]
    assert len(ends) == 2, "one of the processes speaks, in each of the two runs that end"
    ours, theirs = (run.read_memory().adversarial_loss for run in (alone, whole))
    assert ours.shape == theirs.shape
    assert abs(ours - theirs).max() < 0.01, "the history is gathered by index"
    assert int((folder / "stopped-at").read_text()) in (2, 3, 4)
    fit(recipe(), stopped.path)  # one process goes on with what two have begun
    assert stopped.finished()
    assert near(stopped, whole) < 1e-5
    assert bits(RunFolder(folder / "killed")) == bits(whole), "a killed process loses nothing, to the bit"


def test_a_layer_that_one_process_leaves_out_is_updated_on_both(played):
    told = [json.loads((played[0] / f"skipping-{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    (first, second, unused), weights = told[0]
    assert (first, second, unused) == (1.5, 0.5, None)
    assert weights == pytest.approx([0.85, 0.95, 1.0])


def test_two_processes_evaluate_as_one(played):
    whole = RunFolder(played[0] / "whole")
    ours, table = whole.read_flags("last"), whole.evaluation()["last"]
    assert run(["evaluate", str(whole.path), "--attack", "apgd"]) == 0
    theirs = whole.read_flags("last")
    assert ours.robust.keys() == theirs.robust.keys() == {"clean", "apgd"}
    assert all((ours.robust[name] == theirs.robust[name]).all() for name in ours.robust), "verdicts of one process"
    again = whole.evaluation()["last"]
    scores = [each["summary"].pop("calibration") for each in (table, again)]
    assert table == again
    assert scores[1] == pytest.approx(scores[0], rel=1e-5), "means over other batches, up to rounding"


def test_what_would_be_wrong_on_several_processes_is_refused_on_all_of_them(played):
    said = dict(line.split(": ", 1) for line in (played[0] / "said").read_text().splitlines())
    assert "the loss term 'ce' became nan at step 2" in said["nan"]
    assert "the processes have different weights" in said["alone"]
    assert "sparring.training.backward" in said["alone"]
    assert "wrapped in DistributedDataParallel" in said["wrapped"]
    assert "Derived is derived from batch norm and has a forward of its own" in said["derived"]
    assert "holds files that are not of a run" in said["folder"]
    assert "a batch of 1 images cannot be divided" in said["few"]
