"""Description of this machine and this installation, for `sparring doctor` and for reports of faults."""

import os
import platform
import re
import shutil
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

from ..acceleration import computes_bf16, tune_process
from ..acceleration.process import usable_cores
from ..data.files import cache_folder
from ..data.found import found
from .environment import commit, device_of

FOR_CONTRIBUTORS = ("dev", "docs", "release")
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[([\w,-]+)\])?.*extra == ['\"]([\w-]+)['\"]")


def examine() -> dict[str, Any]:
    """Examine this machine and this installation; nothing is downloaded, compiled or written.

    Returns:
        What was found, as plain values: `versions`, `commit`, `platform`, `device`, `bf16`, `allocator`, `threads`,
        `compiler`, `data`, `extras`, and `remarks`, sentences that say what is wrong or slow and what to do.
    """
    tuned, device = tune_process(), device_of("auto")
    facts = {
        "versions": {
            "sparring": version("sparring"),
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # with the build, as in 2.13.0+cpu
            **{name: _version(name) for name in ("numpy", "scipy", "torchvision", "timm")},
        },
        "commit": commit(),
        "platform": platform.platform(),
        "device": {"type": device.type, "cpu": _processor(), "gpus": _gpus(), "cuda": torch.version.cuda},
        "bf16": computes_bf16(device),
        "allocator": tuned.allocator,
        "threads": {
            "used": tuned.threads,
            "cores": usable_cores(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
        "compiler": shutil.which(os.environ.get("CXX", "c++")),
        "data": {
            "folder": str(cache_folder()),
            "found": {name: place and str(place) for name, place in found().items()},
        },
        "extras": extras(requires("sparring") or ()),
    }
    return {**facts, "remarks": _remarks(facts)}


def extras(requirements: Any) -> dict[str, dict[str, Any]]:
    """Return the optional packages by extra, from the requirements in a package's metadata.

    Args:
        requirements: Requirements as `importlib.metadata.requires` gives them.

    Returns:
        For each extra that is meant for users: `packages`, the version of each package or None if it is missing, and
        `get`, the command that installs what is missing, or None.
    """
    wanted: dict[str, list[str]] = defaultdict(list)
    nested: dict[str, list[str]] = defaultdict(list)
    for name, inner, extra in filter(None, (_parsed(each) for each in requirements)):
        (nested[extra].extend(inner.split(",")) if inner else wanted[extra].append(name))
    for extra, others in nested.items():
        wanted[extra] += [name for other in others for name in wanted[other]]
    return {extra: _extra(extra, names) for extra, names in sorted(wanted.items()) if extra not in FOR_CONTRIBUTORS}


def _parsed(requirement: str) -> tuple[str, str, str] | None:
    match = _REQUIREMENT.fullmatch(requirement)
    return (match[1], match[2] or "", match[3]) if match else None


def _extra(extra: str, names: list[str]) -> dict[str, Any]:
    packages = {name: _version(name) for name in names}
    return {"packages": packages, "get": None if all(packages.values()) else f"pip install 'sparring[{extra}]'"}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the name of the processor, which Python does not know on Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    each = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [
        {"name": gpu.name, "capability": f"{gpu.major}.{gpu.minor}", "memory_gib": round(gpu.total_memory / 2**30, 1)}
        for gpu in each
    ]


def _remarks(facts: dict[str, Any]) -> list[str]:
    """Return what is wrong or slow here, each with its remedy, in one sentence."""
    threads, device, torch_version = facts["threads"], facts["device"]["type"], facts["versions"]["torch"]
    cases = (
        (
            device == "cpu" and shutil.which("nvidia-smi"),
            f"nvidia-smi is here, but torch {torch_version} sees no GPU: install a build of torch for CUDA, or look at "
            "the driver",
        ),
        (not facts["bf16"], "the device has no instructions for bf16: attacks run in float32, which takes longer"),
        (
            threads["used"] < threads["cores"],
            f"torch uses {threads['used']} of {threads['cores']} cores, as OMP_NUM_THREADS="
            f"{threads['OMP_NUM_THREADS']} says: set it to {threads['cores']}, or unset it",
        ),
        (
            device == "cpu" and facts["allocator"] != "kept",
            f"freed memory is not kept ({facts['allocator']}): attacks in float32 take longer on this processor",
        ),
        (not facts["compiler"], "there is no C++ compiler: install one (Debian's g++) if you want compiled models"),
    )
    return [sentence for holds, sentence in cases if holds]
