"""Progress of a training: a live bar on a terminal, plain lines elsewhere. All of it is written to standard error."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from ..training.hooks import TrainingProgress

QUIET_SECONDS = 15.0  # between plain lines within an epoch
REDRAWN_SECONDS = 0.1  # between two looks at the terms of the loss, which wait for a GPU


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
        task, shown = bar.add_task("training", total=None, detail=""), -math.inf

        def show(news: TrainingProgress) -> None:
            nonlocal shown
            if news.held_out is not None:
                console.print(f"epoch {_epoch(news)}  {_terms(news)}  {_held_out(news)}", highlight=False)
            at, now = news.progress, time.monotonic()
            total = at.epochs * at.steps_per_epoch
            if now - shown >= REDRAWN_SECONDS or at.step == total:
                shown = now
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


def duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
