"""Runs a study: every training in a folder of its own, shared with all that were given the same command."""

import math
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ..acceleration.process import usable_cores
from ..core.errors import UserError
from ..core.serialization import differences
from ..records.leases import Attempt, Leases
from ..records.run_folder import RunFolder
from ..records.sequential import looks
from ..records.statistics import untestable
from ..runs.environment import device_of
from . import work
from .findings import Findings, added, aggregate, extended
from .jobs import Job, Plan, Training, leases_of
from .processes import spread, terminable, work_together
from .sharing import Before, Tell, Work, end_of, work_through
from .study import Runs, Study
from .work import recipe_of
from .writing import precision_of, write

Log = Callable[[str], None]


def run_study(
    study: Study,
    folder: Path | str,
    *,
    scale: str,
    device: str = "auto",
    workers: int | None = None,
    overwrite: bool = False,
    until_decided: bool = False,
    hours: float = math.inf,
    log: Log = lambda text: None,
) -> Findings:
    """Train and evaluate what is missing, and write the results: see `writing.write`.

    Finished trainings are kept, interrupted ones continue. Others, on any machine, may work in the same folder at the
    same time: each training is done by one of them, and the results are written by one of them.

    Args:
        study: The study.
        folder: Folder of the study.
        scale: Name of its scale.
        device: Device to train on: `auto` (all GPUs, if there are any), `cpu`, `cuda` (all GPUs) or `cuda:N`.
        workers: Number of trainings at a time, each on its share of the cores; by default one on each GPU, and on a CPU
            one on each core.
        overwrite: Delete the trainings in the folder, and start anew.
        until_decided: Add seeds to the arms that open claims need, until all are decided: see `sequential.looks`.
        hours: Time after which no training begins any more. Then the results are those of the claims whose trainings
            are all done; trainings for headline claims come first.
        log: Called with lines of text for the user.

    Returns:
        The results.

    Raises:
        UserError: If the folder holds trainings of other recipes, a training failed, the time was too short for any
            claim, or others work on what is to be overwritten.
    """
    folder, where = Path(folder), device_of(device)
    if workers is not None and workers < 1:
        raise UserError(f"workers = {workers} is not at least 1")
    if not hours > 0:
        raise UserError(f"hours = {hours:g} is no budget: give a number above 0")
    planned = looks(study.seeds) if until_decided else ()
    prepare(study, folder, scale, overwrite=overwrite)
    if not planned and (most := max(arm.seeds or 0 for arm in _with_added(study, folder).arms)) > study.seeds:
        log(
            f"{folder} has trainings of up to {most} seeds; the verdicts are on {study.seeds} seeds. If "
            "--until-decided added the others, give it again"
        )
    if not planned and (reasons := untestable(study.claims, study.seeds)):
        first, why = next(iter(reasons.items()))
        log(f"{len(reasons)} of {len(study.claims)} claims are not testable here, such as {first!r}: {why}")
    gpus = torch.cuda.device_count() if where.type == "cuda" else 0
    leases = leases_of(folder, uuid.uuid4().hex)
    command = _Command(folder, scale, device, workers, gpus, leases, time.time() + 3600 * hours, log)
    findings, trained = command.work(study, planned)
    command.write(findings, trained)
    return findings


class BudgetError(UserError):
    """The budget of a command was spent before all trainings were done."""


class _Trained(NamedTuple):
    """Runs of a study, and how many attempts at writing its tables there were before."""

    runs: Runs
    tables: "_OfAll"
    before: Before


