"""How workers share jobs: none is done twice, none is left, failures are told apart from work in progress."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sparring import UserError
from sparring.records.leases import Leases
from sparring.studies import sharing
from sparring.studies.sharing import Work, end_of, work_through


@dataclass
class Counted:
    """A job that is done once its file is there, with a line for each time that it was done."""

    path: Path
    fails: list[Exception] = field(default_factory=list)

    @property
    def name(self):
        return self.path.stem

    def __str__(self):
        return f"job {self.name}"

    def done(self):
        return self.path.exists()

    def do(self, device):
        if self.fails:
            raise self.fails.pop()
        with self.path.open("a") as file:
            file.write(f"{device}\n")
        return "well"


@pytest.fixture
def leases(tmp_path):
    return Leases(tmp_path / "leases", "ours")


def works(folder, *names, **given):
    return [Work(job, job.do, **given) for job in (Counted(folder / f"{name}.txt") for name in names)]


def worked(jobs, leases, before=None, device="cpu"):
    """Work through the jobs, and return what was said."""
    said = []
    before = before or leases.numbers(work.name for work in jobs)
    work_through(jobs, leases, before, device, lambda name, text: said.append((name, text)))
    return said


def test_workers_do_each_job_once(tmp_path):
    names, said, together = [str(number) for number in range(20)], [], threading.Barrier(4)

    def worker(number):
        leases, jobs = Leases(tmp_path / "leases", str(number)), works(tmp_path, *names)
        together.wait()
        said.extend(worked(jobs, leases, dict.fromkeys(names, 0), f"cuda:{number}"))

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in said if name) == sorted(names)
    assert [len((tmp_path / f"{name}.txt").read_text().split()) for name in names] == [1] * 20
    last = [Leases(tmp_path / "leases").last(name) for name in names]
    assert {(attempt.number, attempt.state) for attempt in last} == {(1, "done")}


def test_what_comes_after_others_waits_for_them(tmp_path, leases):
    first = works(tmp_path, "a", "b")
    last = works(tmp_path, "c", after=("a", "b"), needs_all=True)
    assert [name for name, _ in worked([*last, *first], leases)] == ["a", "b", "c"]


def test_what_needs_all_is_left_out_where_one_failed_and_what_does_not_is_tried(tmp_path, leases):
    first = works(tmp_path, "a", "b")
    first[0].job.fails.append(UserError("no data"))
    anyway, needing = works(tmp_path, "c", after=("a", "b")), works(tmp_path, "d", after=("a", "b"), needs_all=True)
    last = works(tmp_path, "e", after=("d",), needs_all=True)
    said = worked([*first, *anyway, *needing, *last], leases)
    assert said == [("a", "failed: no data"), ("b", "well"), ("c", "well")]
    assert leases.last("a").state == "failed" and leases.last("a").why == "no data"


def test_a_failure_is_tried_again_by_a_later_command_and_not_by_those_that_saw_it(tmp_path, leases):
    jobs = works(tmp_path, "a")
    before = leases.numbers("a")
    jobs[0].job.fails.append(UserError("no data"))
    assert worked(jobs, leases, before) == [("a", "failed: no data")]
    assert worked(jobs, Leases(leases.folder, "theirs"), before) == [], "it had begun before that"
    assert worked(jobs, Leases(leases.folder, "later")) == [("a", "well")]


def test_a_mistake_in_code_is_raised_and_keeps_others_from_making_it(tmp_path, leases):
    jobs = works(tmp_path, "a", "b")
    jobs[0].job.fails.append(ZeroDivisionError("by zero"))
    before = leases.numbers("ab")
    with pytest.raises(ZeroDivisionError):
        worked(jobs, leases, before)
    assert leases.last("a").why == "ZeroDivisionError: by zero"
    assert worked(jobs, Leases(leases.folder, "theirs"), before) == [("b", "well")]


def test_a_job_that_was_stopped_goes_on_elsewhere(tmp_path, leases):
    jobs = works(tmp_path, "a")
    before = leases.numbers("a")
    jobs[0].job.fails.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        worked(jobs, leases, before)
    assert leases.last("a").state == "interrupted"
    assert worked(jobs, Leases(leases.folder, "theirs"), before) == [("a", "well")]


def test_what_others_work_at_is_waited_for_by_name(tmp_path, leases):
    jobs, theirs = works(tmp_path, "a", "b"), Leases(leases.folder, "theirs")
    heard = threading.Event()

    def tell(name, text):
        said.append((name, text))
        if not name:
            heard.set()

    said, held = [], theirs.take("a", None, "cuda:3")
    worker = threading.Thread(target=work_through, args=(jobs, leases, dict.fromkeys("ab", 0), "cpu", tell))
    with held:
        worker.start()
        assert heard.wait(30)
        jobs[0].job.do("theirs")
        held.end("done")
    worker.join()
    assert said[0] == ("b", "well")
    assert "waiting for job a (process" in said[1][1] and "(cuda:3) since" in said[1][1]
    assert {name for name, _ in said} == {"b", ""}


def test_what_a_process_of_the_same_command_does_is_not_announced(tmp_path, leases, monkeypatch):
    jobs, said, looked = works(tmp_path, "a"), [], threading.Event()
    monkeypatch.setattr(sharing.time, "sleep", lambda seconds: looked.set())
    with leases.take("a", None) as held:
        worker = threading.Thread(target=lambda: said.extend(worked(jobs, leases, {"a": 0})))
        worker.start()
        assert looked.wait(30)
        jobs[0].job.do("cpu")
        held.end("done")
    worker.join()
    assert said == []


def test_a_job_of_which_three_processes_died_has_failed(tmp_path, leases):
    jobs = works(tmp_path, "a")
    for _ in range(3):
        leases.take("a", leases.last("a"))  # never ended
    for path in (leases.folder / "a").iterdir():
        path.write_text(path.read_text().replace('"born": "', '"born": "before '))
    [(_, text)] = worked(jobs, leases, {"a": 0})
    assert text.startswith("failed: its process died 3 times")
    assert worked(jobs, leases) == [("a", "well")], "a new command counts anew"


def test_a_job_that_somebody_works_at_is_not_looked_at_since_its_files_may_be_half_written(tmp_path, leases):
    work = works(tmp_path, "a")[0]
    with leases.take("a", None):
        work.job.path.touch()
        assert end_of(work, leases.last("a"), {"a": 0}) == ""
    assert end_of(work, leases.last("a"), {"a": 0}) == "done"


def test_a_job_is_not_looked_at_before_those_that_it_comes_after_have_ended(tmp_path, leases):
    first, last = works(tmp_path, "a", "b")
    after = Work(Hasty(last.job.path, other=first.job.path), last.do, after=("a",))
    assert [name for name, _ in worked([first, after], leases)] == ["a", "b"]


@dataclass
class Hasty(Counted):
    """A job that cannot be looked at before another is done."""

    other: Path = Path()

    def done(self):
        assert self.other.exists()
        return super().done()
