"""What training will cost, measured on a few steps that are then undone."""

import copy
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from .core import Attack, Classifier, Closure, PointLoss, Progress, Search, Terms, Update, at
from .engine import STAGES, Batches, Method, State, train_step
from .randomness import Rng


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast training goes at its present stage; passes are per example and step."""

    images_per_second: float
    in_attack: float
    """The share of the time that the attack takes, 0 to 1."""
    forward: float
    backward: float
    seconds_left: float

    def __str__(self) -> str:
        left = self.seconds_left
        to_go = f"{left / 3600:.1f} hours" if left > 3600 else f"{left / 60:.1f} minutes"
        return (
            f"about {self.images_per_second:,.0f} images/s, {100 * self.in_attack:.0f} % of the time in the attack; "
            f"{self.forward:.3g} forward and {self.backward:.3g} backward passes an example; "
            f"{to_go} to go"
        )


def measure(
    method: Method,
    state: State,
    batches: Batches,
    epochs: int,
    update: Update,
    search: Search,
    trace: Path | None = None,
) -> Pace:
    """Takes two steps from where `state` stands, the second on the clock, and puts everything back.

    With `trace`, a folder, a third goes under torch's profiler: `profile.json` opens in a Chrome tracing viewer,
    `profile.txt` says which stage and which operation takes how long.
    """
    progress = Progress(state.step, len(batches), epochs)
    attack, passes = _Timed(at(method.attack, progress)), _Passes()
    timed, watched = replace(method, attack=attack), _Watched(search, passes)

    def counted(model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Terms:
        with passes.through(model):
            return update(model, optimizer, closure)

    with _undone(state):
        rng = torch.Generator(state.rng.device)
        rng.set_state(state.rng.get_state())
        batch = next(iter(batches.rest_of_epoch(state.step, rng)))

        def step() -> float:
            attack.seconds, passes.forward, passes.backward = 0.0, 0, 0
            began = _now(state.rng.device)
            train_step(timed, state, batch, progress, counted, watched)
            return _now(state.rng.device) - began

        step()
        seconds, count, left = step(), len(batch.x), epochs * len(batches) - state.step
        forward, backward = passes.forward / count, passes.backward / count
        pace = Pace(count / seconds, attack.seconds / seconds, forward, backward, seconds * left)
        if trace is not None:
            _profiled(step, trace)
    return pace


@dataclass(slots=True)
class _Timed:
    """An attack, and how long it took."""

    attack: Attack
    seconds: float = 0.0

    def __call__(self, loss: PointLoss, x: Tensor, rng: Rng) -> Tensor:
        began = _now(x.device)
        z = self.attack(loss, x, rng)
        self.seconds += _now(x.device) - began
        return z


@dataclass(slots=True)
class _Passes:
    """Counts the examples that go through models, and their gradients that come back."""

    forward: int = 0
    backward: int = 0

    @contextmanager
    def through(self, model: nn.Module) -> Generator[None]:
        handle = (model.body if isinstance(model, Classifier) else model).register_forward_hook(self._seen)
        try:
            yield
        finally:
            handle.remove()

    def _seen(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        self.forward += len(out)
        if out.requires_grad:
            out.register_hook(self._returned)

    def _returned(self, grad: Tensor) -> None:
        self.backward += len(grad)


@dataclass(frozen=True, slots=True)
class _Watched:
    """A search through which passes are counted."""

    search: Search
    passes: _Passes

    @contextmanager
    def __call__(self, model: nn.Module, few: Tensor) -> Generator[nn.Module]:
        with self.search(model, few) as searched, self.passes.through(searched):
            yield searched

    def fine(self) -> Search:
        return self.search.fine()

    def said(self, device: torch.device) -> str:
        return self.search.said(device)

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        return self.search.notes(model)


@contextmanager
def _undone(state: State) -> Generator[None]:
    """Afterwards the state is as it was, to the bit, torch's own generators included."""
    weights = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    rest = copy.deepcopy(state.state_dict())
    try:
        yield
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        state.model.load_state_dict(weights)
        state.load_state_dict(rest)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _profiled(step: Callable[[], float], folder: Path) -> None:
    cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    with profile(activities=[ProfilerActivity.CPU, *cuda]) as found:
        seconds = step()
    found.export_chrome_trace(str(folder / "profile.json"))
    averages = found.key_averages()
    stages = {e.key: e.cpu_time_total / 1e6 for e in averages if e.key in STAGES}
    lines = [f"{name:10} {taken:8.3f} s  {100 * taken / seconds:5.1f} %" for name, taken in sorted(stages.items())]
    table = averages.table(sort_by="self_cpu_time_total", row_limit=30)
    (folder / "profile.txt").write_text("\n".join(["one step, by stage", *lines, "", "by operation", table]) + "\n")
