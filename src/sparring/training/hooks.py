"""Hooks around the steps of a run: validation, metrics, checkpoints, and a stop that loses nothing."""

import math
import signal
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core import ranks
from ..core.errors import UserError
from ..core.types import Attack, AttackBackend, LabelledData, Progress, Refreshable, TensorData, refreshable
from ..evaluation import WhiteBox, evaluate
from ..records.run_folder import RunFolder
from .checkpoint import Checkpoints
from .engine import Hook, State
from .example_history import ExampleHistory
from .guard import GuardState, Health, OverfittingMonitor, plain
from .requests import SAVE, STOP

LOG_EVERY = 10  # steps between two rows of metrics


class Interrupted(Exception):  # noqa: N818
    """Raised when training was asked to stop, after everything is saved.

    Args:
        step: number of completed steps.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """Progress of a training to display, after each step and after each epoch.

    Args:
        progress: position in training, after the step.
        terms: terms of the loss of the last step, by name.
        images_per_second: training images per second since the start of this process.
        seconds_left: estimated seconds to the end of training.
        held_out: after an epoch, the accuracies on the validation (held-out) set, empty without such a set; after a
            step, None.
        best: after an epoch, True if it is the best so far.
    """

    progress: Progress
    terms: Mapping[str, float]
    images_per_second: float
    seconds_left: float
    held_out: Mapping[str, float] | None = None
    best: bool = False


@dataclass(frozen=True, slots=True)
class Saving:
    """Times at which checkpoints are written, besides the end of each epoch: when either of the two is due.

    Args:
        seconds: a checkpoint is due when more seconds than this have passed since the last, at least 0.
        steps: a checkpoint is due every `steps` steps, at least 1; None counts no steps.

    Raises:
        UserError: when `seconds` is negative, or `steps` is below 1.
    """

    seconds: float = 300.0
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.seconds < 0 or (self.steps is not None and self.steps < 1):
            raise UserError(f"{self}: seconds must be at least 0, and steps at least 1 or None")


@dataclass(slots=True)
class ValidationHook(Hook):
    """Evaluates the model on the validation (held-out) set after each epoch, and records the best epoch in the state.

    The best epoch has the highest robust accuracy, and among equals the highest clean accuracy. Without a validation
    set each epoch counts as better than those before.

    Args:
        selection: attack under which the robust accuracy is measured.
        seed: seed of the attack.
        data: validation set; None has none.
        backend: gives the model that the attack runs on.
        examined: True once the model was examined in this process, which is done once and warns of oddities.
        latest: accuracies after the last epoch, by name.
        improved: True if the last epoch is the best so far.
    """

    selection: Attack
    seed: int
    data: TensorData | None
    backend: AttackBackend
    examined: bool = False
    latest: dict[str, float] = field(default_factory=dict)
    improved: bool = False

    def on_epoch(self, state: State, progress: Progress) -> None:
        state.check_finite()
        if self.data is None:
            self.improved, state.best = True, {"step": state.step}
            return
        adversary, rows = {"robust": WhiteBox(self.selection)}, torch.arange(len(self.data), device=self.data.y.device)
        divided = len(rows) >= ranks.world()
        mine = rows[ranks.own(len(rows))] if divided else rows
        found = evaluate(
            state.evaluated,
            self.data[mine],
            adversary,
            seed=self.seed,
            index=mine,
            examine=not self.examined,
            backend=self.backend,
        )
        self.examined = True
        counts = ranks.each_of({name: int(flags.sum()) for name, flags in found.robust.items()})
        parts = counts if divided else counts[:1]
        self.latest = {name: sum(part[name] for part in parts) / len(rows) for name in parts[0]}
        self.improved = _rank(self.latest) > _rank(state.best)
        if self.improved:
            state.best = {**self.latest, "step": state.step}

    def on_stop(self, state: State, progress: Progress) -> None:
        self.on_epoch(state, progress)  # there may be no best epoch so far


@dataclass(slots=True)
class GuardHook(Hook):
    """Runs the checks of a guard, and writes and logs their results.

    An `Alarm` of the guard is not caught here: the caller of the training loop acts on it.

    Args:
        monitor: evaluates the model for the guard.
        run: run folder, to which metrics and events are written.
        checkpoints: checkpoints of the run; the last healthy one is pinned.
        validation: hook that ran before, with the accuracies on the validation set.
        log: receives one line per event.
        images_per_step: number of images in a batch, with all views.
        steps_per_epoch: number of training steps per epoch.
    """

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
        return (f"the guard checks {guard.checks} times an epoch, which adds up to {100 * added:.3g} % of the passes",)

    def on_step(self, state: State, progress: Progress, terms: Mapping[str, float]) -> None:
        if progress.step % progress.steps_per_epoch and self.monitor.guard.due(progress):
            state.check_finite()
            self._check(state, progress)
            self.checkpoints.save(state)  # a rescue returns to it

    def on_epoch(self, state: State, progress: Progress) -> None:
        health = self._check(state, progress)
        if state.average is not None:  # the held-out accuracy is that of the average
            health = self.monitor.examined(state.average, state)
        if self.validation.latest:
            self._report(state, self.monitor.overfitting(state, health, self.validation.latest["robust"]))

    def _check(self, state: State, progress: Progress) -> Health:
        health, event = self.monitor.look(state)
        self.checkpoints.pinned = GuardState.of(state).healthy
        self.run.add_metrics({"step": progress.step, "epoch": progress.epoch, "guard": plain(health)})
        self._report(state, event)
        return health

    def _report(self, state: State, event: str | None) -> None:
        if event is not None:
            self.run.set_guard(GuardState.of(state).events)
            self.log(event)


def _rank(scores: Mapping[str, float]) -> tuple[float, float]:
    return scores.get("robust", -1.0), scores.get("clean", -1.0)


@dataclass(slots=True)
class MetricsHook(Hook):
    """Writes metrics to the run folder, and passes the progress on to be displayed.

    Args:
        run: run folder, to which a row is written every `LOG_EVERY` steps and after each epoch.
        batch_size: number of training images in a batch, for the images per second.
        on_progress: called with the progress after each step and each epoch.
        validation: hook that ran before, with the accuracies on the validation set.
        track: called with the numbers of a step by name, and the step.
        began: time of `time.monotonic` from which the speed is measured.
        steps: number of steps since then.
        terms: terms of the loss of the last step, by name.
    """

    run: RunFolder
    batch_size: int
    on_progress: Callable[[TrainingProgress], None]
    validation: ValidationHook
    track: Callable[[Mapping[str, float], int], None]
    began: float = field(default_factory=time.monotonic)
    steps: int = 0
    terms: Mapping[str, float] = field(default_factory=dict)

    def on_step(self, state: State, progress: Progress, terms: Mapping[str, float]) -> None:
        self.steps, self.terms = self.steps + 1, terms
        if progress.step % LOG_EVERY == 0:
            lr, gradient = state.optimizer.param_groups[0]["lr"], gradient_norm(state.model)
            self._write(progress, {"lr": lr, "terms": dict(terms), "gradient": gradient})
        self.on_progress(self._training_progress(progress))

    def on_epoch(self, state: State, progress: Progress) -> None:
        latest, improved = dict(self.validation.latest), self.validation.improved
        self._write(progress, {**({"held_out": latest} if latest else {}), "best": improved})
        self.on_progress(self._training_progress(progress, latest, improved))

    def _write(self, progress: Progress, row: dict[str, Any]) -> None:
        self.run.add_metrics({"step": progress.step, "epoch": progress.epoch, **row})
        flat = {**row.get("terms", {}), **{f"held_out/{k}": v for k, v in row.get("held_out", {}).items()}}
        self.track({**flat, **({"lr": row["lr"]} if "lr" in row else {})}, progress.step)

    def _training_progress(
        self, progress: Progress, held_out: Mapping[str, float] | None = None, best: bool = False
    ) -> TrainingProgress:
        per_second = self.steps / max(1e-9, time.monotonic() - self.began)
        left = (progress.epochs * progress.steps_per_epoch - progress.step) / per_second if per_second else math.inf
        return TrainingProgress(progress, self.terms, per_second * self.batch_size, left, held_out, best)


def gradient_norm(model: nn.Module) -> float:
    """Return the L2 norm of the gradient of the last step, over all weights.

    It is the gradient that the optimiser used, after clipping if there is any. The code of the paper below logs the
    square of this norm, averaged over an epoch.

    Args:
        model: model whose parameters still hold their gradients.

    Returns:
        The norm.

    References:
        Dong et al.: https://arxiv.org/abs/2106.01606.
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return float(nn.utils.get_total_norm(grads))


