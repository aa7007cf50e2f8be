"""The processes of one command, each of which works through a study on a device of its own."""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ..acceleration import tune_process
from ..acceleration.process import usable_cores
from ..core import foreign
from ..core.errors import UserError
from ..records.leases import Leases
from .sharing import Before, Tell, Work, work_through

_PATIENCE = 60.0  # seconds that a training has to save its state


def spread(device: str, workers: int | None, jobs: int, gpus: int, cores: int) -> tuple[str, ...]:
    """Return the device of each worker.

    Args:
        device: Device that the user asks for: `auto` and `cuda` are all GPUs, any other is itself.
        workers: Number of workers; None for one on each GPU, on a CPU for one on each core.
        jobs: Number of jobs; there are no more workers than jobs, but one at least.
        gpus: Number of GPUs.
        cores: Number of cores.

    Returns:
        The devices, of which no GPU has two workers before all have one.
    """
    if device == "auto" and not gpus:
        device = "cpu"
    devices = [f"cuda:{number}" for number in range(gpus)] if device in ("auto", "cuda") else [device]
    count = min(workers or (cores if device == "cpu" else len(devices)), max(1, jobs))
    return tuple(devices[number % len(devices)] for number in range(count))


def work_together(
    works: Sequence[Work],
    leases: Leases,
    before: Before,
    devices: Sequence[str],
    tell: Tell,
    until: float = math.inf,
) -> None:
    """Work through the jobs, in a process for each device; for a single one, in this process.

    After the time `until` (of `time.time`) no job begins any more.

    An exception, or SIGTERM, ends the processes once they have saved. Raises `UserError` if all of them died.
    """
    with terminable():
        if len(devices) == 1:
            work_through(works, leases, before, devices[0], tell, until)
            return
        processes: dict[Connection, BaseProcess] = {}
        try:
            for device in devices:
                processes.update(
                    [_started(works, leases, before, device, max(1, usable_cores() // len(devices)), until)]
                )
            codes = list(_listen(processes, tell))
        except BaseException:
            for process in processes.values():
                process.terminate()  # a training saves its state
            for process in processes.values():
                process.join()
            raise
    if all(codes):
        raise UserError(
            "every training process died, perhaps because memory ran out: repeat the command with fewer --workers, and "
            "it continues"
        )


def _started(
    works: Sequence[Work], leases: Leases, before: Before, device: str, threads: int, until: float
) -> tuple[Connection, BaseProcess]:
    """Start a process, and return it with the connection on which it tells what happens."""
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    arguments = (theirs, works, leases, before, device, threads, until, foreign.known())
    process = context.Process(target=_work, args=arguments)
    process.start()
    theirs.close()  # so that the end of the process is the end of the connection
    return ours, process


def _listen(processes: dict[Connection, BaseProcess], tell: Tell) -> Iterator[int]:
    """Pass on what processes tell, and yield the exit code of each that ends. Raises what one of them raised."""
    while processes:
        for connection in wait(list(processes)):
            assert isinstance(connection, Connection)
            try:
                told = connection.recv()
            except (EOFError, OSError):  # OSError if it died in the middle of a word
                process = processes.pop(connection)
                process.join()
                if process.exitcode:
                    tell("", f"a training process has died (exit code {process.exitcode}); others take over its work")
                yield process.exitcode or 0
                continue
            if isinstance(told, Exception):
                raise told
            tell(*told)


def _context() -> Any:
    """Return how processes are started: a server without threads imports what they need once, and forks them."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")  # a fork of this process would inherit the threads of torch
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.running", "matplotlib.figure", "scipy.stats", "sklearn.datasets"])
    return context


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that nothing is left behind; has no effect outside the main thread."""

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


# -- in the processes


def _work(
    told: Connection,
    works: Sequence[Work],
    leases: Leases,
    before: Before,
    device: str,
    threads: int,
    until: float,
    known: foreign.Known,
) -> None:
    """Work through the jobs. The process gets a session of its own, so that Ctrl-C does not reach it twice."""
    if hasattr(os, "setsid"):
        os.setsid()
    foreign.know(known)
    torch.set_num_threads(threads)
    tune_process()
    try:
        with terminable():
            threading.Thread(target=_follow, daemon=True).start()
            work_through(works, leases, before, device, lambda name, text: told.send((name, text)), until)
    except KeyboardInterrupt:
        sys.exit(1)
    except Exception as error:
        ours = isinstance(error, UserError | OSError)  # others may be of a class that cannot be sent
        with contextlib.suppress(OSError):  # nobody may listen any more
            told.send(error if ours else RuntimeError(traceback.format_exc()))
        sys.exit(1)


def _follow() -> None:
    """End this process when its parent has ended, even if the parent was killed; a training first saves its state."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    threading.main_thread().join(_PATIENCE)
    os._exit(1)
