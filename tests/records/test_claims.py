"""Claims on work in a shared folder: one winner, signs of life, and work that is taken over from the dead."""

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
from sparring.records import claims as module
from sparring.records.claims import PATIENCE, Claims
from sparring.records.locking import locked


@pytest.fixture
def claims(tmp_path):
    return Claims(tmp_path / "claims", "ours")


def elsewhere(claims, name, number=1, heard=0.0, **changed):
    """Make an attempt look like one of another machine, last heard of so many seconds ago."""
    path = claims.folder / name / f"{number}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "place": "another machine", **changed}))
    os.utime(path, (claims.now() - heard,) * 2)


def script(code, folder, *, check):
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=check)


def test_of_two_who_know_the_same_one_gets_the_claim(claims):
    assert claims.last("job") is None
    with claims.take("job", None, "cuda:1"):
        assert claims.take("job", None) is None
        last = claims.last("job")
        assert last.at_work(claims.now) and last.of("ours") and not last.of("theirs")
        assert f"process {os.getpid()} on " in str(last) and "(cuda:1) since" in str(last)
        assert last.plain()["process"] == os.getpid()


@pytest.mark.parametrize("state", ["interrupted", "done", "failed"])
def test_what_became_of_an_attempt_is_there_when_it_has_ended(claims, state):
    with claims.take("job", None) as claim:
        if state != "interrupted":
            claim.end(state, "because")
        assert claims.last("job").state == "working"
    last = claims.last("job")
    assert last.state == state and not last.at_work(claims.now)
    assert last.why == ("" if state == "interrupted" else "because")
    assert claims.take("job", None) is None, "who has not seen that attempt begins nothing"
    assert claims.take("job", last) is not None
    assert claims.numbers(["job", "other"]) == {"job": 2, "other": 0}


def test_a_process_of_this_machine_that_was_killed_is_missed_at_once(claims):
    code = """
        import os, signal, sys
        from pathlib import Path
        from sparring.records.claims import Claims
        with Claims(Path(sys.argv[1])).take("job", None):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), claims.folder]) as process:
        if sys.platform == "linux":  # even before its parent takes note
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert not claims.last("job").at_work(claims.now)
    assert process.returncode == -signal.SIGKILL
    last = claims.last("job")
    assert last.state == "working" and not last.at_work(claims.now)


def test_a_later_process_of_the_same_number_is_not_taken_for_the_one_that_claimed(claims):
    with claims.take("job", None):
        path = claims.folder / "job" / "1.json"
        assert claims.last("job").at_work(claims.now)
        path.write_text(json.dumps({**json.loads(path.read_text()), "born": "in another age"}))
        assert not claims.last("job").at_work(claims.now)


def test_a_process_elsewhere_counts_as_dead_when_it_was_silent_too_long(claims):
    with claims.take("job", None):
        elsewhere(claims, "job", heard=PATIENCE / 2, process=1)
        assert claims.last("job").at_work(claims.now), "whatever the process of that number is here"
        elsewhere(claims, "job", heard=PATIENCE * 2, process=os.getpid())
        assert not claims.last("job").at_work(claims.now)


def test_silence_is_measured_by_the_clock_of_the_files(claims, monkeypatch):
    with claims.take("job", None):
        elsewhere(claims, "job")
        monkeypatch.setattr(time, "time", lambda: 1e10)
        assert claims.last("job").at_work(claims.now)


def test_an_attempt_whose_file_is_not_complete_counts_as_begun(claims):
    with claims.take("job", None):
        path = claims.folder / "job" / "1.json"
        path.write_bytes(b'{"state": "wor')
        last = claims.last("job")
        assert last.at_work(claims.now) and str(last) == "an unknown process"
        os.utime(path, (claims.now() - 2 * PATIENCE,) * 2)
        assert not claims.last("job").at_work(claims.now)


def test_who_works_gives_signs_of_life(claims, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.01)
    with claims.take("job", None):
        elsewhere(claims, "job", heard=2 * PATIENCE)
        for _ in range(1000):
            if claims.last("job").at_work(claims.now):
                break
            time.sleep(0.01)
        assert claims.last("job").at_work(claims.now)


def test_who_was_thought_dead_ends_when_it_finds_out(claims):
    found = script(
        """
        import sys, time
        from pathlib import Path
        from sparring.records import claims
        claims.BEAT = 0.01
        mine = claims.Claims(Path(sys.argv[1]))
        with mine.take("job", None):
            with mine.take("job", mine.last("job")):
                time.sleep(60)
        """,
        claims.folder,
        check=False,
    )
    assert found.returncode == 1
    assert "another process has taken over job" in found.stderr
    assert claims.last("job").number == 2


def test_a_stale_claim_is_taken_over_by_one_of_many(claims):
    """In each of 20 rounds, 16 processes that all find the same claim stale try at the same moment."""
    with claims.take("job", None):
        elsewhere(claims, "job", heard=2 * PATIENCE)
        found = script(
            """
            import os, sys
            from pathlib import Path
            from sparring.records.claims import Claims
            claims = Claims(Path(sys.argv[1]))
            for _ in range(20):
                last = claims.last("job")
                assert last.state == "working" and not last.at_work(claims.now)
                start, go = os.pipe()
                children = []
                for _ in range(16):
                    child = os.fork()
                    if child == 0:
                        os.close(go)
                        os.read(start, 1)  # until all have been made
                        os._exit(claims.take("job", last) is not None)
                    children.append(child)
                os.close(start)
                os.close(go)
                print(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
            """,
            claims.folder,
            check=True,
        )
    assert found.stdout.split() == ["1"] * 20
    assert claims.last("job").number == 21
    assert claims.deaths("job", 0) == 19, "the first was ended here"
    assert claims.deaths("job", 15) == 5


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
