"""Runs a study: every training in a folder of its own, in parallel where there are enough cores."""

import itertools
import multiprocessing
import os
import signal
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ..acceleration import tune_process
from ..acceleration.process import usable_cores
from ..core import foreign
from ..core.errors import UserError
from ..core.serialization import differences
from ..records.locking import locked
from ..records.run_folder import RunFolder
from ..runs.environment import device_of
from ..runs.fit import fit
from ..runs.load import evaluate_run
from ..runs.recipe import Recipe, recipe_from_plain
from ..training.cost import cost
from ..training.hooks import Interrupted
from .study import Findings, JointMeasurement, Measurement, Study, aggregate
from .writing import precision_of, write

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One training, its evaluation, and the analyses of its run."""

    arm: str
    seed: int
    recipe: dict[str, Any]
    path: Path
    passes: float
    after: bool
    measurements: tuple[Measurement, ...]

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    def done(self) -> bool:
        run = RunFolder(self.path)
        seen = all(look.done(run) for look in self.measurements)
        return run.recipe() is not None and run.finished() and run.evaluated() and seen

    def do(self, device: str) -> str:
        """Train, evaluate and analyze as far as this is missing, and return the accuracies as text."""
        recipe: Recipe = recipe_from_plain(self.recipe)
        run = RunFolder(self.path)
        if run.recipe() is None or not run.finished():
            fit(recipe, self.path, device=device)
        if not run.evaluated():
            evaluate_run(run, recipe, device=device)
        for look in self.measurements:
            if not look.done(run):
                with run.locked():
                    look.look(run, device, look.how)
        table = run.read_flags("last").table()
        return ", ".join(f"{name} {100 * accuracy.value:.1f} %" for name, accuracy in table.items() if "/" not in name)


@dataclass(frozen=True, slots=True)
class Joined:
    """The joint analysis of all trainings of a seed."""

    joint: JointMeasurement
    folder: Path
    seed: int
    paths: dict[str, Path]

    def __str__(self) -> str:
        return f"together, seed {self.seed}"

    def do(self, device: str) -> str:
        runs = {arm: RunFolder(path) for arm, path in self.paths.items()}
        self.joint.look(runs, self.joint.path(self.folder, self.seed), device, self.joint.how)
        return "done"


Work: TypeAlias = Job | Joined


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

    Finished trainings are kept, interrupted ones continue. `workers` is the number of trainings in parallel, each on
    its share of the cores: by default the number of cores on a CPU, else 1. Raises `UserError` for a folder that holds
    trainings of other recipes.
    """
    folder, where = Path(folder), device_of(device)
    if workers is not None and workers < 1:
        raise UserError(f"workers = {workers} is not at least 1")
    with locked(folder):
        return _studied(study, folder, scale, where, device, workers, overwrite, log)


def _studied(
    study: Study,
    folder: Path,
    scale: str,
    where: torch.device,
    device: str,
    workers: int | None,
    overwrite: bool,
    log: Log,
) -> Findings:
    jobs = _jobs(study, folder)
    if overwrite:
        _clear([RunFolder(job.path) for job in jobs])
    _admit(jobs)
    left = [job for job in jobs if not job.done()]
    joined = _joined(study, folder, jobs, {job.seed for job in left})
    many = min(workers or (usable_cores() if where.type == "cpu" else 1), max(1, len(left), len(joined)))
    log(f"{study.title}: {len(jobs)} trainings, {len(jobs) - len(left)} of them done; {many} at a time")
    left = sorted(left, key=lambda job: -job.passes)
    before, after = [job for job in left if not job.after], [job for job in left if job.after]
    _carry_out((before, after, joined), many, device, log)
    runs = {(job.arm, job.seed): RunFolder(job.path) for job in jobs}
    findings = aggregate(study, runs)
    if study.draw is not None:
        study.draw(runs, folder)
    write(findings, folder, scale, RunFolder(jobs[0].path).sessions()[-1], precision_of(runs.values()))
    return findings


def _clear(runs: Sequence[RunFolder]) -> None:
    """Delete runs, after checking that all of them can be deleted."""
    ours = [run for run in runs if run.path.exists() and not run.foreign()]
    for run in ours:
        run.clearable()
    for run in ours:
        with run.locked():
            run.clear()


def _jobs(study: Study, folder: Path) -> list[Job]:
    jobs = []
    for arm in study.arms:
        recipe = arm.recipe
        each = cost(recipe.method, recipe.update, recipe.epochs, 100).both * recipe.epochs
        for seed in range(study.seeds):
            path = folder / "runs" / f"{arm.folder}-{seed}"
            jobs.append(Job(arm.name, seed, arm.seeded(seed).plain(), path, each, arm.after, study.measurements))
    return jobs


