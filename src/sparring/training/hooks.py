"""What happens around the steps of a run: held-out evaluation, metrics, checkpoints, a stop that loses nothing."""

import math
import signal
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..core.errors import UserError
from ..core.types import Attack, AttackBackend, LabelledData, Progress, Refreshable, TensorData, refreshable
from ..evaluation import WhiteBox, evaluate
from ..records.run_folder import RunFolder
from .checkpoint import Checkpoints
from .engine import Hook, State
from .example_history import ExampleHistory
from .guard import Health, OverfittingMonitor, plain

LOG_EVERY = 10  # steps between two rows of metrics


class Interrupted(Exception):  # noqa: N818
    """Training was asked to stop, and everything is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """What there is to show: after a step, and with `held_out` after an epoch."""

    progress: Progress
    terms: Mapping[str, float]
    images_per_second: float
    seconds_left: float
    held_out: Mapping[str, float] | None = None
    best: bool = False


@dataclass(frozen=True, slots=True)
class Saving:
    """When checkpoints are written besides the end of each epoch: whichever of the two comes first."""

    seconds: float = 300.0
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.seconds < 0 or (self.steps is not None and self.steps < 1):
            raise UserError(f"checkpoints follow after seconds >= 0 and after 1 step or more, not {self}")


@dataclass(slots=True)
class ValidationHook(Hook):
    """Evaluates on the held-out part after each epoch, and notes in the state which epoch was the best.

    Without such a part each epoch counts as better than those before.
    """

    selection: Attack
    seed: int
    data: TensorData | None
    backend: AttackBackend
    latest: dict[str, float] = field(default_factory=dict)
    improved: bool = False

    def on_epoch(self, state: State, progress: Progress) -> None:
        state.check_finite()
        if self.data is None:
            self.improved, state.best = True, {"step": state.step}
            return
        adversary = {"robust": WhiteBox(self.selection)}
        found = evaluate(state.evaluated, self.data, adversary, seed=self.seed, backend=self.backend)
        self.latest = {name: accuracy.value for name, accuracy in found.table().items()}
        self.improved = _rank(self.latest) > _rank(state.best)
        if self.improved:
            state.best = {**self.latest, "step": state.step}

    def on_stop(self, state: State, progress: Progress) -> None:
        self.on_epoch(state, progress)  # perhaps nothing was the best yet


@dataclass(slots=True)
class GuardHook(Hook):
    """Lets the guard look, and tells of what it saw. `Alarm` passes through to whoever can act on it."""

    monitor: OverfittingMonitor
    run: RunFolder
    checkpoints: Checkpoints
    validation: ValidationHook
    log: Callable[[str], None]
    images_per_step: int
    steps_per_epoch: int

    def describe(self, passes: float) -> tuple[str, ...]:
        guard = self.monitor.guard
        added = guard.added(self.images_per_step, self.steps_per_epoch, passes)
        return (f"the guard looks {guard.checks} times an epoch, which adds up to {100 * added:.3g} % of the passes",)

    def on_step(self, state: State, progress: Progress, terms: Mapping[str, float]) -> None:
        if progress.step % progress.steps_per_epoch and self.monitor.guard.due(progress):
            self._look(state, progress)
            self.checkpoints.save(state)  # what a rescue goes back to

    def on_epoch(self, state: State, progress: Progress) -> None:
        health = self._look(state, progress)
        if state.average is not None:  # the held-out accuracy is that of the average
            health = self.monitor.examined(state.average, state)
        if self.validation.latest:
            self._tell(state, self.monitor.overfitting(state, health, self.validation.latest["robust"]))

    def _look(self, state: State, progress: Progress) -> Health:
        health, event = self.monitor.look(state, progress)
        self.checkpoints.pinned = self.monitor.kept(state).healthy
        self.run.add_metrics({"step": progress.step, "epoch": progress.epoch, "guard": plain(health)})
        self._tell(state, event)
        return health

    def _tell(self, state: State, event: str | None) -> None:
        if event is not None:
            self.run.set_guard(self.monitor.kept(state).events)
            self.log(event)


def _rank(scores: Mapping[str, float]) -> tuple[float, float]:
    return scores.get("robust", -1.0), scores.get("clean", -1.0)


@dataclass(slots=True)
class MetricsHook(Hook):
    """Writes metrics and tells whoever shows them."""

    run: RunFolder
    batch_size: int
    on_progress: Callable[[TrainingProgress], None]
    validation: ValidationHook
    board: Any
    began: float = field(default_factory=time.monotonic)
    steps: int = 0
    terms: Mapping[str, float] = field(default_factory=dict)

    def on_step(self, state: State, progress: Progress, terms: Mapping[str, float]) -> None:
        self.steps, self.terms = self.steps + 1, terms
        if progress.step % LOG_EVERY == 0:
            lr, gradient = state.optimizer.param_groups[0]["lr"], gradient_norm(state.model)
            self._write(progress, {"lr": lr, "terms": dict(terms), "gradient": gradient})
        self.on_progress(self._news(progress))

    def on_epoch(self, state: State, progress: Progress) -> None:
        latest, improved = dict(self.validation.latest), self.validation.improved
        self._write(progress, {**({"held_out": latest} if latest else {}), "best": improved})
        self.on_progress(self._news(progress, latest, improved))

    def _write(self, progress: Progress, row: dict[str, Any]) -> None:
        self.run.add_metrics({"step": progress.step, "epoch": progress.epoch, **row})
        if self.board is not None:
            flat = {**row.get("terms", {}), **{f"held_out/{k}": v for k, v in row.get("held_out", {}).items()}}
            for name, value in {**flat, **({"lr": row["lr"]} if "lr" in row else {})}.items():
                self.board.add_scalar(name, value, progress.step)

    def _news(
        self, progress: Progress, held_out: Mapping[str, float] | None = None, best: bool = False
    ) -> TrainingProgress:
        per_second = self.steps / max(1e-9, time.monotonic() - self.began)
        left = (progress.epochs * progress.steps_per_epoch - progress.step) / per_second if per_second else math.inf
        return TrainingProgress(progress, self.terms, per_second * self.batch_size, left, held_out, best)


def gradient_norm(model: nn.Module) -> float:
    """The L2 length of the gradient of the last step, over all weights: as the optimiser saw it, clipped if it was.

    The code of https://arxiv.org/abs/2106.01606 logs its square, averaged over an epoch.
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return float(nn.utils.get_total_norm(grads))


