"""The command `sparring study`."""

import math
import re
import shlex
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import UseAppendAction

from ..core.errors import UserError
from ..studies import entries, find
from ..studies.jobs import Plan
from .common import argument, going_on, ourselves, print_json, read, say

if TYPE_CHECKING:
    from ..records.statistics import Verdict
    from ..studies.study import Study

_STUDY = """\
usage: sparring study NAME [--scale smoke|cpu|gpu] [--budget 10m] [--out DIR] [--workers N] [--overwrite] [--json]
       sparring study NAME --until-decided [--budget 8h] [--scale smoke|cpu|gpu] [--out DIR] [--workers N]
       sparring study NAME --status [--scale smoke|cpu|gpu] [--out DIR] [--json]
       sparring study NAME --slurm [local] [--slurm-option KEY=VALUE] [--out DIR] [--workers N]

Re-examines the claims of a paper: trainings x seeds, all evaluated in the same way, and a verdict on each claim by a
stated rule. Writes report.html, table.md, table.csv, figures, study.json and the results of every example to its
folder. A study that was interrupted is resumed; finished trainings are not repeated. The same command may be given any
number of times at once, on all machines that see the folder: they share the trainings."""


@dataclass(frozen=True, kw_only=True)
class _Options:
    scale: Literal["smoke", "cpu", "gpu"] = "cpu"
    """smoke takes a minute and decides no claim; cpu is for two cores and 15 minutes to three hours; gpu is meant for
    one data-centre GPU, and was not tried."""
    out: str | None = None
    """Folder of the study; by default results/NAME-SCALE."""
    seeds: int | None = None
    """Number of seeds; by default that of the study. An arm whose own number is smaller keeps it."""
    until_decided: bool = False
    """Add seeds to the trainings that open claims need, up to 18, by a rule that was fixed before (docs/studies.md)."""
    budget: str | None = None
    """Time after which no training begins any more: hours as 8 or 8h, minutes as 10m. What the headline claims of the
    paper need comes first. The command may be given again, and goes on."""
    workers: int | None = None
    """Number of trainings at a time, by default one on each GPU, and on a CPU one on each core, which share the cores;
    with --slurm the number of SLURM jobs, by default one for each training."""
    device: str = "auto"
    """auto (all GPUs, if there are any), cpu, cuda (all GPUs) or cuda:N."""
    overwrite: bool = False
    """Delete the trainings in the folder and start anew."""
    status: bool = False
    """Print the state of every training, and do nothing."""
    slurm: Literal["slurm", "local"] | None = None
    """Submit workers to SLURM (--slurm), or start them on this machine (--slurm local), and return."""
    slurm_option: UseAppendAction[tuple[str, ...]] = ()
    """What each SLURM job asks for, as in partition=gpu, gpus_per_node=1, cpus_per_task=8 or timeout_min=600."""
    json: bool = False
    """Print study.json, or the states, on standard output instead of sentences."""


def study(args: list[str]) -> int:
    usage = _STUDY + "\n\n" + "\n".join(f"  {name:13} {summary}" for name, summary in entries().items())
    name, rest = argument(args, "NAME", usage)
    if "--status" not in rest:
        find(name)  # report an unknown name before anything heavy is imported
    options = read(_Options, _settled(rest), f"sparring study {name}", usage)
    if options.slurm_option and options.slurm is None:
        raise UserError("--slurm-option says what SLURM jobs ask for: give --slurm, too")
    _hours(options.budget)  # a mistake in it is told before anything begins
    if options.status:
        return _status(name, options)
    return _submit(name, options) if options.slurm else _run(name, options, args)


def _settled(args: list[str]) -> list[str]:
    """Write `--slurm` without a value as `--slurm slurm`."""
    bare = [a == "--slurm" and b.startswith("--") for a, b in pairwise([*args, "--"])]
    return [word for arg, alone in zip(args, bare, strict=True) for word in ([arg, "slurm"] if alone else [arg])]


def _found(name: str, options: _Options) -> tuple["Study", Path]:
    """Return the study with its seeds, and its folder."""
    wanted = find(name)(options.scale)
    if options.seeds is not None:
        most = options.seeds
        arms = tuple(replace(arm, seeds=arm.seeds and min(arm.seeds, most)) for arm in wanted.arms)
        wanted = replace(wanted, seeds=most, arms=arms)
    return wanted, Path(options.out or f"results/{wanted.name}-{options.scale}")


