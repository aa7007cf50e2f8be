"""Leases on work in a shared folder: one winner, signs of life, and work that is taken over from the dead."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from sparring import UserError
from sparring.records import leases as module
from sparring.records.leases import PATIENCE, Leases
from sparring.records.locking import locked


@pytest.fixture
def leases(tmp_path):
    return Leases(tmp_path / "leases", "ours")


def elsewhere(leases, name, number=1, heard=0.0, **changed):
    """Make an attempt look like one of another machine, last heard of so many seconds ago."""
    path = leases.folder / name / f"{number}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "place": "another machine", **changed}))
    os.utime(path, (leases.now() - heard,) * 2)


def script(code, folder, *, check):
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=check)


def test_of_two_who_know_the_same_one_gets_the_lease(leases):
    assert leases.last("job") is None
    with leases.take("job", None, "cuda:1"):
        assert leases.take("job", None) is None
        last = leases.last("job")
        assert last.at_work(leases.now) and last.of("ours") and not last.of("theirs")
        assert f"process {os.getpid()} on " in str(last) and "(cuda:1) since" in str(last)
        assert last.plain()["process"] == os.getpid()


@pytest.mark.parametrize("state", ["interrupted", "done", "failed"])
def test_what_became_of_an_attempt_is_there_when_it_has_ended(leases, state):
    with leases.take("job", None) as lease:
        if state != "interrupted":
            lease.end(state, "because")
        assert leases.last("job").state == "working"
    last = leases.last("job")
    assert last.state == state and not last.at_work(leases.now)
    assert last.why == ("" if state == "interrupted" else "because")
    assert leases.take("job", None) is None, "who has not seen that attempt begins nothing"
    assert leases.take("job", last) is not None
    assert leases.numbers(["job", "other"]) == {"job": 2, "other": 0}


def test_a_process_of_this_machine_that_was_killed_is_missed_at_once(leases):
    code = """
        import os, signal, sys
        from pathlib import Path
        from sparring.records.leases import Leases
        with Leases(Path(sys.argv[1])).take("job", None):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), leases.folder]) as process:
        if sys.platform == "linux":  # even before its parent takes note
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert not leases.last("job").at_work(leases.now)
    assert process.returncode == -signal.SIGKILL
    last = leases.last("job")
    assert last.state == "working" and not last.at_work(leases.now)


def test_a_later_process_of_the_same_number_is_not_taken_for_the_one_that_leased(leases):
    with leases.take("job", None):
        path = leases.folder / "job" / "1.json"
        assert leases.last("job").at_work(leases.now)
        path.write_text(json.dumps({**json.loads(path.read_text()), "born": "in another age"}))
        assert not leases.last("job").at_work(leases.now)


def test_a_process_elsewhere_counts_as_dead_when_it_was_silent_too_long(leases):
    with leases.take("job", None):
        elsewhere(leases, "job", heard=PATIENCE / 2, process=1)
        assert leases.last("job").at_work(leases.now), "whatever the process of that number is here"
        elsewhere(leases, "job", heard=PATIENCE * 2, process=os.getpid())
        assert not leases.last("job").at_work(leases.now)


def test_silence_is_measured_by_the_clock_of_the_files(leases, monkeypatch):
    with leases.take("job", None):
        elsewhere(leases, "job")
        monkeypatch.setattr(time, "time", lambda: 1e10)
        assert leases.last("job").at_work(leases.now)


def test_an_attempt_whose_file_is_not_complete_counts_as_begun(leases):
    with leases.take("job", None):
        path = leases.folder / "job" / "1.json"
        path.write_bytes(b'{"state": "wor')
        last = leases.last("job")
        assert last.at_work(leases.now) and str(last) == "an unknown process"
        os.utime(path, (leases.now() - 2 * PATIENCE,) * 2)
        assert not leases.last("job").at_work(leases.now)


def test_who_works_gives_signs_of_life(leases, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.01)
    with leases.take("job", None):
        elsewhere(leases, "job", heard=2 * PATIENCE)
        for _ in range(1000):
            if leases.last("job").at_work(leases.now):
                break
            time.sleep(0.01)
        assert leases.last("job").at_work(leases.now)


def test_who_was_thought_dead_ends_when_it_finds_out(leases):
    found = script(
        """
        import sys, time
        from pathlib import Path
        from sparring.records import leases
        leases.BEAT = 0.01
        mine = leases.Leases(Path(sys.argv[1]))
        with mine.take("job", None):
            with mine.take("job", mine.last("job")):
                time.sleep(60)
        """,
        leases.folder,
        check=False,
    )
    assert found.returncode == 1
    assert "another process has taken over job" in found.stderr
    assert leases.last("job").number == 2


@pytest.mark.slow
def test_a_stale_lease_is_taken_over_by_one_of_many(leases):
    """In each of 20 rounds, 16 processes that all find the same lease stale try at the same moment."""
    with leases.take("job", None):
        elsewhere(leases, "job", heard=2 * PATIENCE)
        found = script(
            """
            import os, sys
            from pathlib import Path
            from sparring.records.leases import Leases
            leases = Leases(Path(sys.argv[1]))
            for _ in range(20):
                last = leases.last("job")
                assert last.state == "working" and not last.at_work(leases.now)
                start, go = os.pipe()
                children = []
                for _ in range(16):
                    child = os.fork()
                    if child == 0:
                        os.close(go)
                        os.read(start, 1)  # until all have been made
                        os._exit(leases.take("job", last) is not None)
                    children.append(child)
                os.close(start)
                os.close(go)
                print(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
            """,
            leases.folder,
            check=True,
        )
    assert found.stdout.split() == ["1"] * 20
    assert leases.last("job").number == 21
    assert leases.deaths("job", 0) == 19, "the first was ended here"
    assert leases.deaths("job", 15) == 5


@pytest.mark.parametrize(("code", "refused"), [(errno.ENOLCK, False), (errno.EWOULDBLOCK, True)])
def test_a_file_system_that_keeps_no_locks_is_told_from_a_lock_that_another_has(code, refused, tmp_path, monkeypatch):
    import fcntl

    def flock(handle, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    if refused:
        with pytest.raises(UserError, match="is in use"), locked(tmp_path):
            pass
    else:
        with locked(tmp_path):
            pass
