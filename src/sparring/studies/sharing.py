"""Shares the jobs of a study among all processes that work in its folder, on one machine or on many. Needs no torch."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ..core.errors import UserError
from ..core.optional import first_line
from ..records.leases import Attempt, Lease, Leases

Before: TypeAlias = Mapping[str, int]
"""How many attempts at each job there were before a command: what failed in these is tried again by it."""
Tell: TypeAlias = Callable[[str, str], None]
"""Takes the name of a job that ended and what came out; or, with an empty name, what is waited for."""

_SHORTEST, _LONGEST = 0.1, 5.0  # seconds between two looks at what others do
_DEATHS = 3
_SHOWN = 3


class Shared(Protocol):
    """A job with a name, which says if it is done."""

    @property
    def name(self) -> str: ...

    def done(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Work:
    """A job and how to do it.

    Args:
        job: The job.
        do: Function of a device that does what is missing of the job, and says in words what came out.
        after: Names of the jobs that have to end before.
        needs_all: True if all of these have to succeed; False to do it even if some failed.
    """

    job: Shared
    do: Callable[[str], str]
    after: Collection[str] = ()
    needs_all: bool = False

    @property
    def name(self) -> str:
        """Name of the job."""
        return self.job.name


def end_of(work: Work, last: Attempt | None, before: Before) -> str:
    """Return how a job ended, given the newest attempt: "done", "failed" since a command began, or "" for neither."""
    if last is not None and last.state == "working":
        return ""  # its files may be half written
    if last is not None and last.number > before[work.name] and last.state in ("done", "failed"):
        return last.state
    return "done" if work.job.done() else ""


def work_through(
    works: Sequence[Work], leases: Leases, before: Before, device: str, tell: Tell, until: float = math.inf
) -> None:
    """Do what nobody else does, in order, until all jobs have ended, here or elsewhere.

    What others do is waited for, and taken over if their process dies. Failures are recorded, not raised; other
    exceptions than `UserError` are both.

    Args:
        works: The jobs, those that others come after first.
        leases: The leases on them.
        before: How many attempts at each job there were before the command.
        device: Device to work on.
        tell: Takes what happens here.
        until: Time, of `time.time`, after which nothing is begun or waited for any more.
    """
    left, failed, pause = list(works), set[str](), _SHORTEST
    while True:
        last = {work.name: leases.last(work.name) for work in left}  # before it is looked at what is done
        left = _unended(left, last, before, failed)
        if not left or time.time() > until:
            return
        names = {work.name for work in left}
        ready = [work for work in left if names.isdisjoint(work.after)]
        begun = _taken(ready, last, leases, device)
        if begun is not None:
            work, lease = begun
            tell(work.name, _done(work, lease, leases.deaths(work.name, before[work.name]), device))
            pause = _SHORTEST
        else:
            _say_who(ready, last, leases, tell)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)


def _unended(works: Sequence[Work], last: Mapping[str, Attempt | None], before: Before, failed: set[str]) -> list[Work]:
    """Return the jobs that have not ended, and add to `failed` those that failed or cannot be done."""
    left, names = [], {work.name for work in works}
    for work in works:
        end = ""
        if work.needs_all and not failed.isdisjoint(work.after):
            end = "failed"
        elif names.isdisjoint(work.after):
            end = end_of(work, last[work.name], before)
        if end == "failed":
            failed.add(work.name)
        if end:
            names.remove(work.name)
        else:
            left.append(work)
    return left


def _taken(
    works: Sequence[Work], last: Mapping[str, Attempt | None], leases: Leases, device: str
) -> tuple[Work, Lease] | None:
    """Take the first job that nobody works at."""
    for work in works:
        attempt = last[work.name]
        if attempt is None or not attempt.at_work(leases.now):
            lease = leases.take(work.name, attempt, device)
            if lease is not None:
                return work, lease
    return None


def _done(work: Work, lease: Lease, deaths: int, device: str) -> str:
    """Do a job, and record how it ended."""
    with lease:
        try:
            if deaths >= _DEATHS:
                raise UserError(
                    f"its process died {deaths} times, perhaps because memory ran out: repeat the command with fewer "
                    "--workers, and it continues"
                )
            found = work.do(device)
        except UserError as error:
            lease.end("failed", str(error))
            return f"failed: {error}"
        except Exception as error:
            lease.end("failed", first_line(error))
            raise
        lease.end("done")
        return found


def _say_who(works: Sequence[Work], last: Mapping[str, Attempt | None], leases: Leases, tell: Tell) -> None:
    """Tell which jobs are waited for that processes of other commands work at."""
    attempts = [(work.job, attempt) for work in works if (attempt := last[work.name]) is not None]
    others = [f"{job} ({attempt})" for job, attempt in attempts if not attempt.of(leases.command)]
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        tell("", f"waiting for {'; '.join(others[:_SHOWN])}{more}")
