"""Features of a run, as hooks around the training steps, in the order in which they act.

A new feature is a hook in a file of its own and one line in `HOOKS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..acceleration import AcceleratedCopy
from ..core.rng import make_rng
from ..core.types import LabelledData, TensorData, refreshable
from ..data import Batches
from ..records.run_folder import RunFolder
from ..training.checkpoint import Checkpoints
from ..training.engine import Hook, State
from ..training.guard import OverfittingMonitor
from ..training.hooks import (
    CheckpointHook,
    ExampleHistoryHook,
    GuardHook,
    MetricsHook,
    RefreshHook,
    Saving,
    Stop,
    TrainingProgress,
    ValidationHook,
)
from .recipe import Recipe
from .trackers import Together
from .weights import RunWeights


@dataclass(slots=True)
class RunContext:
    """Everything that features may use."""

    run: RunFolder
    recipe: Recipe
    train: LabelledData
    held_out: TensorData | None
    state: State
    backend: AcceleratedCopy
    batches: Batches
    saving: Saving
    stop: Stop
    tracker: Together
    on_progress: Callable[[TrainingProgress], None]
    log: Callable[[str], None]
    checkpoints: Checkpoints = field(init=False)
    weights: RunWeights = field(init=False)
    validation: ValidationHook = field(init=False)
    """Selects the best epoch; other hooks read its result."""
    monitor: OverfittingMonitor | None = field(init=False)

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.checkpoints = Checkpoints(self.run.checkpoints)
        self.weights = RunWeights(self.run, recipe, self.train)
        self.validation = ValidationHook(recipe.selection, recipe.seed, self.held_out, self.backend)
        self.monitor = _monitor(recipe, self.train, self.backend)


def build_hooks(context: RunContext) -> tuple[Hook, ...]:
    """Build the hooks of all features that the recipe asks for."""
    return tuple(hook for make in HOOKS if (hook := make(context)) is not None)


def _refresh(c: RunContext) -> Hook | None:
    return RefreshHook(c.train, c.run, c.log, refreshable(c.state.model)) if refreshable(c.state.model) else None


def _metrics(c: RunContext) -> Hook:
    return MetricsHook(c.run, c.recipe.batch_size, c.on_progress, c.validation, c.tracker.log)


def _example_history(c: RunContext) -> Hook | None:
    history = c.recipe.example_history
    return None if history is None else ExampleHistoryHook(history, c.run, c.train, c.backend, c.recipe.seed)


def _guard(c: RunContext) -> Hook | None:
    if c.monitor is None:
        return None
    images = c.recipe.batch_size * c.recipe.views_per_image
    return GuardHook(c.monitor, c.run, c.checkpoints, c.validation, c.log, images, len(c.batches))


def _checkpoints(c: RunContext) -> Hook:
    return CheckpointHook(c.checkpoints, c.saving, c.stop, c.weights.write_best)


HOOKS: tuple[Callable[[RunContext], Hook | None], ...] = (
    _refresh,
    lambda c: c.validation,
    _metrics,
    _example_history,
    _guard,
    _checkpoints,  # last, so that a checkpoint contains the state that the other hooks have changed
)


def _monitor(recipe: Recipe, train: LabelledData, backend: AcceleratedCopy) -> OverfittingMonitor | None:
    """Build the monitor of the recipe's guard, with a fixed set of training images."""
    if recipe.guard is None:
        return None
    rows = torch.randperm(len(train), generator=make_rng(1))[: recipe.guard.examples].to(train.y.device)
    return OverfittingMonitor(recipe.guard, train[rows], backend, recipe.seed)