def _hours(budget: str | None) -> float:
    """Return a time in hours; without one, all the time there is."""
    if budget is None:
        return math.inf
    found = re.fullmatch(r"(\d+|\d*\.\d+)([hm]?)", budget)
    if found is None:
        raise UserError(f"--budget {budget} is no time: write hours as 8 or 8h, minutes as 10m")
    return float(found[1]) / (60 if found[2] == "m" else 1)


# -- run


def _run(name: str, options: _Options, args: list[str]) -> int:
    from ..acceleration import tune_process
    from ..core.reading import read_json
    from ..studies.running import run_study

    tune_process()
    wanted, folder = _found(name, options)
    try:
        findings = run_study(
            wanted,
            folder,
            scale=options.scale,
            device=options.device,
            workers=options.workers,
            overwrite=options.overwrite,
            until_decided=options.until_decided,
            hours=_hours(options.budget),
            log=lambda text: say(text, sys.stderr),
        )
    except KeyboardInterrupt:
        again = going_on("study", args)
        say(f"sparring: stopped; what is trained is kept. Go on with: {again}", sys.stderr)
        return 130
    if options.json:
        print_json(read_json(folder / "study.json"))
        return 0
    for verdict in findings.verdicts:
        say(_sentence(verdict))
    say(f"{folder / 'table.md'}, {folder / 'report.html'}")
    return 0


def _sentence(verdict: "Verdict") -> str:
    unit, reason = "" if verdict.unit else " points", f"; {verdict.reason}" if verdict.reason else ""
    power = "" if verdict.detectable is None else f", detectable {verdict.power()}{unit}"
    seeds = "1 seed" if verdict.seeds == 1 else f"{verdict.seeds} seeds"
    return f"{verdict.outcome}: {verdict.claim} ({verdict.found()}{unit}, {seeds}{power}{reason})"


# -- look


def _status(name: str, options: _Options) -> int:
    """Print the state of every job. Imports no torch if the folder says what the study consists of."""
    folder, plan = Path(options.out or f"results/{name}-{options.scale}"), None
    if options.out or ":" not in name:
        plan = Plan.read(folder)
    if plan is None:
        wanted, folder = _found(name, options)
        say(f"note: {folder} holds no study yet, and these are all of its trainings", sys.stderr)
        plan = wanted.plan(options.scale)
    elif ":" not in name and plan.study != name:
        raise UserError(f"{folder} holds the study {plan.study}, not {name}: name that, or another folder with --out")
    states = [state.plain(job) for job, state in plan.states(folder)]
    if options.json:
        print_json({"study": plan.study, "scale": plan.scale, "folder": str(folder), "jobs": states})
        return 0
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(caption=f"{folder}: {_count(states)}", caption_justify="left")
    for column in ("arm", "seed", "state"):
        table.add_column(column)
    for each in states:
        detail = f" {each['detail']}" if each["detail"] else ""
        table.add_row(escape(str(each["arm"])), str(each["seed"]), escape(f"{each['state']}{detail}"))
    Console().print(table)
    return 0


def _count(states: list[dict[str, object]]) -> str:
    words = [str(each["state"]) for each in states]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


# -- submit


def _submit(name: str, options: _Options) -> int:
    from ..studies.running import prepare
    from .slurm import submit

    wanted, folder = _found(name, options)
    prepare(wanted, folder, options.scale, overwrite=options.overwrite)
    left = sum(not job.done() for job in wanted.plan(options.scale).trainings(folder))
    given = ["--scale", options.scale, "--out", str(folder), "--device", options.device]
    more = [] if options.seeds is None else ["--seeds", str(options.seeds)]
    more += ["--until-decided"] if options.until_decided else []
    more += [] if options.budget is None else ["--budget", options.budget]
    jobs = submit(
        ["study", name, *given, *more],
        options.workers or max(1, left),
        folder / "slurm",
        cluster=str(options.slurm),
        options=options.slurm_option,
    )
    if options.json:
        print_json({"jobs": jobs, "logs": str(folder / "slurm")})
        return 0
    look = shlex.join([ourselves(), "study", name, "--status", *given[:4]])
    say(f"submitted {len(jobs)} workers ({', '.join(jobs)}), with their logs in {folder / 'slurm'}. See: {look}")
    return 0
