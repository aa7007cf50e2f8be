"""The command `sparring study`."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .common import argument, ourselves, print_json, say

_STUDY = """\
usage: sparring study NAME [--scale smoke|cpu|gpu] [--out DIR] [--workers N] [--overwrite] [--json]

Re-examines the claims of a paper: trainings x seeds, all evaluated in the same way, and a verdict on each claim by a
stated rule. Writes table.md, table.csv, figure.svg, figure.png, study.json and the results of every example to its
folder. A study that was interrupted is resumed; finished trainings are not repeated."""


@dataclass(frozen=True, kw_only=True)
class _Options:
    scale: Literal["smoke", "cpu", "gpu"] = "cpu"
    """smoke takes a minute and decides no claim; cpu is for two cores and 20 minutes; gpu is meant for one data-centre
    GPU and the same time, and was not tried."""
    out: str | None = None
    """Folder of the study; by default results/NAME-SCALE."""
    seeds: int | None = None
    """Number of seeds; by default that of the study."""
    workers: int | None = None
    """Number of trainings at a time, each on its share of the cores; by default on a CPU one per core."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Delete the trainings in the folder and start anew."""
    json: bool = False
    """Print study.json on standard output instead of sentences."""


def _again(args: list[str]) -> str:
    return shlex.join([ourselves(), "study", *(a for a in args if a != "--overwrite")])


def study(args: list[str]) -> int:
    from ..studies import entries, find

    usage = _STUDY + "\n\n" + "\n".join(f"  {name:10} {summary}" for name, summary in entries().items())
    name, rest = argument(args, "NAME", usage)
    make = find(name)  # report an unknown name before anything heavy is imported
    import tyro

    options = tyro.cli(_Options, args=rest, prog=f"sparring study {name}", description=usage)
    from dataclasses import replace

    from ..acceleration import tune_process
    from ..core.reading import read_json
    from ..studies.running import run_study

    tune_process()
    wanted = make(options.scale)
    if options.seeds is not None:
        wanted = replace(wanted, seeds=options.seeds)
    folder = Path(options.out or f"results/{wanted.name}-{options.scale}")
    try:
        findings = run_study(
            wanted,
            folder,
            scale=options.scale,
            device=options.device,
            workers=options.workers,
            overwrite=options.overwrite,
            log=lambda text: say(text, sys.stderr),
        )
    except KeyboardInterrupt:
        say(f"sparring: stopped; what is trained is kept. Go on with: {_again(args)}", sys.stderr)
        return 130
    if options.json:
        print_json(read_json(folder / "study.json"))
        return 0
    for verdict in findings.verdicts:
        say(f"{verdict.outcome}: {verdict.claim} ({verdict.found()}{'' if verdict.unit else ' points'})")
    say(f"{folder / 'table.md'}, {folder / 'figure.svg'}")
    return 0
