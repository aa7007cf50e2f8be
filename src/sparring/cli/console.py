"""Progress output: a live bar on a terminal, plain lines elsewhere. All of it is written to standard error."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from ..bench import Timing
from ..evaluation import EvaluationProgress
from ..records.results import Accuracy, EvaluationResult, Finding
from ..training.hooks import TrainingProgress

QUIET_SECONDS = 15.0  # between plain lines within an epoch


class TrainingOutput(NamedTuple):
    """Functions that training calls with its progress after each step, and with lines of text."""

    show: Callable[[TrainingProgress], None]
    say: Callable[[str], None]


@contextmanager
def training() -> Iterator[TrainingOutput]:
    """Show the progress of training."""
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False)

    if not console.is_terminal:
        yield TrainingOutput(_announcing(_Lines(console).show, console), _unless_closed(say))
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=None, detail="")

        def show(news: TrainingProgress) -> None:
            if news.held_out is not None:
                console.print(f"epoch {_epoch(news)}  {_terms(news)}  {_held_out(news)}", highlight=False)
            at = news.progress
            total = at.epochs * at.steps_per_epoch
            bar.update(task, completed=at.step, total=total, description=_position(news), detail=_detail(news))

        yield TrainingOutput(_announcing(show, console), _unless_closed(say))


def _announcing(show: Callable[[TrainingProgress], None], console: Console) -> Callable[[TrainingProgress], None]:
    """Wrap `show`: announce first if training continues from a checkpoint, and stay silent once the output is closed.

    If the reader of a pipe has gone, rich raises `SystemExit`; training must continue all the same.
    """
    fresh, heard = True, True

    def tell(news: TrainingProgress) -> None:
        nonlocal fresh, heard
        if not heard:
            return
        try:
            if fresh and news.progress.step > 1:
                console.print(f"going on after step {news.progress.step - 1}", highlight=False)
            fresh = False
            show(news)
        except (BrokenPipeError, SystemExit):
            heard = False

    return tell


def _unless_closed(say: Callable[[str], None]) -> Callable[[str], None]:
    def tell(text: str) -> None:
        with suppress(BrokenPipeError, SystemExit):
            say(text)

    return tell


class _Lines:
    """Prints a line per epoch, and one every few seconds in long epochs."""

    def __init__(self, console: Console) -> None:
        self.console, self.last = console, time.monotonic()

    def show(self, news: TrainingProgress) -> None:
        now = time.monotonic()
        if news.held_out is not None:
            self._print(f"{_position(news)}  {_detail(news)}  {_held_out(news)}")
        elif now - self.last > QUIET_SECONDS:
            self._print(f"{_position(news)}  {_detail(news)}")

    def _print(self, line: str) -> None:
        self.last = time.monotonic()
        self.console.print(line, soft_wrap=True, highlight=False)


def _epoch(news: TrainingProgress) -> str:
    at = news.progress
    return f"{min(at.epochs, (at.step - 1) // at.steps_per_epoch + 1)}/{at.epochs}"


def _position(news: TrainingProgress) -> str:
    at = news.progress
    return f"epoch {_epoch(news)}  step {at.step}/{at.epochs * at.steps_per_epoch}"


def _terms(news: TrainingProgress) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in news.terms.items())


def _detail(news: TrainingProgress) -> str:
    return f"{news.images_per_second:,.0f} images/s  {duration(news.seconds_left)} left  {_terms(news)}"


def _held_out(news: TrainingProgress) -> str:
    held = news.held_out or {}
    if not held:
        return "nothing held out"
    scores = "  ".join(f"{name} {100 * value:.1f} %" for name, value in held.items())
    return f"held-out {scores}{'  best' if news.best else ''}"


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


def accuracy_table(tables: Mapping[str, Mapping[str, Accuracy]]) -> Table:
    """Build a table with a row per attack and a column per model; a cell is an accuracy with its 95 % interval."""
    count = next(each.examples for column in tables.values() for each in column.values())
    table = Table(caption=f"accuracy on {count:,} images with its 95 % Wilson interval", caption_justify="left")
    table.add_column("attack")
    for which in tables:
        table.add_column(which, justify="right")
    for name in next(iter(tables.values())):
        table.add_row(name, *(str(column[name]) for column in tables.values()))
    return table


def remarks(which: str, evaluated: EvaluationResult) -> list[str]:
    """Return remarks on the last adversary: number of examples broken by each attack, worst classes, notes."""
    name, middle = list(evaluated.robust)[-1], evaluated.median_distance()
    broken = evaluated.broken_by(name)
    parts = dict.fromkeys(("clean", *(n.rpartition("/")[2] for n in evaluated.robust)))
    counts = [f"{part} {int((broken == part).sum())}" for part in parts if (broken == part).any()]
    worst = [f"{k} {100 * a.value:.1f} %" for k, a in list(evaluated.by_class(name).items())[:3]]
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
        table.add_row(each.name, verdict, escape(each.meaning), escape(each.threshold))
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


def duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