@dataclass(frozen=True, slots=True)
class ExampleHistoryHook(Hook):
    """Writes down what the model is like on each training example."""

    example_history: ExampleHistory
    run: RunFolder
    data: LabelledData
    backend: AttackBackend
    seed: int

    def on_epoch(self, state: State, progress: Progress) -> None:
        epoch = round(progress.epoch)
        if self.example_history.due(epoch, progress.epochs):
            facts = self.example_history.record(state.evaluated, self.data, self.backend, self.seed)
            self.run.add_memory(progress.step, epoch, facts)

    def describe(self, passes: float) -> tuple[str, ...]:
        del passes
        often, count = self.example_history.every, len(self.data)
        every = "epoch" if often == 1 else f"{often} epochs"
        return (f"every {every} all {count:,} training examples are attacked once more, to be remembered: not counted",)


@dataclass(slots=True)
class RefreshHook(Hook):
    """Refreshes the modules that store what the model makes of its training set, before anything is evaluated."""

    data: LabelledData
    run: RunFolder
    log: Callable[[str], None]
    modules: Sequence[Refreshable]
    """Those of the model that is trained, to describe them."""
    alarmed: bool = False

    def on_epoch(self, state: State, progress: Progress) -> None:
        for model in {id(m): m for m in (state.model, state.evaluated)}.values():
            for module in refreshable(model):
                module.refresh(model, self.data)
        alarms = []
        for module in refreshable(state.evaluated):
            alarm = module.alarm()
            row = {**module.metrics(), **({"alarm": alarm} if alarm else {})}
            self.run.add_metrics({"step": progress.step, "epoch": progress.epoch, **row})
            alarms += [alarm] if alarm else []
        if alarms and not self.alarmed:
            self.log(f"ALARM after epoch {progress.epoch:g}: {'; '.join(alarms)}")
        self.alarmed = bool(alarms)

    def on_stop(self, state: State, progress: Progress) -> None:
        self.on_epoch(state, progress)

    def describe(self, passes: float) -> tuple[str, ...]:
        del passes
        return tuple(module.describe() for module in self.modules)


@dataclass(slots=True)
class CheckpointHook(Hook):
    """Writes checkpoints, and stops training once everything is on the disk.

    Never between the last step of an epoch and its evaluation: a run resumed there would skip the evaluation. The
    best weights follow the checkpoint that knows of them, so that they never run ahead of it.
    """

    checkpoints: Checkpoints
    saving: Saving
    stop: "Stop"
    write_best: Callable[[State], None]
    saved: float = field(default_factory=time.monotonic)

    def on_step(self, state: State, progress: Progress, terms: Mapping[str, float]) -> None:
        if progress.step % progress.steps_per_epoch == 0:
            return
        due = time.monotonic() - self.saved > self.saving.seconds
        counted = self.saving.steps is not None and progress.step % self.saving.steps == 0
        if self.stop.asked or due or counted:
            self._save(state)

    def on_epoch(self, state: State, progress: Progress) -> None:
        self._save(state)

    def _save(self, state: State) -> None:
        self.checkpoints.save(state)
        if state.best.get("step") == state.step:
            self.write_best(state)
        self.saved = time.monotonic()
        if self.stop.asked:
            raise Interrupted(state.step)


@dataclass(slots=True)
class Stop:
    """Whether somebody has asked training to stop."""

    asked: bool = False


def _stops() -> list[signal.Signals]:
    stops = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not on Windows
        stops.append(signal.SIGHUP)
    return stops


@contextmanager
def stopping() -> Iterator[Stop]:
    """Ctrl-C, SIGTERM and the end of a terminal ask for a stop; a second one insists.

    Under nohup, the end of a terminal is ignored as before. Outside the main thread nothing can be asked.
    """
    stop = Stop()

    def ask(number: int, frame: types.FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = {number: signal.signal(number, ask) for number in _stops()}
    except ValueError:
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