@dataclass(frozen=True, slots=True)
class ExampleHistoryHook(Hook):
    """Writes the loss and correctness of the model on each training example to the run folder.

    Args:
        example_history: attack and epochs of the evaluations.
        run: run folder, to which the results are written.
        data: training set.
        backend: gives the model that the attack runs on.
        seed: seed of the attack.
    """

    example_history: ExampleHistory
    run: RunFolder
    data: LabelledData
    backend: AttackBackend
    seed: int

    def on_epoch(self, state: State, progress: Progress) -> None:
        epoch = round(progress.epoch)
        if self.example_history.due(epoch, progress.epochs):
            self._record(state, progress.step, epoch)

    def on_stop(self, state: State, progress: Progress) -> None:
        self._record(state, progress.step, progress.epoch)

    def _record(self, state: State, step: int, epoch: float) -> None:
        rows = torch.arange(len(self.data), device=self.data.y.device)[ranks.own(len(self.data))]
        mine = self.example_history.record(state.evaluated, self.data, self.backend, self.seed, rows)
        parts = ranks.each_of(mine)
        self.run.add_memory(step, epoch, {name: np.concatenate([part[name] for part in parts]) for name in mine})

    def describe(self, passes: float) -> tuple[str, ...]:
        del passes
        often, count = self.example_history.every, len(self.data)
        every = "epoch" if often == 1 else f"{often} epochs"
        return (
            f"every {every} all {count:,} training examples are attacked once more, for their history: not counted",
        )