@dataclass(frozen=True, slots=True)
class _Command:
    """A command that was given in the folder of a study, on which it works until a time."""

    folder: Path
    scale: str
    device: str
    workers: int | None
    gpus: int
    leases: Leases
    until: float
    log: Log

    def work(self, study: Study, planned: tuple[int, ...]) -> tuple[Findings, _Trained]:
        """Do what is missing of a study, and add seeds at the planned looks, as far as the time allows."""
        try:
            trained = self.train(study)
        except BudgetError as error:
            trained, study = self._part(study, error)
            return aggregate(study, trained.runs, planned), trained
        findings = aggregate(study, trained.runs, planned)
        while planned and (more := extended(findings)) is not None:
            self.log(f"{len(findings.open())} of {len(study.claims)} claims are open: {added(findings.study, more)}")
            try:
                trained = self.train(more)
            except BudgetError as error:
                self.log(f"{error}. The verdicts are those of the seeds before")
                break
            findings = aggregate(more, trained.runs, planned)
        return findings, trained

    def train(self, study: Study) -> _Trained:
        """Do what is missing of a study; raises `BudgetError` if there is no time for all of it."""
        plan, leases = study.plan(self.scale), self.leases
        trainings, joined = plan.trainings(self.folder), plan.joined(self.folder)
        tables = _OfAll(f"_tables-{len(trainings)}", lambda: False)  # a command that is given again writes them again
        before = leases.numbers(job.name for job in (*plan.jobs(self.folder), tables))
        missing = [job for job in trainings if _at_work(leases, job) or not job.done()]
        if missing:
            prepare(study, self.folder, self.scale)
        left = [*work.trainings(study, missing, joined), *work.analyses(study, missing, joined)]
        most = max(len(missing), len(left) - len(missing))
        devices = spread(self.device, self.workers, most, self.gpus, usable_cores())
        done = len(trainings) - len(missing)
        self.log(f"{study.title}: {len(trainings)} trainings, {done} of them done; {len(devices)} at a time")
        work_together(left, leases, before, devices, _Report(left, leases, before, self.log), self.until)
        if failed := _failures(left, leases, before):
            first, why = failed[0]
            raise UserError(
                f"{len(failed)} of {len(left)} trainings failed, the others are done. The first: {first.job}: {why}"
            )
        if time.time() > self.until and (undone := [job for job in plan.jobs(self.folder) if not job.done()]):
            raise BudgetError(f"the time is over, and {len(undone)} trainings are not done: give the command again")
        _admit(study, trainings)  # others may have begun those of another study meanwhile
        return _Trained(_runs(trainings), tables, before)

    def _part(self, study: Study, error: BudgetError) -> tuple[_Trained, Study]:
        """Return what can be told of a study so far; raises the error if no claim can be decided."""
        trainings = study.plan(self.scale).trainings(self.folder)
        missing = {job.arm for job in trainings if _at_work(self.leases, job) or not job.done()}
        part = study.part({job.arm for job in trainings} - missing)
        if part is None:
            raise error
        done = [job for job in trainings if job.arm not in missing]
        said = f"The verdicts are on {len(part.claims)} of {len(study.claims)} claims, for which all trainings are done"
        self.log(f"{error}. {said}")
        tables = _OfAll(f"_tables-{len(done)}", lambda: False)
        part = replace(part, remarks=(*part.remarks, f"{said}."))
        return _Trained(_runs(done), tables, self.leases.numbers([tables.name])), part

    def write(self, findings: Findings, trained: _Trained) -> None:
        """Write the results of a study, unless another command has done so meanwhile."""
        with terminable():
            do = partial(_write, findings, self.folder, self.scale, trained.runs)
            _once(trained.tables, do, self.leases, trained.before, lambda name, text: None)


def _runs(trainings: Sequence[Training]) -> Runs:
    return {(job.arm, job.seed): RunFolder(job.path) for job in trainings}


