"""Number of passes that a method makes through its model: the cost by which methods are compared."""

import random
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..acceleration import OriginalModel
from ..core import ranks
from ..core.rng import draws_kept, seed_draws
from ..core.teachers import TeacherMemory
from ..core.types import (
    AttackBackend,
    Batch,
    Classifier,
    Closure,
    Encoder,
    Objective,
    Progress,
    Schedule,
    SearchCall,
    TensorData,
    Terms,
    Update,
    at,
)
from ..core.walk import children, walk
from ..models import KNN, encode_bank
from .engine import State, TrainingMethod

_MOST_STEPS = 20_000
_CPU = torch.device("cpu")


@dataclass(slots=True)
class Passes:
    """Counts the examples that pass forward through models, and the gradients that pass backward."""

    forward: float = 0
    backward: float = 0

    @property
    def both(self) -> float:
        """The sum in forward-backward passes: a forward pass alone counts half."""
        return (self.forward + self.backward) / 2

    @contextmanager
    def through(self, model: nn.Module) -> Generator[None]:
        """Count the passes through `model` in this context."""
        handle = (model.body if isinstance(model, Classifier) else model).register_forward_hook(self._count_forward)
        try:
            yield
        finally:
            handle.remove()

    def _count_forward(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor | tuple[Tensor, ...]) -> None:
        out = out[0] if isinstance(out, tuple) else out
        self.forward += len(out)
        if out.requires_grad:
            out.register_hook(self._count_backward)

    def _count_backward(self, grad: Tensor) -> None:
        self.backward += len(grad)


@dataclass(frozen=True, slots=True)
class Watched:
    """Attack backend that counts the passes through its models."""

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

    def search(self, attacked: nn.Module, call: SearchCall) -> Tensor:
        del attacked
        return call.carried_out()  # a replay of a recording would pass by the counter

    def describe(self, device: torch.device) -> str:
        return self.backend.describe(device)

    def batches_in_flight(self, device: torch.device) -> int:
        return self.backend.batches_in_flight(device)

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        return self.backend.notes(model)


def cost(method: TrainingMethod, update: Update | Schedule[Update], epochs: int, steps_per_epoch: int) -> Passes:
    """Return the passes of a training per example of a batch and step, averaged over its steps.

    The passes are counted: each kind of step is run once on a toy model that no attack fools, so that an attack with
    early stopping counts in full.
    """
    total, seen, schedules = epochs * steps_per_epoch, Counter[Any](), _schedules((method, update))
    steps = range(total) if total <= _MOST_STEPS else sorted(random.Random(0).sample(range(total), _MOST_STEPS))
    steps = steps if schedules else [min(1, total - 1)]  # step 0 alone does what is done only every few steps
    example: dict[Any, Progress] = {}
    for step in steps:
        progress = Progress(step, steps_per_epoch, epochs)
        kind = _kind(schedules, progress)
        seen[kind] += 1
        example.setdefault(kind, progress)
    found = Passes()
    for kind, count in seen.items():
        one = _counted(method, at(update, example[kind]), example[kind])
        found.forward += one.forward * count / len(steps)
        found.backward += one.backward * count / len(steps)
    return found


def cost_now(method: TrainingMethod, update: Update | Schedule[Update], progress: Progress) -> Passes:
    """Return the passes per example of the next step after `progress`."""
    return _counted(method, at(update, progress), progress)


def _schedules(value: Any) -> tuple[Any, ...]:
    """Return the schedules in `value`, without those inside of others: nothing else changes from step to step."""
    outermost = walk(value, lambda each: not isinstance(each, Schedule))
    return tuple(each for each in outermost if isinstance(each, Schedule))


def _kind(value: Any, progress: Progress) -> Any:
    """Key for `value` at `progress`. A float counts only as zero or not, as nothing else changes the passes."""
    value = at(value, progress)
    parts = children(value)
    if parts or isinstance(value, Mapping):  # options of a build, which may be none
        return type(value), *(_kind(each, progress) for each in parts)
    return bool(value) if isinstance(value, float) else value


_IMAGES = 4
_IMAGES_ALIKE = TensorData(torch.full((_IMAGES, 3, 32, 32), 0.5), torch.arange(_IMAGES), ("right", "b", "c", "d"))


def _counted(method: TrainingMethod, update: Update, progress: Progress) -> Passes:
    """Count the passes of one step, per example."""
    objectives = [each for each in walk(method) if isinstance(each, Objective)]
    views = max((each.needs_views for each in objectives), default=1)
    model = _neighbours() if any(each.needs_knn for each in objectives) else _linear()
    index = torch.arange(_IMAGES // views).repeat(views)
    data = _IMAGES_ALIKE
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    state = State.start(method, model, optimizer, data)
    for holder in (each for each in state.memory.modules() if isinstance(each, TeacherMemory)):
        holder.fill(_linear())  # passes through teachers are not counted
    found = Passes()
    batch = Batch(data.x, torch.zeros_like(data.y), index, views)

    def counted(model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Terms:
        with found.through(state.model):  # `model` may hold what the memory trains, too
            return update(model, optimizer, closure)

    with ranks.alone():
        method.step(state, batch, progress, counted, Watched(OriginalModel(), found))
    return Passes(found.forward / _IMAGES, found.backward / _IMAGES)


class _Toy(Encoder):
    """Encoder with features and feature maps for every objective, and with a nonzero gradient everywhere."""

    def __init__(self) -> None:
        super().__init__()
        with draws_kept(_CPU):
            seed_draws(0, _CPU)
            self.layers = nn.Sequential(
                *(nn.AvgPool2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Tanh())
            )

    def forward(self, x: Tensor, parts: bool = False) -> Tensor | tuple[Tensor, ...]:
        features: Tensor = self.layers(x)
        maps = features[:, :, None, None]
        return (features, maps, maps) if parts else features


def _linear() -> Classifier:
    """Toy classifier that is always right on class 0, so that no attack stops early."""
    with draws_kept(_CPU):
        seed_draws(0, _CPU)
        head = nn.Linear(8, 4)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([20.0, 0.0, 0.0, 0.0]))
    return Classifier(_Toy(), head)


def _neighbours() -> Classifier:
    """Toy classifier with a kNN head. All images are equal and ties go to class 0, so it is always right, too."""
    model = Classifier(_Toy(), KNN(_IMAGES, k=1))
    encode_bank(model, _IMAGES_ALIKE)
    return model
