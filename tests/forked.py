"""Processes of tests that need one of their own: a server imports torch and sparring once, and forks each of them.

A new interpreter takes three seconds to import torch. What depends on the environment of a process at its start, or on
how torchrun starts it, still gets a new one.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

SERVED = (
    *("sparring.studies.running", "torch._dynamo", "matplotlib.figure", "scipy.stats"),
    *("sklearn.datasets", "sklearn.model_selection", "pytest"),
)


def started(act: Callable[..., None], *args: Any) -> BaseProcess:
    """Start `act(*args)`, a function of a module, in a process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(SERVED))
    process = context.Process(target=_act, args=(act, args))
    process.start()
    return process


def commanded(arguments: list[str], said: Path, folder: Path) -> BaseProcess:
    """Start `sparring ARGUMENTS` in a folder, in a process whose standard error goes to a file."""
    return started(_command, arguments, said, folder)


def ended(process: BaseProcess) -> int:
    """Wait for a process, and return its exit code, below 0 if a signal has ended it."""
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _act(act: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    act(*args)


def _command(arguments: list[str], said: Path, folder: Path) -> None:
    from sparring.cli import run

    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    with said.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.exit(run(arguments))
