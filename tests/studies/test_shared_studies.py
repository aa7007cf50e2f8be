"""Commands that share one study: real processes, one of which is killed, and what the folder says meanwhile."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import bits

from sparring import UserError, fit
from sparring.cli import run as shell
from sparring.records import RunFolder
from sparring.studies import find
from sparring.studies.jobs import Plan, leases_of
from sparring.studies.running import run_study

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("shared_study.py")
NAME = f"{SCRIPT}:study"
TRAININGS = ("one-0", "one-1", "other-0", "other-1")
MIDDLE = ["interrupted", "running", "running", "waiting", "waiting", "waiting"]


def status(folder, capsys, *more):
    capsys.readouterr()
    assert shell(["study", NAME, "--scale", "smoke", "--status", "--out", str(folder), *more]) == 0
    return capsys.readouterr().out


def states(folder):
    plan = Plan.read(folder)
    return {} if plan is None else {job.name: state for job, state in plan.states(folder)}


@pytest.fixture(autouse=True)
def sketched(monkeypatch):
    """The figure of a study is an empty file."""
    monkeypatch.setattr("sparring.studies.writing.plot_study", lambda *args: args[-1].touch())


@pytest.fixture(scope="module")
def study():
    return find(NAME)("smoke")


@pytest.fixture(scope="module")
def shared(study, tmp_path_factory):
    """What was seen of three commands that share the study: in the middle, and at the end."""
    folder = tmp_path_factory.mktemp("shared")
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(folder)], stdout=subprocess.PIPE, text=True)
    for _ in range(20_000):
        middle = states(folder)
        killed = "at step 2" in [detail for _, detail, _ in middle.values()]  # and not a run that begins meanwhile
        if process.poll() is not None or (killed and sorted(state for state, *_ in middle.values()) == MIDDLE):
            break
        time.sleep(0.05)
    with pytest.raises(UserError) as refused:
        run_study(study, folder, scale="smoke", workers=1, overwrite=True)
    (folder / "go").touch()
    said, _ = process.communicate()
    return SimpleNamespace(folder=folder, middle=middle, refused=str(refused.value), **json.loads(said))


def test_commands_share_the_trainings_and_do_none_twice(shared):
    assert shared.codes == [-signal.SIGKILL, 0, 0]
    last = [leases_of(shared.folder).last(name) for name in TRAININGS]
    assert {each.state for each in last} == {"done"}
    assert {each.written["process"] for each in last} == {*shared.processes[1:]}, "both had something to do"
    assert sorted(each.number for each in last) == [1, 1, 1, 2]
    sessions = [len(RunFolder(shared.folder / "runs" / name).sessions()) for name in TRAININGS]
    assert sessions == [each.number for each in last]


def test_the_training_of_a_command_that_was_killed_goes_on_from_its_checkpoint(shared, study, tmp_path):
    [(name, state)] = [(name, each) for name, each in shared.middle.items() if each.state == "interrupted"]
    assert state.detail == "at step 2"
    recipe = study.arms[name.startswith("other")].seeded(int(name[-1]))
    whole, killed = fit(recipe, tmp_path / "whole"), RunFolder(shared.folder / "runs" / name)
    assert bits(whole) == bits(killed) and bits(whole, "best") == bits(killed, "best")
    assert killed.metrics() == whole.metrics()


def test_what_all_trainings_are_needed_for_is_done_once(shared):
    leases = leases_of(shared.folder)
    assert [leases.last(name).number for name in ("_together-0", "_together-1", "_tables-4")] == [1, 1, 1]
    assert [(shared.folder / f"together-{seed}.times").read_text() for seed in (0, 1)] == ["x", "x"]
    assert json.loads((shared.folder / "study.json").read_text())["verdicts"]


def test_every_command_waits_for_the_end_and_says_for_what(shared):
    logs = [(shared.folder / f"log-{process}").read_text() for process in shared.processes]
    assert all(log.startswith("Shared: 4 trainings, 0 of them done; 1 at a time\n") for log in logs[1:])
    assert any("\n6/6 " in log for log in logs), "who does the last counts what the others did"


def test_nothing_is_overwritten_while_others_work(shared):
    assert "is in use: process" in shared.refused and " is at work on " in shared.refused
    assert "Wait for its end, or stop it" in shared.refused


def test_the_status_says_what_is_done_where_and_what_is_not(shared, capsys):
    assert sorted(state for state, *_ in shared.middle.values()) == MIDDLE
    running = [state for state in shared.middle.values() if state.state == "running"]
    assert sorted(state.attempt.written["process"] for state in running) == sorted(shared.processes[1:])
    assert all(f"process {state.attempt.written['process']} on " in state.detail for state in running)
    after = json.loads(status(shared.folder, capsys, "--json"))
    assert (after["study"], after["scale"]) == ("shared", "smoke")
    assert [(job["arm"], job["seed"], job["state"]) for job in after["jobs"]] == [
        *((arm, seed, "done") for arm in ("one", "other") for seed in (0, 1)),
        *(("together", seed, "done") for seed in (0, 1)),
    ]
    assert "6 done" in " ".join(status(shared.folder, capsys).split())


def test_the_status_needs_no_torch_and_touches_nothing(shared):
    before = {path: path.stat().st_mtime_ns for path in shared.folder.rglob("*")}
    code = (
        "import sys; from sparring.cli import run; "
        f"assert run(['study', 'shared', '--status', '--out', {str(shared.folder)!r}]) == 0; "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "other" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in shared.folder.rglob("*")} == before


def test_the_status_of_a_study_that_was_not_begun_or_is_another_one(shared, tmp_path, capsys):
    before = json.loads(status(tmp_path / "new", capsys, "--json"))
    assert {job["state"] for job in before["jobs"]} == {"waiting"}
    assert shell(["study", NAME, "--scale", "smoke", "--status", "--out", str(tmp_path / "new")]) == 0
    assert "new holds no study yet, and these are all of its trainings" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert shell(["study", "tricks", "--status", "--out", str(shared.folder)]) == 2
    assert "holds the study shared, not tricks" in capsys.readouterr().err


def test_a_failure_is_in_the_status_until_it_is_tried_again(study, tmp_path, capsys):
    (tmp_path / "go").touch()
    (tmp_path / "runs" / "one-1").mkdir(parents=True)
    (tmp_path / "runs" / "one-1" / "thesis.txt").touch()
    with pytest.raises(UserError, match=r"1 of 6 trainings failed, the others are done. The first: one, seed 1: .*"):
        run_study(study, tmp_path, scale="smoke", workers=1)
    jobs = {(job["arm"], job["seed"]): job for job in json.loads(status(tmp_path, capsys, "--json"))["jobs"]}
    assert jobs["one", 1]["state"] == "failed"
    assert "holds files that are not of a run" in jobs["one", 1]["detail"]
    assert jobs["together", 0]["state"] == "done" and jobs["together", 1]["state"] == "waiting"
    (tmp_path / "runs" / "one-1" / "thesis.txt").unlink()
    run_study(study, tmp_path, scale="smoke", workers=1)
    assert "6 done" in status(tmp_path, capsys)


def test_a_folder_that_cannot_be_one_is_refused_before_anything_is_done(study, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file cannot be the folder of a study: File exists"):
        run_study(study, tmp_path / "file", scale="smoke", workers=1)


def test_trainings_of_another_study_that_began_meanwhile_are_not_taken_for_ones_own(study, tmp_path):
    """Another command has found the same empty folder, and trains other recipes there."""
    (tmp_path / "go").touch()
    arms = tuple(replace(arm, recipe=replace(arm.recipe, batch_size=50)) for arm in study.arms)
    other = replace(study, seeds=1, arms=arms, measurements=(), joint=None)

    def log(text):
        if text.startswith("Shared: ") and not (tmp_path / "table.md").exists():
            run_study(other, tmp_path, scale="smoke", workers=1)

    mine = replace(other, arms=study.arms)
    with pytest.raises(UserError, match=r"holds a training of another recipe \(batch_size: 50 -> 40\)"):
        run_study(mine, tmp_path, scale="smoke", workers=1, log=log)