def _joined(study: Study, folder: Path, jobs: list[Job], changed: set[int]) -> list[Joined]:
    """Return the joint analyses to do; those of a seed with a training that is not done are repeated."""
    if study.joint is None:
        return []
    for seed in changed:
        study.joint.path(folder, seed).unlink(missing_ok=True)
    seeds = [seed for seed in range(study.seeds) if not study.joint.done(folder, seed)]
    return [
        Joined(study.joint, folder, seed, {job.arm: job.path for job in jobs if job.seed == seed}) for seed in seeds
    ]


def _admit(jobs: list[Job]) -> None:
    """Refuse to take the training of another recipe for one of this study."""
    for job in jobs:
        known = RunFolder(job.path).recipe()
        if known is not None and known != job.recipe:
            changed = "; ".join(differences(known, job.recipe)[:3])
            raise UserError(
                f"{job.path} holds a training of another recipe ({changed}): --overwrite the trainings of this folder, "
                "or choose another folder with --out"
            )


def _carry_out(phases: Sequence[Sequence[Work]], workers: int, device: str, log: Log) -> None:
    """Run one phase after the other; failures are reported once the other jobs of the phase are done."""
    failed: list[str] = []
    done, all_of_them = itertools.count(1), sum(map(len, phases))

    def tell(job: Work, outcome: Callable[[], str]) -> None:
        try:
            describe = outcome()
        except UserError as error:
            failed.append(describe := f"failed: {error}")
        log(f"{next(done)}/{all_of_them} {job}: {describe}")

    with _processes(workers if all_of_them else 1) as pool:
        for phase in phases:
            if not failed or not any(isinstance(work, Joined) for work in phase):  # joint work needs all trainings
                _each(phase, pool, device, tell)
    if failed:
        raise UserError(
            f"{len(failed)} of {all_of_them} trainings failed, the others are done. The first: "
            + failed[0].removeprefix("failed: ")
        )


def _each(
    jobs: Sequence[Work],
    pool: ProcessPoolExecutor | None,
    device: str,
    tell: Callable[[Work, Callable[[], str]], None],
) -> None:
    """Call `tell` with the outcome of each job, in the order of completion. Without a pool, this process does them."""
    if pool is None:
        for job in jobs:
            tell(job, partial(_do, job, device))
        return
    futures: dict[Future[str], Work] = {pool.submit(_do, job, device): job for job in jobs}
    for future in as_completed(futures):
        tell(futures[future], future.result)


@contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes for all phases of a study, or None for one worker. An exception ends them once they have saved."""
    if workers == 1:
        yield None
        return
    threads, others = max(1, usable_cores() // workers), set(multiprocessing.active_children())
    context = _context()
    with (
        ProcessPoolExecutor(workers, context, initializer=_settle, initargs=(threads, foreign.known())) as pool,
        _terminable(),
    ):
        try:
            yield pool
        except BrokenProcessPool:
            raise UserError(
                "a training process died, perhaps because memory ran out: repeat the command with fewer --workers, and "
                "it continues"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()  # a training saves its state
            raise


def _context() -> Any:
    """Return how processes are started: a server without threads imports what they need once, and forks them."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")  # a fork of this process would inherit the threads of torch
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "matplotlib.figure", "scipy.stats", "sklearn.datasets"])
    return context


@contextmanager
def _terminable() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that no process is left behind; has no effect outside the main thread."""

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


_IN_HAND = threading.Lock()
"""Held while a process works."""
_PATIENCE = 60.0  # seconds that a training has to save its state


def _settle(threads: int, known: foreign.Known) -> None:
    """Set up a worker process. It gets a session of its own, so that Ctrl-C does not reach it twice."""
    if hasattr(os, "setsid"):
        os.setsid()
    threading.Thread(target=_follow, daemon=True).start()
    foreign.know(known)
    torch.set_num_threads(threads)
    tune_process()


def _follow() -> None:
    """End this process when its parent has ended, even if the parent was killed; a training first saves its state."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    if _IN_HAND.locked():
        os.kill(os.getpid(), signal.SIGTERM)
    _IN_HAND.acquire(timeout=_PATIENCE)
    os._exit(1)


def _do(job: Work, device: str) -> str:
    try:
        with _IN_HAND:
            return job.do(device)
    except UserError as error:
        raise UserError(f"{job}: {error}") from None
    except Interrupted:
        raise KeyboardInterrupt from None  # an exception that can be passed between processes
