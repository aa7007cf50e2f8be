"""The processes of torchrun or srun, which train or evaluate one model together."""

import os
import re
import sys
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ..core.errors import UserError


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a process among those that work together.

    Args:
        rank: number of the process, from 0 on.
        world: number of processes.
        local_rank: number of the process on its machine, which is the number of its GPU.
        address: name of the machine of the first process.
        port: port of the first process.
    """

    rank: int
    world: int
    local_rank: int
    address: str
    port: int


def place_in(environment: Mapping[str, str]) -> Place | None:
    """Return the place of this process as torchrun or srun gives it; None if it works alone.

    Args:
        environment: environment variables.

    Returns:
        The place; None without torchrun and srun, and if there is one process.

    Raises:
        UserError: If a variable is missing.
    """
    if "TORCHELASTIC_RUN_ID" in environment or {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= environment.keys():
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in environment]
        if missing:
            raise UserError(f"torchrun sets {', '.join(names)}, but {', '.join(missing)} is not set: use torchrun")
        rank, world, local, address, port = (environment[name] for name in names)
        found = Place(int(rank), int(world), int(local), address, int(port))
    elif "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment:
        address = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
        job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        port = environment.get("MASTER_PORT") or str(20_000 + (job + 7919 * step) % 20_000)
        local = environment.get("SLURM_LOCALID", "0")
        found = Place(
            int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"]), int(local), address, int(port)
        )
    else:
        return None
    return found if found.world > 1 else None


def _slurm() -> bool:
    return "SLURM_STEP_NODELIST" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ


def first_host(nodes: str) -> str:
    """Return the first machine of a list as Slurm writes it, such as `node[003-006,9],login1`."""
    head, _, ranges = re.split(r",(?![^\[]*\])", nodes)[0].partition("[")
    return head + re.split(r"[-,\]]", ranges)[0] if ranges else head


def _meeting_place(place: Place) -> Any:
    """Return the store in which the processes find each other."""
    stores: Any = dist
    if "TORCHELASTIC_RUN_ID" in os.environ:
        store, *_ = next(stores.rendezvous("env://", place.rank, place.world))
    else:
        store = stores.TCPStore(place.address, place.port, place.world, place.rank == 0)
    # after a restart, the store of torchrun still holds the addresses of the processes that were there before
    return stores.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def together(device: str) -> Generator[str]:
    """Join the other processes of torchrun or srun, if there are any.

    All but the first are silent on standard output.

    Args:
        device: name of the device that was asked for.

    Yields:
        The name of the device of this process: of several on CUDA each has its own.

    Raises:
        UserError: If there are more processes than GPUs on this machine.
    """
    place = place_in(os.environ)
    if place is None or dist.is_initialized():
        yield device
        return
    on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    number = 0 if on_cuda and torch.cuda.device_count() == 1 else place.local_rank  # Slurm may show each its own GPU
    if on_cuda and (number >= torch.cuda.device_count() or (number == 0 < place.local_rank and not _slurm())):
        raise UserError(
            f"this machine has {torch.cuda.device_count()} GPUs, but is asked for a process number "
            f"{place.local_rank + 1}: start as many processes as there are GPUs, or give --device cpu"
        )
    where = torch.device("cuda", number) if on_cuda else torch.device("cpu" if device == "auto" else device)
    if on_cuda:
        torch.cuda.set_device(where)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        store=_meeting_place(place),
        rank=place.rank,
        world_size=place.world,
        device_id=where if on_cuda else None,
    )
    said = sys.stdout
    try:
        with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
            if place.rank:
                sys.stdout = nowhere
                warnings.simplefilter("ignore")
            yield str(where)
    finally:
        sys.stdout = said
        dist.destroy_process_group()
