"""The processes of one command: a device for each, and what happens when they die, fail or are stopped."""

import json
import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from sparring import UserError
from sparring.records.leases import Leases
from sparring.studies.processes import spread, work_together
from sparring.studies.sharing import Work

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("device", "workers", "jobs", "gpus", "expected"),
    [
        ("auto", None, 9, 4, ("cuda:0", "cuda:1", "cuda:2", "cuda:3")),
        ("cuda", None, 9, 2, ("cuda:0", "cuda:1")),
        ("auto", None, 2, 4, ("cuda:0", "cuda:1")),
        ("auto", 3, 9, 2, ("cuda:0", "cuda:1", "cuda:0")),
        ("auto", 1, 9, 4, ("cuda:0",)),
        ("cuda:2", None, 9, 4, ("cuda:2",)),
        ("cuda:2", 2, 9, 4, ("cuda:2", "cuda:2")),
        ("auto", None, 9, 0, ("cpu",) * 6),
        ("cpu", None, 9, 4, ("cpu",) * 6),
        ("cpu", None, 0, 0, ("cpu",)),
        ("mps", None, 9, 0, ("mps",)),
    ],
)
def test_workers_are_spread_over_the_gpus(device, workers, jobs, gpus, expected):
    assert spread(device, workers, jobs, gpus, cores=6) == expected


@dataclass(frozen=True)
class Noted:
    """A job whose file names the process and the device that did it."""

    path: Path

    @property
    def name(self):
        return self.path.stem

    def done(self):
        return self.path.exists()


def note(job, device):
    job.path.write_text(json.dumps([os.getpid(), device]))
    return "noted"


def die(times, job, device):
    """Die so many times before the job is done."""
    with job.path.with_suffix(".deaths").open("a") as file:
        file.write("x")
    if len(job.path.with_suffix(".deaths").read_text()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return note(job, device)


def fail(job, device):
    raise ZeroDivisionError("by zero")


def run(folder, how, devices=("cpu", "cpu")):
    """Do a job for each function, and return what was said."""
    jobs = [Noted(folder / f"{number}.json") for number in range(len(how))]
    works, leases, said = [Work(job, partial(do, job)) for job, do in zip(jobs, how, strict=True)], lease(folder), []
    work_together(works, leases, leases.numbers(job.name for job in jobs), devices, lambda *told: said.append(told))
    return said


def lease(folder):
    return Leases(folder / "leases", "ours")


def meet(folder, number, device):
    """Wait until as many others have come here."""
    (folder / f"{device}.here").touch()
    while len(list(folder.glob("*.here"))) < number:
        pass
    return device


def both(folder, job, device):
    return note(job, meet(folder, 2, device))


def test_each_process_works_on_its_own_device(tmp_path):
    said = run(tmp_path, [partial(both, tmp_path)] * 2, ("cuda:0", "cuda:1"))
    done = [json.loads((tmp_path / f"{number}.json").read_text()) for number in (0, 1)]
    assert {device for _, device in done} == {"cuda:0", "cuda:1"}
    assert len({process for process, _ in done} | {os.getpid()}) == 3
    assert sorted(said) == [("0", "noted"), ("1", "noted")]


def test_the_work_of_a_process_that_was_killed_is_taken_over(tmp_path):
    said = run(tmp_path, [partial(die, 1), note])
    assert [text for name, text in said if not name] == [
        "a training process has died (exit code -9); others take over its work"
    ]
    assert sorted(name for name, _ in said if name) == ["0", "1"]
    assert lease(tmp_path).last("0").number == 2
    assert lease(tmp_path).last("1").number == 1


def test_the_death_of_all_processes_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"every training process died.* fewer --workers"):
        run(tmp_path, [partial(die, 2)] * 2)


def test_a_mistake_in_code_is_shown_with_its_place(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)in fail.*ZeroDivisionError: by zero"):
        run(tmp_path, [fail, note])
    assert lease(tmp_path).last("0").why == "ZeroDivisionError: by zero"
