"""The jobs of a study as its folder shows them: which there are, and the state of each. Needs no torch."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypedDict

from ..core.reading import read_json
from ..core.writing import write_json
from ..records.leases import Attempt, Leases
from ..records.run_folder import RunFolder

How: TypeAlias = Mapping[str, Any]
"""Settings of an analysis."""


def recorded(path: Path, how: How) -> bool:
    """Return True if the results of an analysis with these settings are in a file."""
    return path.exists() and read_json(path, "delete it, and give the command again").get("how") == how


class PlannedArm(TypedDict):
    """An arm of a study: its name, the beginning of its run folders' names, if it comes after others, and its seeds."""

    name: str
    folder: str
    after: bool
    seeds: int


class _Written(TypedDict):
    study: str
    scale: str
    arms: list[PlannedArm]
    analyses: dict[str, dict[str, Any]]
    joint: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Training:
    """A training, its evaluation, and the analyses of its run, with their settings by kind."""

    arm: str
    seed: int
    path: Path
    after: bool
    analyses: Mapping[str, How]

    @property
    def name(self) -> str:
        """Name of the job in file names."""
        return self.path.name

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    def done(self) -> bool:
        """Return True if nothing of it is missing."""
        run = RunFolder(self.path)
        if run.recipe() is None or not run.finished() or not run.evaluated():
            return False
        return all(recorded(run.analysis(kind, "json"), how) for kind, how in self.analyses.items())

    def reached(self) -> str:
        """Return how far an unfinished training came, "" if it was not begun."""
        run = RunFolder(self.path)
        if run.recipe() is None:
            return ""
        if run.finished():
            return "trained, but not evaluated" if not run.evaluated() else "evaluated, but not analyzed"
        step = run.saved_step()
        return "before its first checkpoint" if step is None else f"at step {step}"


@dataclass(frozen=True, slots=True)
class Together:
    """The joint analysis of all trainings of a seed, with its settings, in the file `path`."""

    seed: int
    path: Path
    how: How
    trainings: tuple[Training, ...]

    @property
    def name(self) -> str:
        """Name of the job in file names; no training has one with an underscore."""
        return f"_{self.path.stem}"

    def __str__(self) -> str:
        return f"together, seed {self.seed}"

    def done(self) -> bool:
        """Return True if the analysis is there, and is of the trainings as they are."""
        return recorded(self.path, self.how) and all(job.done() for job in self.trainings)

    def reached(self) -> str:
        """Return "": such an analysis is begun anew."""
        return ""


Job: TypeAlias = Training | Together


class JobState(NamedTuple):
    """The state of a job: done, running, failed, interrupted or waiting; and in words who works, why, or where."""

    state: str
    detail: str
    attempt: Attempt | None

    def plain(self, job: Job) -> dict[str, Any]:
        """Return the state of a job as JSON, with its newest attempt."""
        arm = job.arm if isinstance(job, Training) else "together"
        attempt = None if self.attempt is None else self.attempt.plain()
        return {"arm": arm, "seed": job.seed, "state": self.state, "detail": self.detail, "attempt": attempt}


@dataclass(frozen=True, slots=True)
class Plan:
    """The trainings of a study, as a file in its folder lists them.

    Args:
        study: Name of the study.
        scale: Scale of the study.
        arms: The arms.
        analyses: Settings of the analyses of each run, by kind.
        joint: Settings of the joint analysis; None for a study without one.
    """

    study: str
    scale: str
    arms: tuple[PlannedArm, ...]
    analyses: Mapping[str, How]
    joint: How | None

    @staticmethod
    def path(folder: Path) -> Path:
        """Return the file of the plan of a study's folder."""
        return folder / "plan.json"

    @classmethod
    def read(cls, folder: Path) -> "Plan | None":
        """Return the plan of a study's folder; None if there is none."""
        path = cls.path(folder)
        if not path.exists():
            return None
        written = read_json(path, "delete it, and give the command of the study again", _Written)
        return cls(**{**written, "arms": tuple(written["arms"])})

    def write(self, folder: Path) -> None:
        """Write the plan."""
        plain = {name: getattr(self, name) for name in ("study", "scale", "analyses", "joint")}
        write_json(Plan.path(folder), {**plain, "arms": [*self.arms]})

    def trainings(self, folder: Path) -> tuple[Training, ...]:
        """Return all trainings of the study in a folder."""
        runs = folder / "runs"
        return tuple(
            Training(arm["name"], seed, runs / f"{arm['folder']}-{seed}", arm["after"], self.analyses)
            for arm in self.arms
            for seed in range(arm["seeds"])
        )

    def joined(self, folder: Path) -> tuple[Together, ...]:
        """Return the joint analyses of the study in a folder, one of each seed that all arms have, if it has any."""
        if self.joint is None:
            return ()
        jobs = self.trainings(folder)
        return tuple(
            Together(seed, folder / f"together-{seed}.json", self.joint, tuple(job for job in jobs if job.seed == seed))
            for seed in range(min(arm["seeds"] for arm in self.arms))
        )

    def jobs(self, folder: Path) -> list[Job]:
        """Return all jobs of the study in a folder."""
        return [*self.trainings(folder), *self.joined(folder)]

    def states(self, folder: Path) -> list[tuple[Job, JobState]]:
        """Return every job with its state, and touch nothing."""
        leases = leases_of(folder)
        return [(job, _state(job, leases.last(job.name))) for job in self.jobs(folder)]


def leases_of(folder: Path, command: str = "") -> Leases:
    """Return the leases on the jobs of a study, for the processes of a command."""
    return Leases(folder / "leases", command)


def _state(job: Job, last: Attempt | None) -> JobState:
    if last is not None and last.at_work(time.time):
        return JobState("running", str(last), last)
    if job.done():
        return JobState("done", "", last)
    if last is not None and last.state == "failed":
        return JobState("failed", last.why, last)
    reached = job.reached()
    return JobState("interrupted" if reached else "waiting", reached, last)
