"""The training loop. It names no method, no attack and no trick."""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from ..acceleration import AcceleratedCopy
from ..core.errors import UserError
from ..core.gate import alone, check_examples
from ..core.modes import eval_mode, frozen, unchanged
from ..core.rng import make_rng
from ..core.types import (
    Attack,
    AttackBackend,
    Batch,
    Context,
    ForwardCache,
    LabelledData,
    ModelMode,
    Objective,
    Progress,
    Schedule,
    TensorData,
    Terms,
    Update,
    at,
)
from ..core.validation import check_attack
from ..core.whole_batch import served
from .averaging import Averaging
from .updates import GradientStep


@dataclass(frozen=True, slots=True)
class Method:
    """The whole of "which adversarial training": what raises what, what is lowered, and how the model is seen.

    The attack sees the model in eval mode unless `inner_mode` says otherwise; the update sees it as its owner
    left it. Where batch norm goes by the batch while crafting, attacks run on whole batches only.
    """

    attack: Attack | Schedule[Attack]
    objective: Objective
    inner_mode: ModelMode = eval_mode
    outer_mode: ModelMode = unchanged

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Schedule):
            check_attack(self.attack)

    def init(self, data: LabelledData) -> nn.Module:
        """What it remembers from step to step."""
        return self.objective.init(data)

    def step(self, state: "State", batch: Batch, progress: Progress, update: Update, backend: AttackBackend) -> Terms:
        return train_step(self, state, batch, progress, update, backend)


class TrainingMethod(Protocol):
    """What training needs of a method: what it remembers, and a step. `Method` is one, and `Free` another."""

    def init(self, data: LabelledData) -> nn.Module: ...
    def step(
        self, state: "State", batch: Batch, progress: Progress, update: Update, backend: AttackBackend
    ) -> Terms: ...


STAGES = ("attack", "update")
"""What a profile of a step is divided into."""


PROVED_EVERY = 16
"""The copy that attacks search on is proved at every so many steps, and whenever more than weights has changed."""


class NotFinite(UserError):  # noqa: N818
    """A term of the loss, or a weight, became NaN or infinite."""


