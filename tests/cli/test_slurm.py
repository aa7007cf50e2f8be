"""`sparring study --slurm`: workers on a cluster, with submitit's executor for this machine."""

import json
import sys
import time
from pathlib import Path

import pytest

from sparring.cli import run as shell
from sparring.cli import slurm

STUDY = f"{Path(__file__).parent.parent / 'studies' / 'shared_study.py'}:study"


# a worker outlives the command that submits it
outlived = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


def ended(logs, number):
    """Wait until so many workers have ended, and return what they wrote to their logs."""
    for _ in range(1200):
        if len(list(logs.glob("*_result.pkl"))) == number:
            break
        time.sleep(0.1)
    written = ["\n".join(path.read_text() for path in logs.glob(f"*_log.{kind}")) for kind in ("out", "err")]
    assert len(list(logs.glob("*_result.pkl"))) == number, written
    return written


@outlived
@pytest.mark.slow
def test_a_worker_does_the_study_while_the_command_that_submits_it_returns(tmp_path, capsys):
    pytest.importorskip("submitit")
    (tmp_path / "go").touch()
    given = ["study", STUDY, "--scale", "smoke", "--out", str(tmp_path)]
    submit = ["--slurm", "local", "--slurm-option", "timeout_min=10", "--slurm-option", "partition=any"]
    assert shell([*given, "--seeds", "1", *submit, "--workers", "1", "--device", "cpu"]) == 0
    assert "submitted 1 workers (" in (said := capsys.readouterr().out) and "--status --scale smoke --out" in said
    arms = json.loads((tmp_path / "plan.json").read_text())["arms"]
    assert {arm["seeds"] for arm in arms} == {1}, "so that its status can be seen at once"
    _, errors = ended(tmp_path / "slurm", 1)
    assert "Shared: 2 trainings, 0 of them done" in errors and "Traceback" not in errors
    assert shell([*given, "--status", "--json"]) == 0
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    assert [(job["state"], job["attempt"]["number"]) for job in jobs] == [("done", 1)] * 3
    assert (tmp_path / "table.md").exists()


@outlived
@pytest.mark.slow
def test_as_many_workers_are_submitted_as_are_asked_for_and_a_failure_is_in_the_log(tmp_path):
    pytest.importorskip("submitit")
    assert len(set(slurm.submit(["list", "nothing"], 2, tmp_path, cluster="local"))) == 2
    _, errors = ended(tmp_path, 2)
    assert errors.count("sparring: no list of 'nothing'") == 2
    assert errors.count("sparring list nothing ended with exit code 2: its log says why") >= 2


def test_without_submitit_it_is_said_how_to_install_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert shell(["study", STUDY, "--scale", "smoke", "--out", str(tmp_path / "s"), "--slurm"]) == 2
    assert "--slurm comes from submitit, which cannot be imported" in (said := capsys.readouterr().err)
    assert "pip install 'sparring[slurm]'" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["partition"], "--slurm-option 'partition' is not of the form KEY=VALUE"),
        (["cores=3"], "--slurm-option is not known (Unknown argument 'cores' for executor 'slurm'"),
        (["gpus_per_node=two"], "--slurm-option has a wrong value"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options, message, tmp_path, capsys):
    pytest.importorskip("submitit")
    given = [word for option in options for word in ("--slurm-option", option)]
    assert shell(["study", STUDY, "--scale", "smoke", "--out", str(tmp_path), "--slurm", "local", *given]) == 2
    assert message in capsys.readouterr().err


def test_where_there_is_no_slurm_it_is_said(tmp_path, capsys, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shell(["study", STUDY, "--scale", "smoke", "--out", str(tmp_path / "s"), "--slurm", "--workers", "1"]) == 2
    assert "give the command where sbatch works, or --slurm local" in capsys.readouterr().err


def test_options_of_jobs_without_jobs_are_refused(capsys):
    assert shell(["study", STUDY, "--slurm-option", "partition=gpu"]) == 2
    assert "--slurm-option says what SLURM jobs ask for: give --slurm, too" in capsys.readouterr().err


def test_options_are_named_as_slurm_names_them():
    assert [slurm._parameter(each) for each in ("partition=gpu", "slurm_qos=high", "gpus_per_node=2", "time=60")] == [
        ("slurm_partition", "gpu"),
        ("slurm_qos", "high"),
        ("gpus_per_node", 2),
        ("slurm_time", 60),
    ]
