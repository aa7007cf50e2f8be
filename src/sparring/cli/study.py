"""`sparring study`."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .common import argument, ourselves, print_json, say

_STUDY = """\
usage: sparring study NAME [--scale smoke|cpu|gpu] [--out DIR] [--workers N] [--overwrite] [--json]

Re-examines what a paper claims: trainings x seeds, all evaluated alike, and a verdict on each claim by a stated rule.
Writes table.md, table.csv, figure.svg, figure.png, study.json and the results of every example to its folder. A study
that was interrupted goes on; trainings that are finished are not done again."""


@dataclass(frozen=True, kw_only=True)
class _Options:
    scale: Literal["smoke", "cpu", "gpu"] = "cpu"
    """smoke takes a minute and decides nothing; cpu is for two cores and 20 minutes; gpu is meant for one data-centre
    GPU and as long, and was not tried."""
    out: str | None = None
    """Its folder; results/NAME-SCALE if left out."""
    seeds: int | None = None
    """Another number of seeds than the study has."""
    workers: int | None = None
    """Trainings side by side, each on its share of the cores; on a CPU, one a core if left out."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Delete the trainings that the folder holds."""
    json: bool = False
    """Print study.json on standard output instead of sentences."""


def _again(args: list[str]) -> str:
    return shlex.join([ourselves(), "study", *(a for a in args if a != "--overwrite")])


def study(args: list[str]) -> int:
    from ..studies import entries, find

    usage = _STUDY + "\n\n" + "\n".join(f"  {name:10} {summary}" for name, summary in entries().items())
    name, rest = argument(args, "NAME", usage)
    make = find(name)  # an unknown name is said before anything heavy is imported
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
    folder = Path(options.out or f"results/{name}-{options.scale}")
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
