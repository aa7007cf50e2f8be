"""Workers of a study on a cluster: the same command, started by SLURM on as many nodes as are wanted."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import foreign
from ..core.errors import UserError
from ..core.optional import library

_GENERAL = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")
_USUAL = {"timeout_min": 24 * 60, "name": "sparring"}
_AGAIN = 1000  # how often a worker whose time is over is started again


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker: a command line, which goes on where it was when it is given again."""

    args: tuple[str, ...]
    known: foreign.Known

    def __call__(self) -> None:
        from . import run

        foreign.know(self.known)
        code = run([*self.args])
        if code != 0:
            raise RuntimeError(f"sparring {' '.join(self.args)} ended with exit code {code}: its log says why")

    def checkpoint(self) -> Any:
        """Return what SLURM is to start again after it has taken the node away, or the time is over."""
        return library("submitit", "slurm", "--slurm").helpers.DelayedSubmission(self)


def submit(
    args: Sequence[str], count: int, folder: Path, *, cluster: str = "slurm", options: Sequence[str] = ()
) -> list[str]:
    """Submit workers.

    Args:
        args: The command line of each, without `sparring`.
        count: Number of workers.
        folder: Folder for their logs.
        cluster: `slurm`, or `local` for processes of this machine.
        options: Requests such as `partition=gpu` or `gpus_per_node=1`, in SLURM's or submitit's terms.

    Returns:
        The numbers of the jobs.

    Raises:
        UserError: If submitit is not installed, there is no SLURM here, or an option is not known.
    """
    submitit = library("submitit", "slurm", "--slurm")
    with _explained():
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=_AGAIN)
        executor.update_parameters(**{**_USUAL, **dict(map(_parameter, options))})
        with executor.batch():
            jobs = [executor.submit(Worker(tuple(args), foreign.known())) for _ in range(count)]
    return [job.job_id for job in jobs]


def _parameter(option: str) -> tuple[str, Any]:
    """Return a parameter of submitit from `KEY=VALUE`."""
    key, equals, value = option.partition("=")
    if not key or not equals:
        raise UserError(f"--slurm-option {option!r} is not of the form KEY=VALUE, as partition=gpu or gpus_per_node=1")
    whole = int(value) if value.isdecimal() else value
    return (key if key in _GENERAL or key.startswith("slurm_") else f"slurm_{key}"), whole


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn the errors of submitit into a `UserError`."""
    try:
        yield
    except NameError as error:
        raise UserError(
            f"--slurm-option is not known ({str(error).splitlines()[0]}): give {', '.join(_GENERAL)}, or an option of "
            "SLURM, as partition=gpu"
        ) from error
    except AssertionError as error:
        raise UserError(f"--slurm-option has a wrong value: {error}") from error
    except (RuntimeError, FileNotFoundError) as error:
        raise UserError(
            f"SLURM does not take the workers ({error}): give the command where sbatch works, or --slurm local"
        ) from error
