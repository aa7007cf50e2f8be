"""Runs a study: every training in a folder of its own, shared with all that were given the same command."""

import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..acceleration.process import usable_cores
from ..core.errors import UserError
from ..core.serialization import differences
from ..records.leases import Attempt, Leases
from ..records.run_folder import RunFolder
from ..runs.environment import device_of
from ..runs.fit import fit
from ..runs.load import evaluate_run
from ..runs.recipe import recipe_from_plain
from ..training.cost import cost
from ..training.hooks import Interrupted
from .jobs import Job, Plan, Together, Training, leases_of
from .processes import spread, terminable, work_together
from .sharing import Before, Tell, Work, end_of, work_through
from .study import Findings, JointMeasurement, Measurement, Runs, Study, aggregate
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
        log: Called with lines of text for the user.

    Returns:
        The results.

    Raises:
        UserError: If the folder holds trainings of other recipes, a training failed, or others work on what is to be
            overwritten.
    """
    folder, where = Path(folder), device_of(device)
    if workers is not None and workers < 1:
        raise UserError(f"workers = {workers} is not at least 1")
    prepare(study, folder, scale, overwrite=overwrite)
    plan, leases = study.plan(scale), leases_of(folder, uuid.uuid4().hex)
    tables = _OfAll(f"_tables-{study.seeds}", lambda: False)  # a command that is given again writes them again
    trainings, joined = plan.trainings(folder), plan.joined(folder)
    before = leases.numbers(job.name for job in (*plan.jobs(folder), tables))
    missing = [job for job in trainings if _at_work(leases, job) or not job.done()]
    left = [*_trainings(study, missing, joined), *_analyses(study, missing, joined)]
    gpus = torch.cuda.device_count() if where.type == "cuda" else 0
    devices = spread(device, workers, max(len(missing), len(left) - len(missing)), gpus, usable_cores())
    done = len(trainings) - len(missing)
    log(f"{study.title}: {len(trainings)} trainings, {done} of them done; {len(devices)} at a time")
    report = _Report(left, leases, before, log)
    work_together(left, leases, before, devices, report)
    if failed := _failures(left, leases, before):
        first, why = failed[0]
        raise UserError(
            f"{len(failed)} of {len(left)} trainings failed, the others are done. The first: {first.job}: {why}"
        )
    _admit(study, trainings)  # others may have begun those of another study meanwhile
    runs = {(job.arm, job.seed): RunFolder(job.path) for job in trainings}
    findings = aggregate(study, runs)
    with terminable():
        _once(tables, partial(_write, findings, folder, scale, runs), leases, before, report)
    return findings


def prepare(study: Study, folder: Path, scale: str, *, overwrite: bool = False) -> None:
    """Make the folder of a study ready for those who work in it.

    Args:
        study: The study.
        folder: Its folder.
        scale: Name of its scale.
        overwrite: Delete its trainings.

    Raises:
        UserError: If the folder holds trainings of other recipes, or others work on what is to be overwritten.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be the folder of a study: {error.strerror or error}") from error
    plan, leases = study.plan(scale), leases_of(folder)
    if overwrite:
        _clear(plan.jobs(folder), leases)
    _admit(study, plan.trainings(folder))
    writing = _OfAll("_plan", lambda: Plan.read(folder) == plan)
    _once(writing, partial(plan.write, folder), leases, leases.numbers([writing.name]), lambda name, text: None)


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


def _recipe(study: Study, job: Training) -> dict[str, Any]:
    return next(arm for arm in study.arms if arm.name == job.arm).seeded(job.seed).plain()


def _admit(study: Study, trainings: Sequence[Training]) -> None:
    """Refuse to take the training of another recipe for one of this study."""
    for job in trainings:
        known, recipe = RunFolder(job.path).recipe(), _recipe(study, job)
        if known is not None and known != recipe:
            changed = "; ".join(differences(known, recipe)[:3])
            raise UserError(
                f"{job.path} holds a training of another recipe ({changed}): --overwrite the trainings of this folder, "
                "or choose another folder with --out"
            )


# -- the jobs


def _trainings(study: Study, missing: Sequence[Training], joined: Sequence[Together]) -> list[Work]:
    """Return the trainings to do, the longest first; arms that come after others have to wait for these."""
    passes = {}
    for arm in study.arms:
        recipe = arm.recipe
        passes[arm.name] = cost(recipe.method, recipe.update, recipe.epochs, 100).both * recipe.epochs
    first = {job.name for job in missing if not job.after}
    outdated = {each.seed: each.path for each in joined}
    return [
        Work(
            job,
            partial(_trained, job, _recipe(study, job), study.measurements, outdated.get(job.seed)),
            after=first if job.after else (),
        )
        for job in sorted(missing, key=lambda job: (job.after, -passes[job.arm]))
    ]


def _trained(
    job: Training, plain: dict[str, Any], measurements: Sequence[Measurement], outdated: Path | None, device: str
) -> str:
    """Train, evaluate and analyze as far as this is missing, and return the accuracies as text."""
    if outdated is not None:
        outdated.unlink(missing_ok=True)  # the joint analysis of what this run was
    recipe, run = recipe_from_plain(plain), RunFolder(job.path)
    try:
        if run.recipe() is None or not run.finished():
            fit(recipe, job.path, device=device)
    except Interrupted:
        raise KeyboardInterrupt from None
    if not run.evaluated():
        evaluate_run(run, recipe, device=device)
    for look in measurements:
        if not look.done(run):
            with run.locked():
                look.look(run, device, look.how)
    table = run.read_flags("last").table()
    return ", ".join(f"{name} {100 * accuracy.value:.1f} %" for name, accuracy in table.items() if "/" not in name)


def _analyses(study: Study, missing: Sequence[Training], joined: Sequence[Together]) -> list[Work]:
    """Return the joint analyses to do, each of which needs all trainings of its seed."""
    if study.joint is None:
        return []
    changed = {job.seed for job in missing}
    return [
        Work(job, partial(_analyzed, job, study.joint), [each.name for each in job.trainings], needs_all=True)
        for job in joined
        if job.seed in changed or not job.done()
    ]


def _analyzed(job: Together, joint: JointMeasurement, device: str) -> str:
    joint.look({each.arm: RunFolder(each.path) for each in job.trainings}, job.path, device, joint.how)
    return "done"


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
    if findings.study.draw is not None:
        findings.study.draw(runs, folder)
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
