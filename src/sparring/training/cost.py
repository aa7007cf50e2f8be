"""How many times a method runs its model: the cost by which methods are compared."""

import random
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..acceleration import OriginalModel
from ..core.types import (
    AttackBackend,
    Batch,
    Classifier,
    Closure,
    Encoder,
    Objective,
    Progress,
    Schedule,
    TensorData,
    Terms,
    Update,
    at,
)
from ..core.walk import children, walk
from ..models import KNN, encode_bank
from .engine import State, TrainingMethod

_MOST_STEPS = 20_000


@dataclass(slots=True)
class Passes:
    """Counts the examples that go through models, and their gradients that come back."""

    forward: float = 0
    backward: float = 0

    @property
    def both(self) -> float:
        """In forward-backward passes: a forward pass alone counts half."""
        return (self.forward + self.backward) / 2

    @contextmanager
    def through(self, model: nn.Module) -> Generator[None]:
        handle = (model.body if isinstance(model, Classifier) else model).register_forward_hook(self._seen)
        try:
            yield
        finally:
            handle.remove()

    def _seen(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor | tuple[Tensor, ...]) -> None:
        out = out[0] if isinstance(out, tuple) else out
        self.forward += len(out)
        if out.requires_grad:
            out.register_hook(self._returned)

    def _returned(self, grad: Tensor) -> None:
        self.backward += len(grad)


@dataclass(frozen=True, slots=True)
class Watched:
    """A search through which passes are counted."""

    backend: AttackBackend
    passes: Passes

    @contextmanager
    def __call__(self, model: nn.Module, few: Tensor, kind: str | None = None) -> Generator[nn.Module]:
        with self.backend(model, few, kind) as attacked, self.passes.through(attacked):
            yield attacked

    def kind(self, model: nn.Module) -> str | None:
        return self.backend.kind(model)

    def in_float32(self) -> AttackBackend:
        return self.backend.in_float32()

    def describe(self, device: torch.device) -> str:
        return self.backend.describe(device)

    def batches_in_flight(self, device: torch.device) -> int:
        return self.backend.batches_in_flight(device)

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        return self.backend.notes(model)


def cost(method: TrainingMethod, update: Update | Schedule[Update], epochs: int, steps_per_epoch: int) -> Passes:
    """The passes of a training, per example of a batch and step, averaged over its steps.

    They are counted: each kind of step is taken once by a toy model that no attack fools, so that an attack which stops
    early counts in full.
    """
    total, seen = epochs * steps_per_epoch, Counter[Any]()
    steps = range(total) if total <= _MOST_STEPS else sorted(random.Random(0).sample(range(total), _MOST_STEPS))
    steps = steps if _changes((method, update)) else [min(1, total - 1)]  # what is done now and then is at step 0
    example: dict[Any, Progress] = {}
    for step in steps:
        progress = Progress(step, steps_per_epoch, epochs)
        kind = _kind((method, update), progress)
        seen[kind] += 1
        example.setdefault(kind, progress)
    found = Passes()
    for kind, count in seen.items():
        one = _counted(method, at(update, example[kind]), example[kind])
        found.forward += one.forward * count / len(steps)
        found.backward += one.backward * count / len(steps)
    return found


def cost_now(method: TrainingMethod, update: Update | Schedule[Update], progress: Progress) -> Passes:
    """The same of the step that `progress` is before."""
    return _counted(method, at(update, progress), progress)


def _changes(value: Any) -> bool:
    """Whether there is a schedule in it."""
    return any(isinstance(each, Schedule) for each in walk(value))


def _kind(value: Any, progress: Progress) -> Any:
    """What a value is at this moment; of a real number only whether it is 0, as no other changes a count of passes."""
    value = at(value, progress)
    parts = children(value)
    if parts:
        return type(value), *(_kind(each, progress) for each in parts)
    return bool(value) if isinstance(value, float) else value


_IMAGES = 4
_IMAGES_ALIKE = TensorData(torch.full((_IMAGES, 3, 32, 32), 0.5), torch.arange(_IMAGES), ("right", "b", "c", "d"))


def _counted(method: TrainingMethod, update: Update, progress: Progress) -> Passes:
    """One step, per example."""
    objectives = [each for each in walk(method) if isinstance(each, Objective)]
    views = max((each.needs_views for each in objectives), default=1)
    model = _neighbours() if any(each.needs_knn for each in objectives) else _linear()
    index = torch.arange(_IMAGES // views).repeat(views)
    data = _IMAGES_ALIKE
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    state = State.start(method, model, optimizer, data)
    found = Passes()
    batch = Batch(data.x, torch.zeros_like(data.y), index, views)

    def counted(model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Terms:
        with found.through(model):
            return update(model, optimizer, closure)

    method.step(state, batch, progress, counted, Watched(OriginalModel(), found))
    return Passes(found.forward / _IMAGES, found.backward / _IMAGES)


class _Toy(Encoder):
    """Parts of whatever kind are asked for, with a gradient everywhere."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                *(nn.AvgPool2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Tanh())
            )

    def forward(self, x: Tensor, parts: bool = False) -> Tensor | tuple[Tensor, ...]:
        features: Tensor = self.layers(x)
        maps = features[:, :, None, None]
        return (features, maps, maps) if parts else features


def _linear() -> Classifier:
    """Always right, so that no attack stops early."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Linear(8, 4)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([20.0, 0.0, 0.0, 0.0]))
    return Classifier(_Toy(), head)


def _neighbours() -> Classifier:
    """All images are alike to it, and the first class comes first: so it is always right, too."""
    model = Classifier(_Toy(), KNN(_IMAGES, k=1))
    encode_bank(model, _IMAGES_ALIKE)
    return model
