"""The device of a run, and a record of the environment it was started in."""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..core.errors import UserError


def device_of(name: str) -> torch.device:
    """Return the device of a name; `auto` is the GPU if there is one. Raises `UserError` if it is not available."""
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
        torch.empty(0, device=device).cpu()  # fails on "meta", whose tensors hold no data
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} is not available here: use auto, or cpu, which is") from error
    return device


def session(seed: int, device: torch.device) -> dict[str, Any]:
    """Return the record of a start for the run folder: versions, commit, device, threads, seed, command."""
    own = {name: version(name) for name in ("numpy", "sparring")}
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, **own},
        "commit": commit(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "seed": seed,
        "command": [_program(Path(sys.argv[0])), *sys.argv[1:]],
        "process": os.getpid(),
    }


def _program(called: Path) -> str:
    """Return the name of the program: `python -m sparring` is called by the path of a file."""
    return "sparring" if called.parts[-2:] == ("sparring", "__main__.py") else called.name


def commit() -> str | None:
    """Return the commit of this package if it runs from a checkout, with a + if files were changed."""
    here = ["git", "-C", str(Path(__file__).parent)]
    try:
        tracked = subprocess.run([*here, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
        if tracked.returncode != 0:
            return None
        commit = subprocess.run([*here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*here, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed.stdout.strip() else "")