@dataclass(slots=True)
class State:
    """Everything that training changes, so everything that a checkpoint holds.

    Its weights are `model` and `average`; the rest is in `state_dict`, with torch's own generators, which
    dropout draws from.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    memory: nn.Module
    rng: torch.Generator
    average: nn.Module | None = None
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    """What hooks remember: numbers, strings, and lists and dicts of them."""
    backend: AttackBackend = field(default_factory=AcceleratedCopy)
    """What attacks search on in an own loop: the copy that it makes of the model lives as long as this state."""

    @classmethod
    def start(
        cls,
        method: TrainingMethod,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: LabelledData | None = None,
        seed: int = 0,
    ) -> "State":
        """The beginning of an own loop. `data` is needed by methods that remember something per example."""
        device = next(model.parameters()).device
        none = TensorData(torch.empty(0, 1, 1, 1), torch.empty(0, dtype=torch.long), ())
        return cls(model, optimizer, method.init(data or none).to(device), make_rng(seed, device))

    @property
    def evaluated(self) -> nn.Module:
        """The weights that count: the average if there is one."""
        return self.model if self.average is None else self.average

    def check_finite(self) -> None:
        """Raises `NotFinite` if a weight is NaN or infinite, which a finite loss does not rule out."""
        for name, tensor in self.model.state_dict().items():
            if not bool(tensor.isfinite().all()):
                raise NotFinite(f"the weight {name!r} became NaN or infinite by step {self.step}")

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, **({} if self.average is None else {"average": self.average})}

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "memory": self.memory.state_dict(),
            "rng": self.rng.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.rng.device) if self.rng.device.type == "cuda" else None,
            "device": self.rng.device.type,
            "step": self.step,
            "best": dict(self.best),
            "notes": copy.deepcopy(self.notes),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        if saved["device"] != self.rng.device.type:
            raise UserError(
                f"this run was trained on {saved['device']} and cannot go on exactly on {self.rng.device.type}: give "
                f"--device {saved['device']}, or start anew"
            )
        self.optimizer.load_state_dict(saved["optimizer"])
        self.memory.load_state_dict(saved["memory"])
        self.rng.set_state(saved["rng"])
        torch.set_rng_state(saved["torch_rng"])
        if saved["cuda_rng"] is not None:
            torch.cuda.set_rng_state(saved["cuda_rng"], self.rng.device)
        self.step, self.best = saved["step"], dict(saved["best"])
        self.notes = copy.deepcopy(saved.get("notes", {}))  # checkpoints of older versions have none


class Hook:
    """Something that happens around the training steps; a subclass overrides the methods that it needs.

    `progress` counts the steps that are done.
    """

    def on_step(self, state: State, progress: Progress, terms: Mapping[str, float]) -> None:
        """After each step, with the terms of its loss."""

    def on_epoch(self, state: State, progress: Progress) -> None:
        """After each epoch."""

    def on_stop(self, state: State, progress: Progress) -> None:
        """When training is stopped for good, which may be in the middle of an epoch."""

    def describe(self, passes: float) -> tuple[str, ...]:
        """Lines for the user before training; `passes` is what training takes per example and step."""
        del passes
        return ()


class Batches(Protocol):
    """A training set that can start in the middle of an epoch."""

    def __len__(self) -> int: ...
    def rest_of_epoch(self, step: int, rng: torch.Generator) -> Iterator[Batch]: ...


def train_step(
    method: Method,
    state: State,
    batch: Batch,
    progress: Progress,
    update: Update = GradientStep(),  # noqa: B008
    backend: AttackBackend | None = None,
) -> Terms:
    """One step of the saddle point: raise the inner loss in `x`, lower the outer loss in the weights.

    The attack sees what `backend` gives for the model, by default (`state.backend`) a copy that is quicker and rounds
    differently; `backend=OriginalModel()` gives the model itself. The update is in the precision of the model.

    Returns the terms of the outer loss, detached. Raises `UserError` if the first step has images outside [0, 1],
    labels without a class, or probabilities instead of logits; if the inner view lets batch norm go by the batch and
    the attack takes rows out of it (`Split`, `Restarts`, `Worst`).
    """
    with alone(state.model):
        if progress.step == 0:  # once, as it waits for the device and costs a forward pass of 8 images
            check_examples(state.model, batch.x, batch.y)
        return _step(method, state, batch, progress, update, backend or state.backend)


def _step(
    method: Method, state: State, batch: Batch, progress: Progress, update: Update, backend: AttackBackend
) -> Terms:
    # what was taken at the last proof is in the state, so that a resumed run takes the same
    kind = state.notes.get("search") if progress.step % PROVED_EVERY else None

    def look(model: nn.Module) -> Context:
        return Context(ForwardCache(model), batch, state.memory, progress)

    with (
        record_function(STAGES[0]),
        method.inner_mode(state.model),
        frozen(state.model),
        backend(state.model, batch.x[:8], kind) as attacked,
    ):
        state.notes["search"] = backend.kind(state.model)
        with torch.no_grad():
            method.objective.observe(look(state.model))  # what is remembered has the precision of the model
        loss = served(method.objective.inner(look(attacked)), state.model)
        x_adv = at(method.attack, progress)(loss, batch.x, state.rng)
    with record_function(STAGES[1]), method.outer_mode(state.model):
        return update(state.model, state.optimizer, lambda: method.objective.outer(look(state.model), x_adv))


@dataclass(frozen=True, slots=True)
class Loop:
    """Trains for `epochs`, from wherever `state` stands. Schedules are read before each step.

    Raises `NotFinite` right after the step that made a term NaN or infinite, before any hook can save it.
    """

    epochs: int
    lr: float | Schedule[float]
    update: Update | Schedule[Update] = field(default_factory=GradientStep)
    averaging: Averaging | None = None
    hooks: Sequence[Hook] = ()
    backend: AttackBackend = field(default_factory=AcceleratedCopy)

    def run(self, method: TrainingMethod, state: State, batches: Batches, until: int | None = None) -> None:
        """To the end, or to the end of step number `until`."""
        if self.averaging is not None and state.average is None:
            state.average = self.averaging.init(state.model)
        size = len(batches)
        last = self.epochs * size if until is None else min(until, self.epochs * size)
        while state.step < last:
            for batch in itertools.islice(batches.rest_of_epoch(state.step, state.rng), last - state.step):
                self._step(method, state, batch, size)
            if state.step % size == 0:
                self._end_of_epoch(state, batches)

    def _step(self, method: TrainingMethod, state: State, batch: Batch, steps_per_epoch: int) -> None:
        progress = Progress(state.step, steps_per_epoch, self.epochs)
        for group in state.optimizer.param_groups:
            group["lr"] = at(self.lr, progress)
        terms = _finite(method.step(state, batch, progress, at(self.update, progress), self.backend), progress)
        state.step += 1
        progress = Progress(state.step, steps_per_epoch, self.epochs)
        if self.averaging is not None and state.average is not None:
            self.averaging.update(state.average, state.model, progress)
        for hook in self.hooks:
            hook.on_step(state, progress, terms)

    def _end_of_epoch(self, state: State, batches: Batches) -> None:
        progress = Progress(state.step, len(batches), self.epochs)
        if self.averaging is not None and state.average is not None:
            self.averaging.settle(state.average, _images(batches, state), progress)
        for hook in self.hooks:
            hook.on_epoch(state, progress)


def _images(batches: Batches, state: State) -> Iterator[Tensor]:
    """Those of the epoch to come, augmented by chance of their own; nothing that training draws from moves."""
    rng = torch.Generator(state.rng.device)
    rng.set_state(state.rng.get_state())
    for batch in batches.rest_of_epoch(state.step, rng):
        yield batch.x


def _finite(terms: Terms, progress: Progress) -> dict[str, float]:
    """The terms as numbers, in one transfer from the device."""
    values = dict(zip(terms, torch.stack([term.float() for term in terms.values()]).tolist(), strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise NotFinite(
                f"the loss term {name!r} became {value} at step {progress.step} (epoch {progress.epoch:.2f})"
            )
    return values