def prepare(study: Study, folder: Path, scale: str, *, overwrite: bool = False) -> None:
    """Make the folder of a study ready for those who work in it.

    Args:
        study: The study.
        folder: Its folder.
        scale: Name of its scale.
        overwrite: Delete its trainings, those of seeds that `--until-decided` added too.

    Raises:
        UserError: If the folder holds trainings of other recipes, or others work on what is to be overwritten.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be the folder of a study: {error.strerror or error}") from error
    plan, leases = study.plan(scale), leases_of(folder)
    known = Plan.read(folder)
    if known is not None and known.study != study.name:
        raise UserError(
            f"{folder} is the folder of the study {known.study}: choose another for {study.name} with --out"
        )
    if overwrite:
        _clear(_with_added(study, folder).plan(scale).jobs(folder), leases)
    _admit(study, plan.trainings(folder))
    writing = _OfAll("_plan", lambda: Plan.read(folder) == plan)
    _once(writing, partial(plan.write, folder), leases, leases.numbers([writing.name]), lambda name, text: None)


def _with_added(study: Study, folder: Path) -> Study:
    """Return the study with all seeds of its arms that are in a folder."""
    there = [path.name.rpartition("-") for path in (folder / "runs").glob("*-*") if path.is_dir()]
    seeds = {
        arm.folder: [int(seed) for name, _, seed in there if name == arm.folder and seed.isdecimal()]
        for arm in study.arms
    }
    arms = [
        replace(arm, seeds=max([study.seeds_of(arm), *(seed + 1 for seed in seeds[arm.folder])])) for arm in study.arms
    ]
    return replace(study, arms=tuple(arms))


def _clear(jobs: Sequence[Job], leases: Leases) -> None:
    """Delete the runs of a study, unless one of them cannot be deleted, or others work at one of its jobs."""
    runs = [RunFolder(job.path) for job in jobs if isinstance(job, Training)]
    runs = [run for run in runs if run.path.exists() and not run.foreign()]
    for run in runs:
        run.clearable()
    known = [(job, leases.last(job.name)) for job in jobs]
    for job, last in known:
        if _at_work(leases, job):
            raise UserError(_in_use(leases, job, last))
    with ExitStack() as held:
        for job, last in known:
            lease = leases.take(job.name, last)
            if lease is None:
                raise UserError(_in_use(leases, job, leases.last(job.name)))
            held.enter_context(lease)
        for run in runs:
            with run.locked():
                run.clear()


def _at_work(leases: Leases, job: Job) -> bool:
    last = leases.last(job.name)
    return last is not None and last.at_work(leases.now)


def _in_use(leases: Leases, job: Job, attempt: Attempt | None) -> str:
    return (
        f"{leases.folder.parent} is in use: {attempt} is at work on {job}. Wait for its end, or stop it, before you "
        "--overwrite"
    )


def _admit(study: Study, trainings: Sequence[Training]) -> None:
    """Refuse to take the training of another recipe for one of this study."""
    for job in trainings:
        known, recipe = RunFolder(job.path).recipe(), recipe_of(study, job)
        if known is not None and known != recipe:
            changed = "; ".join(differences(known, recipe)[:3])
            raise UserError(
                f"{job.path} holds a training of another recipe ({changed}): --overwrite the trainings of this folder, "
                "or choose another folder with --out"
            )


# -- what one command does for all


@dataclass(frozen=True, slots=True)
class _OfAll:
    """Work that one command does for all, such as writing the tables."""

    name: str
    done: Callable[[], bool]

    def __str__(self) -> str:
        return self.name.strip("_")


def _once(job: _OfAll, do: Callable[[], None], leases: Leases, before: Before, tell: Tell) -> None:
    """Do something unless another command has done it since `before`; raise `UserError` if that failed."""

    def done(device: str) -> str:
        do()
        return "done"

    work = Work(job, done)
    work_through([work], leases, before, "", tell)
    for _, why in _failures([work], leases, before):
        raise UserError(why)


def _write(findings: Findings, folder: Path, scale: str, runs: Runs) -> None:
    study = findings.study
    if study.draw is not None:
        study.draw({(arm, seed): run for (arm, seed), run in runs.items() if seed < study.common}, folder)
    environment = next(iter(runs.values())).sessions()[-1]
    write(findings, folder, scale, environment, precision_of(runs.values()))


# -- what is said of them


@dataclass(slots=True)
class _Report:
    """Logs what happens to the jobs: how many have ended, here or elsewhere, and what is waited for."""

    works: Sequence[Work]
    leases: Leases
    before: Before
    log: Log
    here: int = 0
    said: str = ""

    def __call__(self, name: str, text: str) -> None:
        job = next((work.job for work in self.works if work.name == name), None)
        if job is not None:
            self.here += 1
            self.log(f"{self.here + self._elsewhere()}/{len(self.works)} {job}: {text}")
        elif not name and text != self.said:
            self.log(text)
            self.said = text

    def _elsewhere(self) -> int:
        last = [(work, self.leases.last(work.name)) for work in self.works]
        theirs = [(work, each) for work, each in last if each is not None and not each.of(self.leases.command)]
        return sum(bool(end_of(work, each, self.before)) for work, each in theirs)


def _failures(works: Sequence[Work], leases: Leases, before: Before) -> list[tuple[Work, str]]:
    """Return the jobs that failed, here or elsewhere, each with the reason."""
    last = [(work, leases.last(work.name)) for work in works]
    return [(work, each.why) for work, each in last if each is not None and end_of(work, each, before) == "failed"]
