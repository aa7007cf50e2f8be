"""Progress output: a live bar on a terminal, plain lines elsewhere. All of it is written to standard error."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from ..bench import Timing
from ..evaluation import EvaluationProgress
from ..records.results import Accuracy, EvaluationResult, Finding
from ..runs.progress import QUIET_SECONDS, duration


@contextmanager
def evaluating() -> Iterator[Callable[[str, EvaluationProgress], None]]:
    """Show the progress of an evaluation: the present attack, the number of robust examples, and the time left."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _EvaluationLines(console).show
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def show(which: str, news: EvaluationProgress) -> None:
            what = f"{which}: {news.stage}"
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=news.todo, detail="")
            total = max(1, news.todo)
            bar.update(tasks[what], completed=total if news.stage_done else news.done, total=total)
            bar.update(tasks[what], detail=_standing(news))

        yield show


class _EvaluationLines:
    """Prints a line at the end of each attack, and one every few seconds in between."""

    def __init__(self, console: Console) -> None:
        self.console, self.last = console, time.monotonic()

    def show(self, which: str, news: EvaluationProgress) -> None:
        now = time.monotonic()
        if news.stage_done or now - self.last > QUIET_SECONDS:
            self.last = now
            line = f"{which}: {news.stage}  {news.done}/{news.todo} attacked  {_standing(news)}"
            self.console.print(line, soft_wrap=True, highlight=False)


def _standing(news: EvaluationProgress) -> str:
    unknown = news.stage_done or math.isnan(news.seconds_left)
    left = "" if unknown else f"  {duration(news.seconds_left)} left in all"
    return f"{int(news.flags.sum())} of {len(news.flags)} robust{left}"


def accuracy_table(
    tables: Mapping[str, Mapping[str, Accuracy]], summaries: Mapping[str, Mapping[str, str]] = MappingProxyType({})
) -> Table:
    """Build a table with a row per attack and a column per model; a cell is an accuracy with its 95 % interval.

    The rows of the `summaries` of the models follow.
    """
    count = next(each.examples for column in tables.values() for each in column.values())
    table = Table(caption=f"accuracy on {count:,} images with its 95 % Wilson interval", caption_justify="left")
    table.add_column("attack")
    for which in tables:
        table.add_column(escape(which), justify="right")
    for name in next(iter(tables.values())):
        table.add_row(escape(name), *(str(column[name]) for column in tables.values()))
    table.add_section()
    for name in next(iter(summaries.values()), {}):
        table.add_row(escape(name), *(escape(column[name]) for column in summaries.values()))
    return table


def remarks(which: str, evaluated: EvaluationResult) -> list[str]:
    """Return remarks on the last adversary: number of examples broken by each attack, worst classes, notes."""
    name, middle = list(evaluated.robust)[-1], evaluated.median_distance()
    broken = evaluated.broken_by(name)
    parts = dict.fromkeys(("clean", *(n.rpartition("/")[2] for n in evaluated.robust)))
    counts = [f"{part} {int((broken == part).sum())}" for part in parts if (broken == part).any()]
    worst = [f"{k} ({100 * a.value:.1f} %)" for k, a in list(evaluated.by_class(name).items())[:3]]
    return [
        f"{which}: {name} broken by {', '.join(counts) or 'nothing'}",
        f"{which}: worst classes {', '.join(worst)}",
        *(
            []
            if middle is None
            else [f"{which}: half of the correctly classified examples are broken at an eps below {middle:.4g}"]
        ),
        *(f"{which}: note: {note}" for note in evaluated.notes),
    ]


def findings_table(findings: Sequence[Finding]) -> Table:
    """Build the table of an audit, with a row per check."""
    table = Table(caption="checks of a robust accuracy", caption_justify="left")
    for column in ("check", "verdict", "found", "threshold"):
        table.add_column(column)
    colours = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "dim"}
    for each in findings:
        verdict = f"[{colours[each.verdict]}]{each.verdict}[/]"
        table.add_row(escape(each.name), verdict, escape(each.meaning), escape(each.threshold))
    return table


def timing_table(timings: Sequence[Timing], ceilings: Mapping[str, float]) -> Table:
    """Build a table with a row per side: seconds, speed-up over the first side of the same work, and GFLOP/s."""
    table = Table(caption=", ".join(f"{name} {value:,.0f} GFLOP/s" for name, value in ceilings.items()))
    for column in ("work", "side", "median s", "least", "most", "times", "GFLOP/s", "robust"):
        table.add_column(column, justify="left" if column in ("work", "side") else "right")
    first: dict[str, float] = {}
    for each in timings:
        times = first.setdefault(each.work, each.median) / each.median
        seconds = (f"{s:.3f}" for s in (each.median, min(each.seconds), max(each.seconds)))
        table.add_row(
            each.work, each.side, *seconds, f"{times:.2f}", f"{each.gflops:,.0f}", f"{100 * each.robust:.1f} %"
        )
    return table
