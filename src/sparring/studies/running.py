"""Carries a study out: every training in a folder of its own, side by side where there are cores for it."""

import itertools
import multiprocessing
import os
import signal
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..environment import device_of
from ..errors import UserError
from ..fast import tune_process
from ..fast.process import usable_cores
from ..hooks import Interrupted
from ..passes import cost
from ..plain import differences
from ..recipe import Recipe, recipe_from_plain
from ..results import RunFolder
from ..run import fit
from ..trained import evaluate_run
from .study import Findings, Look, Study, gathered
from .writing import write

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One training and its evaluation."""

    arm: str
    seed: int
    recipe: dict[str, Any]
    path: Path
    passes: float
    after: bool
    look: Look | None

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def run_study(
    study: Study,
    folder: Path | str,
    *,
    scale: str,
    device: str = "auto",
    workers: int | None = None,
    overwrite: bool = False,
    say: Say = lambda text: None,
) -> Findings:
    """Trains and evaluates what is not there yet, and writes what it came to: see `writing.write`.

    Trainings that are finished stay as they are, interrupted ones go on. `workers` trainings run side by side, each on
    its share of the cores: on a CPU as many as there are cores, else one. Raises `UserError` for a folder that holds
    trainings of other recipes.
    """
    folder, where = Path(folder), device_of(device)
    jobs = _jobs(study, folder)
    if workers is not None and workers < 1:
        raise UserError(f"workers = {workers} is not at least 1")
    for job in jobs if overwrite else ():
        if not RunFolder(job.path).foreign():
            RunFolder(job.path).clear()
    _admit(jobs)
    left = [job for job in jobs if not _done(job)]
    many = min(workers or (usable_cores() if where.type == "cpu" else 1), max(1, len(left)))
    say(f"{study.title}: {len(jobs)} trainings, {len(jobs) - len(left)} of them done; {many} at a time")
    _carry_out(sorted(left, key=lambda job: -job.passes), many, device, say)
    runs = {(job.arm, job.seed): RunFolder(job.path) for job in jobs}
    findings = gathered(study, runs)
    if study.draw is not None:
        study.draw(runs, folder)
    write(findings, folder, scale, RunFolder(jobs[0].path).sessions()[-1])
    return findings


def _jobs(study: Study, folder: Path) -> list[Job]:
    jobs = []
    for arm in study.arms:
        recipe = arm.recipe
        each = cost(recipe.method, recipe.update, recipe.epochs, 100).both * recipe.epochs
        for seed in range(study.seeds):
            path = folder / "runs" / f"{arm.folder}-{seed}"
            jobs.append(Job(arm.name, seed, arm.seeded(seed).plain(), path, each, arm.after, study.look))
    return jobs


def _done(job: Job) -> bool:
    run = RunFolder(job.path)
    seen = job.look is None or job.look.done(run)
    return run.recipe() is not None and run.finished() and run.evaluated() and seen


def _admit(jobs: list[Job]) -> None:
    """A training of another recipe is not taken for one of this study."""
    for job in jobs:
        known = RunFolder(job.path).recipe()
        if known is not None and known != job.recipe:
            changed = "; ".join(differences(known, job.recipe)[:3])
            raise UserError(
                f"{job.path} holds a training of another recipe ({changed}): --overwrite the trainings of this folder, "
                "or choose another one with --out"
            )


def _carry_out(jobs: list[Job], workers: int, device: str, say: Say) -> None:
    """All of them, those that come after others in the end; what failed is said when the rest is done."""
    failed: list[str] = []
    done = itertools.count(1)

    def tell(job: Job, outcome: Callable[[], str]) -> None:
        try:
            said = outcome()
        except UserError as error:
            failed.append(said := f"failed: {error}")
        say(f"{next(done)}/{len(jobs)} {job}: {said}")

    for after in (False, True):
        _each([job for job in jobs if job.after == after], workers, device, tell)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs)} trainings failed, the others are done. The first: "
            + failed[0].removeprefix("failed: ")
        )


def _each(jobs: list[Job], workers: int, device: str, tell: Callable[[Job, Callable[[], str]], None]) -> None:
    """Calls `tell` with each outcome, in the order in which they come."""
    if workers == 1 or not jobs:
        for job in jobs:
            tell(job, partial(_do, job, device))
        return
    threads, others = max(1, usable_cores() // workers), set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of torch
    with ProcessPoolExecutor(workers, context, initializer=_settle, initargs=(threads,)) as pool, _terminable():
        futures: dict[Future[str], Job] = {pool.submit(_do, job, device): job for job in jobs}
        try:
            for future in as_completed(futures):
                tell(futures[future], future.result)
        except BrokenProcessPool:
            raise UserError(
                "a process that trained died, perhaps for want of memory: give fewer --workers; the command goes on"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()  # a training saves what it has
            raise


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM is taken for Ctrl-C, so that no process is left behind. Outside the main thread it cannot be."""

    def interrupt(number: int, frame: types.FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _settle(threads: int) -> None:
    """What a process does before its first training. In a session of its own, Ctrl-C does not reach it twice."""
    if hasattr(os, "setsid"):
        os.setsid()
    torch.set_num_threads(threads)
    tune_process()


def _do(job: Job, device: str) -> str:
    """Trains, evaluates and looks at what is missing of one job, and says in words what it came to."""
    recipe: Recipe = recipe_from_plain(job.recipe)
    run = RunFolder(job.path)
    try:
        if run.recipe() is None or not run.finished():
            fit(recipe, job.path, device=device)
        if not run.evaluated():
            evaluate_run(run, recipe, device=device)
        if job.look is not None and not job.look.done(run):
            job.look.look(run, device, job.look.how)
    except UserError as error:
        raise UserError(f"{job}: {error}") from None
    except Interrupted:
        raise KeyboardInterrupt from None  # what a process can hand on
    table = run.read_flags("last").table()
    return ", ".join(f"{name} {100 * accuracy.value:.1f} %" for name, accuracy in table.items() if "/" not in name)