@dataclass(slots=True)
class RefreshHook(Hook):
    """Refreshes the modules that store features of the training set, after each epoch and before any evaluation.

    Args:
        data: training set.
        run: run folder, to which the metrics and alarms of the modules are written.
        log: receives a line when an alarm begins.
        modules: the refreshable modules of the trained model, for their description.
        alarmed: True if there was an alarm after the last epoch.
    """

    data: LabelledData
    run: RunFolder
    log: Callable[[str], None]
    modules: Sequence[Refreshable]
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

    No checkpoint is written between the last step of an epoch and its evaluation, because a run resumed there would
    skip the evaluation. The best weights are written after the checkpoint that records them, so that they are never
    newer than it.

    Args:
        checkpoints: checkpoints of the run.
        saving: times at which checkpoints are written within an epoch.
        stop: request to stop, which is read after each step and each epoch.
        write_best: writes the best weights of a state.
        saved: time of `time.monotonic` of the last checkpoint.
    """

    checkpoints: Checkpoints
    saving: Saving
    stop: "Stop"
    write_best: Callable[[State], None]
    saved: float = field(default_factory=time.monotonic)

    def on_step(self, state: State, progress: Progress, terms: Mapping[str, float]) -> None:
        if progress.step % progress.steps_per_epoch == 0:
            return
        due = state.requests.agreed(SAVE, time.monotonic() - self.saved > self.saving.seconds, state.step)
        stop = state.requests.agreed(STOP, self.stop.asked, state.step)
        counted = self.saving.steps is not None and progress.step % self.saving.steps == 0
        if stop or due or counted:
            self._save(state, stop)

    def on_epoch(self, state: State, progress: Progress) -> None:
        self._save(state, ranks.any_of(self.stop.asked))

    def _save(self, state: State, stop: bool) -> None:
        self.checkpoints.save(state)
        if state.best.get("step") == state.step:
            self.write_best(state)
        self.saved = time.monotonic()
        if stop:
            ranks.wait()  # for what the first process writes
            raise Interrupted(state.step)


@dataclass(slots=True)
class Stop:
    """Request to stop training.

    Args:
        asked: True once a stop is requested.
        signal: The signal that requested it.
    """

    asked: bool = False
    signal: int | None = None


def _stops() -> list[signal.Signals]:
    stops = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not on Windows
        stops.append(signal.SIGHUP)
    return stops


@contextmanager
def stopping() -> Iterator[Stop]:
    """Context in which Ctrl-C, SIGTERM and the end of a terminal request a stop.

    A second signal raises `KeyboardInterrupt`. One after the last step is delivered again when the context ends, so
    that whatever comes next does not begin. Under nohup, the end of a terminal remains ignored. Outside the main
    thread no signal is handled.

    Yields:
        The request, whose `asked` the first signal sets.
    """
    stop = Stop()

    def ask(number: int, frame: types.FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked, stop.signal = True, number

    try:
        before = {number: signal.signal(number, ask) for number in _stops()}
    except ValueError:
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.signal is not None:  # it came after the last step, which nobody has noticed
        signal.raise_signal(stop.signal)
