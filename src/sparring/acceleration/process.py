"""Process settings that make torch fast: keep freed memory, and use no more threads than usable cores."""

import ctypes
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch

SWITCH = "SPARRING_ALLOCATOR"
_TOP_PAD, _TRIM_THRESHOLD, _MMAP_MAX = -2, -1, -4  # names of glibc's mallopt
_LARGEST, _PAD = 2**31 - 1, 64 * 2**20


class Tuned(NamedTuple):
    """Result of `tune_process`: the allocator ("kept", or the reason why it was left alone) and the thread count."""

    allocator: str
    threads: int


def tune_process() -> Tuned:
    """Make this process keep freed memory, and use no more threads than it has cores.

    glibc's allocator maps memory anew for every large tensor and returns it at once, which costs thousands of page
    faults in a step of an attack. When it keeps the memory, a step in float32 is 1.3 times as fast (PreActResNet-18 of
    width 16, two cores); in bf16, whose tensors are half as large, it makes little difference. The process stays as
    large as it once was.

    The allocator is left alone where another one is loaded, where `GLIBC_TUNABLES` sets it, where it is not glibc's,
    and if the environment variable SPARRING_ALLOCATOR is `default`. The number of threads is left alone if
    OMP_NUM_THREADS is set.

    Returns:
        A named tuple: `allocator`, "kept" or the reason why it was left alone, and `threads`, torch's thread count.
    """
    usable = usable_cores()
    if "OMP_NUM_THREADS" not in os.environ and usable < torch.get_num_threads():
        torch.set_num_threads(usable)
    return Tuned(_keep_memory(), torch.get_num_threads())


def _keep_memory() -> str:
    if os.environ.get(SWITCH, "keep") == "default":
        return f"default: {SWITCH} says so"
    if "malloc" in os.environ.get("LD_PRELOAD", "") or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return "default: LD_PRELOAD or GLIBC_TUNABLES sets it"
    if not sys.platform.startswith("linux"):
        return f"default: not known on {sys.platform}"
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return "default: the C library has no mallopt"
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, _PAD))
    return "kept" if all(mallopt(name, value) == 1 for name, value in wanted) else "default: mallopt refused"


def usable_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and by the container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return cores
