"""Cost of a training, measured on a few steps that are then undone."""

import copy
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ..core import ranks
from ..core.errors import UserError
from ..core.rng import Rng
from ..core.types import (
    Attack,
    AttackBackend,
    Closure,
    Context,
    Objective,
    PerExampleLoss,
    Progress,
    Schedule,
    Terms,
    Update,
    at,
)
from ..objectives.example_bank import Bank
from .cost import Passes, Watched, cost, cost_now
from .engine import STAGES, Batches, Method, State, TrainingMethod

PROFILE = ("profile.json", "profile.txt")
"""Names of the files of a profile."""


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Speed of training at its present stage; passes are per example and step."""

    images_per_second: float
    in_attack: float
    """Share of the time that the attack takes, 0 to 1."""
    forward: float
    backward: float
    mean: float | None
    """Mean forward-backward passes per example and step over the whole training; None if they equal those of a step."""
    seconds_left: float

    def __str__(self) -> str:
        left = self.seconds_left
        to_go = f"{left / 3600:.1f} hours" if left > 3600 else f"{left / 60:.1f} minutes"
        changes = "" if self.mean is None else f", {self.mean:.3g} of both over the whole of training"
        return (
            f"about {self.images_per_second:,.0f} images/s, {100 * self.in_attack:.0f} % of the time in the attack; "
            f"{self.forward:.3g} forward and {self.backward:.3g} backward passes an example{changes}; "
            f"{to_go} to go"
        )


def measure(
    method: TrainingMethod,
    state: State,
    batches: Batches,
    epochs: int,
    update: Update | Schedule[Update],
    backend: AttackBackend,
    trace: Path | None = None,
) -> StepProfile:
    """Take two steps from `state`, time the second, and restore the state.

    With `trace`, a folder, a third step runs under torch's profiler: `profile.json` opens in a Chrome tracing viewer,
    `profile.txt` lists the time of each stage and operation.
    """
    progress = Progress(state.step, len(batches), epochs)
    timed, clock = _timed(method, progress)
    passes = Passes()
    watched = Watched(backend, passes)

    def counted(model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Terms:
        with passes.through(model):
            return at(update, progress)(model, optimizer, closure)

    with _undone(state):
        batch = next(iter(batches.rest_of_epoch(state.step)))

        def step() -> float:
            clock.seconds, passes.forward, passes.backward = 0.0, 0, 0
            began = _now(state.device)
            timed.step(state, batch, progress, counted, watched)
            return _now(state.device) - began

        step()
        seconds, count, left = step(), len(batch.x), epochs * len(batches) - state.step
        forward, backward = passes.forward / count, passes.backward / count
        mean, now = _costs(method, update, progress)
        pace = StepProfile(
            images_per_second=(batch.whole or count) / seconds,
            in_attack=clock.seconds / seconds,
            forward=forward,
            backward=backward,
            mean=None if abs(mean - now) < 0.01 * now else mean,
            seconds_left=seconds * left * mean / now,
        )
        if trace is not None and ranks.first():
            _profiled(step, trace)
        elif trace is not None:
            step()  # the first process cannot take it alone
    return pace


def _costs(method: TrainingMethod, update: Update | Schedule[Update], progress: Progress) -> tuple[float, float]:
    """Passes per step, averaged over the whole training and at `progress`; 1 and 1 if no toy model fits the method."""
    try:
        whole = cost(method, update, progress.epochs, progress.steps_per_epoch).both
        return whole, cost_now(method, update, progress).both
    except UserError:
        return 1.0, 1.0


def _timed(method: TrainingMethod, progress: Progress) -> "tuple[TrainingMethod, _Timed]":
    """Return the method with a timed attack, and the timer, which stays at 0 for a method without an attack."""
    if not isinstance(method, Method):
        return method, _Timed(None)
    clock = _Timed(None)
    objective = cast(Objective, _Attacking(method.objective, clock))
    return replace(method, attack=at(method.attack, progress), objective=objective), clock


@dataclass(slots=True)
class _Attacking:
    """An objective whose attack is timed: an objective may change its attack, and has to see what that is."""

    objective: Objective
    clock: "_Timed"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def attacking(self, ctx: Context, attack: Attack) -> Attack:
        self.clock.attack = self.objective.attacking(ctx, attack)
        return self.clock


@dataclass(slots=True)
class _Timed:
    """An attack that adds up the seconds it takes."""

    attack: Attack | None
    seconds: float = 0.0

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        assert self.attack is not None
        began = _now(x.device)
        z = self.attack(loss, x, rng)
        self.seconds += _now(x.device) - began
        return z


@contextmanager
def _undone(state: State) -> Generator[None]:
    """Restore the state on exit, bit for bit, with torch's own generators.

    Banks, which may be larger than memory, are not copied: each restores the rows that are written.
    """
    weights = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    loose = {name: each.clone() for name, each in state.model.named_buffers() if name not in weights}
    banks = {f"{name}.rows".lstrip("."): m for name, m in state.memory.named_modules() if isinstance(m, Bank)}
    held = state.state_dict()
    rest = copy.deepcopy(held, {id(held["memory"][name]): held["memory"][name] for name in banks})
    try:
        with ExitStack() as stack:
            for bank in banks.values():
                stack.enter_context(bank.undone())
            yield
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        state.model.load_state_dict(weights)
        now = dict(state.model.named_buffers())
        for name, each in loose.items():  # buffers that are not persistent
            now[name].copy_(each)
        state.load_state_dict(rest)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _profiled(step: Callable[[], float], folder: Path) -> None:
    cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    with profile(activities=[ProfilerActivity.CPU, *cuda], acc_events=True) as found:
        seconds = step()
    found.export_chrome_trace(str(folder / PROFILE[0]))
    averages = found.key_averages()
    stages = {e.key: e.cpu_time_total / 1e6 for e in averages if e.key in STAGES}
    lines = [f"{name:10} {taken:8.3f} s  {100 * taken / seconds:5.1f} %" for name, taken in sorted(stages.items())]
    table = averages.table(sort_by="self_cpu_time_total", row_limit=30)
    (folder / PROFILE[1]).write_text("\n".join(["one step, by stage", *lines, "", "by operation", table]) + "\n")
