"""The command `sparring bench`."""

import sys
from dataclasses import dataclass

from ..core.errors import need_whole
from .common import print_json, read, say

_BENCH = """\
Measures how fast this machine attacks and trains: PGD-10 on a PreActResNet-18, and a training step with it. The
default settings (bf16 where the processor has it) are compared with plain eager float32, in turns in one process. The
highest speed of convolutions and matrix products on this machine is measured, too. Each time is shown with the
accuracy under the attack, so that only attacks of equal strength are compared."""


@dataclass(frozen=True, kw_only=True)
class _Options:
    width: int = 16
    """Number of channels of the first layer; 64 is the usual network."""
    batch: int = 128
    """Number of images in a batch."""
    rounds: int = 5
    """Number of times that each side is timed."""
    compiled: bool = False
    """Time compiled models, too: takes half a minute more, two seconds the next time."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print one JSON object on standard output instead of a table."""


def bench(args: list[str]) -> int:
    options = read(_Options, args, "sparring bench", _BENCH)
    for number in ("width", "batch", "rounds"):
        need_whole(f"--{number}", getattr(options, number))
    from ..acceleration import tune_process
    from ..bench import bench as run
    from ..bench import ceilings
    from ..runs.environment import device_of

    tuned, device = tune_process(), device_of(options.device)
    timings = run(
        options.width,
        options.batch,
        options.rounds,
        device,
        options.compiled,
        on_step=lambda text: None if options.json else say(text, sys.stderr),
    )
    most = ceilings(device)
    if options.json:
        rows = [timing.plain() for timing in timings]
        print_json({"timings": rows, "ceilings": most, "allocator": tuned.allocator, "threads": tuned.threads})
        return 0
    from rich import print as rich_print

    from .console import timing_table

    rich_print(timing_table(timings, most))
    where = f"{device}, {tuned.threads} threads, allocator {tuned.allocator}"
    say(f"width {options.width}, batches of {options.batch}, {where}")
    return 0
