"""The training loop. It depends on no particular method, attack or update."""

import copy
import itertools
import math
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import record_function

from ..acceleration import AcceleratedCopy, OriginalModel, Unread
from ..core import devices, ranks
from ..core.errors import UserError
from ..core.gate import alone, check_examples
from ..core.modes import eval_mode, frozen, unchanged
from ..core.rng import Rng, draws_kept, mixed_seed, seed_draws
from ..core.schedules import scheduled
from ..core.types import (
    Attack,
    AttackBackend,
    Batch,
    Closure,
    Context,
    ForwardCache,
    LabelledData,
    ModelMode,
    Objective,
    Progress,
    Schedule,
    Search,
    SearchCall,
    TensorData,
    Terms,
    Update,
    at,
    recordable,
)
from ..core.validation import check_attack, checked_loss, checked_terms
from ..core.walk import walk
from ..core.whole_batch import by_batch, served
from .averaging import Averaging
from .global_batch_norm import global_batch_norm
from .requests import Requests
from .updates import BatchLoss, OptimizerStep


@dataclass(frozen=True, slots=True)
class Method:
    """A method of adversarial training: attack, objective, and the modes of the model in attack and update.

    If `inner_mode` lets batch norm use the statistics of the batch, attacks run on whole batches only.

    Args:
        attack: attack that maximises the inner loss of the objective, or a schedule of attacks.
        objective: gives the inner loss that the attack maximises and the outer loss that the update minimises.
        inner_mode: mode of the model during the attack; by default eval mode.
        outer_mode: mode of the model during the update; by default the mode that its owner left it in.

    Raises:
        UserError: when `attack` is no attack, or one that the objective cannot be trained with.
    """

    attack: Attack | Schedule[Attack]
    objective: Objective
    inner_mode: ModelMode = eval_mode
    outer_mode: ModelMode = unchanged

    def __post_init__(self) -> None:
        for attack in scheduled(self.attack):
            check_attack(attack)
            for each in walk(self.objective):
                if isinstance(each, Objective):
                    each.check(attack)

    def init(self, data: LabelledData) -> nn.Module:
        """Return the memory of the objective that is kept from step to step."""
        return self.objective.init(data)

    def step(self, state: "State", batch: Batch, progress: Progress, update: Update, backend: AttackBackend) -> Terms:
        """Take one `train_step`, and return the terms of its loss."""
        return train_step(self, state, batch, progress, update, backend)

    def loss(
        self,
        model: nn.Module,
        batch: "Batch | tuple[Tensor, Tensor]",
        progress: Progress | None = None,
        *,
        memory: nn.Module | None = None,
        seed: int | None = None,
        backend: AttackBackend | None = None,
    ) -> Tensor:
        """Return the training loss of a batch, with its gradient, for a training loop of another library.

        It makes the adversarial examples, and leaves the model, its gradients and its mode as they were.

        Args:
            model: Any module that maps images to logits; not wrapped in DistributedDataParallel.
            batch: Images `[B, C, H, W]` in [0, 1] and labels `[B]` or soft targets `[B, K]`; or a `Batch`, whose
                `index` methods need that remember examples.
            progress: Position in training; None for methods that do not read it.
            memory: What `method.init(data)` has given, the same for each batch; None for methods that remember nothing.
            seed: Seed of what the method draws; None draws one from torch's own generator.
            backend: Gives the model that the attack runs on; None for an accelerated copy.

        Returns:
            The sum of the terms of the loss, a scalar: call `backward` on it.

        Raises:
            UserError: If the method reads a position in training or remembers something, and that was not given; for
                the first batch of a model, if images are outside [0, 1], a label has no class, or the model gives
                probabilities.
        """
        if not isinstance(batch, Batch):
            x, y = batch
            soft = y if y.ndim == 2 else None
            batch = Batch(x, y if soft is None else y.argmax(1), torch.arange(len(x), device=x.device), soft=soft)
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        refuse_wrapped(model)
        seen = _SEEN.get(model, 0)
        with alone(model), ranks.alone():  # another library averages over processes
            if not seen:
                check_examples(model, batch.x, batch.y, batch.soft)
            _SEEN[model] = seen + 1
            backend, kept = backend or _GUEST.backend, self.init(no_data()) if memory is None else memory
            kind = backend.kind(model) if seen % PROVED_EVERY else None
            before = _tensors(kept) if memory is None else {}
            where: Any = progress or _NoProgress()
            ctx = Context(ForwardCache(model), batch, kept, where, seed)
            ctx, x_adv = _crafted(self, ctx, ctx, backend, kind, batch.x[:8], nullcontext())
            with self.outer_mode(model):
                terms = checked_terms(self.objective.outer(ctx.on(model), x_adv), self.objective)
            if memory is None and _written(before, _tensors(kept)):
                raise UserError(
                    f"{type(self.objective).__name__} remembers something from batch to batch: give memory="
                    "method.init(data), the same for every batch"
                )
        return torch.stack(list(terms.values())).sum()


class _NoProgress:
    """Stands for a position in training that was not given."""

    def __getattr__(self, name: str) -> Any:
        raise UserError(
            "this method changes in the course of training: give progress=sparring.Progress(step, steps_per_epoch, "
            "epochs) for each batch"
        )


_Held: TypeAlias = Mapping[str, tuple[Tensor, int]]


def _tensors(memory: nn.Module) -> _Held:
    """Return the tensors of a memory with the number of times that they were written to."""
    return {name: (each, each._version) for name, each in chain(memory.named_parameters(), memory.named_buffers())}


def _written(before: _Held, after: _Held) -> bool:
    """Return True if a tensor was written to, exchanged or added. Those of before are held, so no memory is reused."""
    return before.keys() != after.keys() or any(
        tensor is not before[name][0] or version != before[name][1] for name, (tensor, version) in after.items()
    )


class TrainingMethod(Protocol):
    """Interface of a training method: its memory and its step. `Method` and `Free` implement it."""

    def init(self, data: LabelledData) -> nn.Module: ...
    def step(
        self, state: "State", batch: Batch, progress: Progress, update: Update, backend: AttackBackend
    ) -> Terms: ...


STAGES = ("attack", "update")
"""Stages into which the profile of a step is divided."""


PROVED_EVERY = 16
"""Steps between two checks of the accelerated copy; it is also checked when more than the weights has changed."""


_SEEN: "weakref.WeakKeyDictionary[nn.Module, int]" = weakref.WeakKeyDictionary()
"""Number of batches of each model whose loss was taken by `Method.loss`."""


class _Guest(threading.local):
    """The accelerated copies of models in loops of other libraries; a thread has its own."""

    def __init__(self) -> None:
        self.backend: AttackBackend = AcceleratedCopy()


_GUEST = _Guest()


class NotFinite(UserError):  # noqa: N818
    """A term of the loss, or a weight, became NaN or infinite."""


class StepTerms(Mapping[str, float]):
    """The terms of the loss of a step, by name, which are brought from the device while the next step is prepared.

    The first look at them waits for them, and raises `NotFinite` if one is NaN or infinite.

    Args:
        terms: terms: detached scalars by name.
        progress: position in training before the step.
        requests: numbers above 0 where a process has a request; None with one process.
    """

    def __init__(self, terms: Terms, progress: Progress, requests: Tensor | None = None) -> None:
        self._names, self._progress = tuple(terms), progress
        values = torch.stack([term.float() for term in terms.values()])
        self._read = devices.reading(values if requests is None else torch.cat([values, requests.float()]))
        self._values: dict[str, float] | None = None
        self.requests: tuple[float, ...] = ()
        """The averages of the requests, known once the terms were checked; none with one process."""

    def check(self) -> dict[str, float]:
        """Return the terms as numbers."""
        if self._values is None:
            read, count = self._read(), len(self._names)
            values, self.requests = dict(zip(self._names, read[:count], strict=True)), tuple(read[count:])
            for name, value in values.items():
                if not math.isfinite(value):
                    at = f"step {self._progress.step} (epoch {self._progress.epoch:.2f})"
                    raise NotFinite(f"the loss term {name!r} became {value} at {at}")
            self._values = values
        return self._values

    def __getitem__(self, name: str) -> float:
        return self.check()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


_WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}


def refuse_wrapped(model: nn.Module) -> None:
    """Raise `UserError` for a model that a wrapper divides or copies over processes."""
    found = _WRAPPERS & {base.__name__ for base in type(model).__mro__}
    if found:
        name = found.pop()
        whole = "the whole model" if name.startswith("F") else "model.module"
        raise UserError(
            f"the model is wrapped in {name}, which would communicate in every pass of the attack: give {whole}. "
            "`train_step` sums the gradients of all processes in its update; with `Method.loss`, average them after "
            "backward"
        )


def no_data() -> TensorData:
    """Return a data set without examples, for methods that remember none."""
    return TensorData(torch.empty(0, 1, 1, 1), torch.empty(0, dtype=torch.long), ())


@dataclass(slots=True)
class State:
    """Everything that training changes, and so everything that a checkpoint holds.

    The weights are those of `model` and `average`; `state_dict` holds the rest. There is no generator of random numbers
    in it: what a step draws is decided by the seed, the step, and the number of the example.

    Args:
        model: the model that is trained.
        optimizer: optimiser of the weights of `model`.
        memory: memory of the method, as buffers.
        seed: seed of attacks, augmentation and dropout.
        average: average of the weights; None without one.
        step: number of completed steps.
        best: step and validation (held-out) accuracies of the best epoch so far.
        notes: memory of the hooks: numbers, strings, and lists and dicts of them.
        backend: gives the model that attacks run on in a loop of your own; its accelerated copy of the model is kept as
            long as this state.
        latest: terms of the loss of the last step, which may not have been looked at yet.
        requests: requests of this process to all, such as to stop after a step.
        local_batch_norm: on several processes, whether batch norm takes mean and variance over the part of the batch of
            its process, instead of over the whole batch; its running statistics are then averaged.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    memory: nn.Module
    seed: int = 0
    average: nn.Module | None = None
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    backend: AttackBackend = field(default_factory=AcceleratedCopy)
    latest: StepTerms | None = None
    requests: Requests = field(default_factory=Requests)
    local_batch_norm: bool = False

    @classmethod
    def start(
        cls,
        method: TrainingMethod,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: LabelledData | None = None,
        seed: int = 0,
    ) -> "State":
        """Return the initial state of a loop of your own; methods with a memory per example need `data`."""
        memory = method.init(data or no_data()).to(next(model.parameters()).device)
        for group in _groups_of(memory, optimizer):
            optimizer.add_param_group(group)
        return cls(model, optimizer, memory, seed)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    @property
    def evaluated(self) -> nn.Module:
        """The model to evaluate: the average if there is one, else the trained model."""
        return self.model if self.average is None else self.average

    def check_finite(self) -> None:
        """Raise `NotFinite` if the last loss, or a weight, is NaN or infinite; a finite loss does not rule that out."""
        if self.latest is not None:
            self.latest.check()
        tensors = {n: t for n, t in self.model.state_dict().items() if t.is_floating_point() or t.is_complex()}
        finite = torch.stack([t.isfinite().all() for t in tensors.values()]).tolist() if tensors else []
        for name, fine in zip(tensors, finite, strict=True):
            if not fine:
                raise NotFinite(f"the weight {name!r} became NaN or infinite by step {self.step}")

    def check_equal(self) -> None:
        """Raise `UserError` if the processes have different weights: an update did not sum their gradients."""
        if ranks.world() == 1:
            return
        self.check_finite()
        sums = torch.stack([p.detach().double().sum() for p in self.model.parameters()])
        if len({tuple(each) for each in ranks.each_of(sums.tolist())}) > 1:
            raise UserError(
                f"after step {self.step} the processes have different weights. An update of your own has to take its "
                "gradients from sparring.training.backward, which sums them over the processes; and the processes have "
                "to begin with the same weights"
            )

    @property
    def trained(self) -> nn.Module:
        """All that the optimiser changes: the model, and parameters of the memory of the method if it has any."""
        own = any(p.requires_grad for p in self.memory.parameters())
        return nn.ModuleList([self.model, self.memory]) if own else self.model

    def context(self, batch: Batch, memory: nn.Module, progress: Progress) -> Context:
        """Return the context of a step for an objective."""
        return Context(ForwardCache(self.model), batch, memory, progress, mixed_seed(self.seed, progress.step))

    def batch_norm(self) -> AbstractContextManager[None]:
        """Let batch norm in an update use the batch of all processes, unless it shall be local."""
        return nullcontext() if self.local_batch_norm else global_batch_norm(self.trained)

    def local_statistics(self) -> tuple[Tensor, ...]:
        """Return the running statistics of local batch norm, which the processes have to average."""
        if ranks.world() == 1 or not self.local_batch_norm:
            return ()
        return _statistics(self.trained)

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, **({} if self.average is None else {"average": self.average})}

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "memory": self.memory.state_dict(),
            "seed": self.seed,
            "device": self.device.type,
            "step": self.step,
            "best": dict(self.best),
            "notes": copy.deepcopy(self.notes),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        if "seed" not in saved:
            raise UserError(
                "this checkpoint holds a generator of random numbers, which training has no more: finish the run with "
                "the version that began it, or start a new one"
            )
        if saved["device"] != self.device.type:
            raise UserError(
                f"this run was trained on {saved['device']} and cannot be resumed exactly on {self.device.type}: "
                f"give --device {saved['device']}, or start a new run"
            )
        self.optimizer.load_state_dict(saved["optimizer"])
        self.memory.load_state_dict(saved["memory"])
        self.seed = saved["seed"]
        self.step, self.best, self.latest, self.requests = saved["step"], dict(saved["best"]), None, Requests()
        self.notes = copy.deepcopy(saved.get("notes", {}))  # checkpoints of older versions have none


class Hook:
    """Action around the training steps; a subclass overrides the methods that it needs.

    `progress` counts the completed steps.
    """

    def on_step(self, state: State, progress: Progress, terms: Mapping[str, float]) -> None:
        """Run after each step, with the terms of its loss."""

    def on_epoch(self, state: State, progress: Progress) -> None:
        """Run after each epoch."""

    def on_stop(self, state: State, progress: Progress) -> None:
        """Run when training is stopped for good, which may be in the middle of an epoch."""

    def describe(self, passes: float) -> tuple[str, ...]:
        """Return lines for the user before training; `passes` is the number of passes per example and step."""
        del passes
        return ()


class Batches(Protocol):
    """Batches of a training set, which can start in the middle of an epoch."""

    def __len__(self) -> int: ...
    def rest_of_epoch(self, step: int) -> Iterator[Batch]: ...


def train_step(
    method: Method,
    state: State,
    batch: Batch,
    progress: Progress,
    update: Update = OptimizerStep(),  # noqa: B008
    backend: AttackBackend | None = None,
) -> Terms:
    """Take one training step: maximise the inner loss over `x`, then take a step on the outer loss over the weights.

    The update runs in the precision of the model.

    Args:
        method: attack, objective, and the modes of the model.
        state: training state; the step changes its model, optimizer, memory, generator and notes, but not its `step`.
        batch: images `[B, C, H, W]` in [0, 1], labels `[B]` and indices `[B]`.
        progress: position in training, which schedules read. The batch is checked if it is at step 0.
        update: update of the weights; by default one step of the optimiser.
        backend: gives the model that the attack runs on. None means `state.backend`, by default an accelerated copy,
            which rounds differently; `OriginalModel()` gives the model itself.

    Returns:
        Terms of the outer loss by name: detached scalars.

    Raises:
        UserError: when the first step has images outside [0, 1], labels without a class, or probabilities instead of
            logits; when `method.inner_mode` lets batch norm use the statistics of the batch and the attack takes rows
            out of it (`Split`, `Restarts`, `Worst`).
    """
    refuse_wrapped(state.model)
    with alone(state.model):
        if progress.step == 0:  # once, as it waits for the device and costs a forward pass of 8 images
            check_examples(state.model, batch.x, batch.y, batch.soft)
        return _step(method, state, batch, progress, update, backend or state.backend)


def _step(
    method: Method, state: State, batch: Batch, progress: Progress, update: Update, backend: AttackBackend
) -> Terms:
    # the state holds the kind of copy that the last check chose, so that a resumed run uses the same
    kind = state.notes.get("search") if progress.step % PROVED_EVERY else None
    whole, few = state.context(batch, state.memory, progress), batch.x[:8]
    if kind is None and not isinstance(backend, OriginalModel):
        few = ranks.gathered(few)[:8]  # all processes prove their copies on the same images

    def closure(ctx: Context, x_adv: Tensor) -> Closure:
        def terms() -> Terms:  # AWP calls it more than once, with other weights
            found = checked_terms(method.objective.outer(ctx.on(state.model), x_adv), method.objective)
            share = ctx.batch.share
            return found if share == 1 else {name: share * term for name, term in found.items()}

        return terms

    parts: list[Closure] = []
    for part in batch.micro_batches():
        observed = None if parts else whole
        ctx = replace(whole, batch=part)
        parts.append(closure(*_crafted(method, ctx, observed, backend, kind, few, state.batch_norm())))
        kind = backend.kind(state.model)
    state.notes["search"] = kind
    with record_function(STAGES[1]), method.outer_mode(state.model), state.batch_norm():
        alongside = (*state.requests.send(batch.x.device), *state.local_statistics())
        return update(state.trained, state.optimizer, BatchLoss(tuple(parts), alongside))


def _crafted(
    method: Method,
    ctx: Context,
    observed: Context | None,
    backend: AttackBackend,
    kind: str | None,
    few: Tensor,
    batch_norm: AbstractContextManager[None],
) -> tuple[Context, Tensor]:
    """Return the adversarial examples of a batch, after the memory has seen what is `observed`, and their context."""
    model, batch, rng = ctx.lens.model, ctx.batch, ctx.rng("attack")
    with record_function(STAGES[0]), method.inner_mode(model), frozen(model), ExitStack() as stack:
        if ranks.world() > 1 and by_batch(model) is not None:
            stack.enter_context(batch_norm)
            backend = OriginalModel()  # a copy would take the mean and variance of its own part of the batch
        attacked = stack.enter_context(backend(model, few, kind))
        with torch.no_grad():
            if observed is not None:
                method.objective.observe(observed)  # the memory has the precision of the model
            ctx = replace(ctx, start=method.objective.start(ctx))
        attack = method.objective.attacking(ctx, at(method.attack, ctx.progress))

        def searching(memory: Any, progress: Any, seed: Any) -> Search:
            def find(inputs: Sequence[Tensor], rng: Rng) -> Tensor:
                x, y, index, *soft = inputs
                part = replace(batch, x=x, y=y, index=index, soft=soft[0] if soft else None)
                seen = Context(ForwardCache(attacked), part, memory, progress, seed)
                loss = checked_loss(method.objective.inner(seen), method.objective)
                return attack(served(loss, model), x, rng)

            return find

        inputs = (batch.x, batch.y, batch.index, *(() if batch.soft is None else (batch.soft,)))
        find = searching(ctx.memory, ctx.progress, ctx.seed)
        if recordable(attack) and ctx.start is None:
            key = (repr(method.objective), repr(attack), batch.views, len(inputs))
            fixed = searching(Unread("memory"), Unread("progress"), Unread("seed"))
            x_adv = backend.search(attacked, SearchCall(key, find, inputs, rng, fixed))
        else:
            x_adv = find(inputs, rng)
        with torch.no_grad():
            method.objective.remember(ctx, x_adv)
        return ctx, x_adv


@dataclass(frozen=True, slots=True)
class TrainingLoop:
    """Training loop of `epochs` epochs, which continues from the step of the state.

    Schedules are evaluated before each step. The terms of the loss are looked at one step late, so that a GPU is not
    waited for: `run` raises `NotFinite` at the latest after the step that follows the one that made a term NaN or
    infinite, and before any checkpoint is written.

    Args:
        epochs: number of epochs of the whole training.
        lr: learning rate of every parameter group, or a schedule of it.
        update: update of the weights, or a schedule of updates; by default one step of the optimiser.
        averaging: rule of the average of the weights; None keeps no average.
        hooks: hooks that run after each step and each epoch, in this order.
        backend: gives the model that attacks run on; by default an accelerated copy.
    """

    epochs: int
    lr: float | Schedule[float]
    update: Update | Schedule[Update] = field(default_factory=OptimizerStep)
    averaging: Averaging | None = None
    hooks: Sequence[Hook] = ()
    backend: AttackBackend = field(default_factory=AcceleratedCopy)

    def run(self, method: TrainingMethod, state: State, batches: Batches, until: int | None = None) -> None:
        """Train to the end, or until `until` steps are completed."""
        if self.averaging is not None and state.average is None:
            state.average = self.averaging.init(state.model)
        size = len(batches)
        last = self.epochs * size if until is None else min(until, self.epochs * size)
        device = state.device
        with draws_kept(device):  # steps seed torch's own generator
            self._run(method, state, batches, last)

    def _run(self, method: TrainingMethod, state: State, batches: Batches, last: int) -> None:
        size = len(batches)
        while state.step < last:
            for batch in itertools.islice(batches.rest_of_epoch(state.step), last - state.step):
                self._step(method, state, batch, size)
            if state.latest is not None:
                state.latest.check()
            if state.step % size == 0:
                self._end_of_epoch(state, batches)

    def _step(self, method: TrainingMethod, state: State, batch: Batch, steps_per_epoch: int) -> None:
        progress = Progress(state.step, steps_per_epoch, self.epochs)
        for group in state.optimizer.param_groups:
            group["lr"] = at(self.lr, progress)
        # dropout draws from the generators of torch itself
        seed_draws(mixed_seed(state.seed, state.step, ranks.rank()), state.device)
        found = method.step(state, batch, progress, at(self.update, progress), self.backend)
        terms = StepTerms(found, progress, state.requests.sent)
        before, state.latest = state.latest, terms
        if before is not None:
            before.check()  # only now, as the device has the next step to work on
            if before.requests:
                state.requests.hear(state.step, before.requests)
        state.step += 1
        progress = Progress(state.step, steps_per_epoch, self.epochs)
        if self.averaging is not None and state.average is not None:
            self.averaging.update(state.average, state.model, progress)
        if state.step == 1:
            state.check_equal()
        for hook in self.hooks:
            hook.on_step(state, progress, terms)

    def _end_of_epoch(self, state: State, batches: Batches) -> None:
        state.check_equal()
        progress = Progress(state.step, len(batches), self.epochs)
        if self.averaging is not None and state.average is not None:
            local = state.local_batch_norm
            with nullcontext() if local else global_batch_norm(state.average):
                self.averaging.settle(state.average, _images(batches, state), progress)
            if local and ranks.world() > 1:
                ranks.sum_(found := _statistics(state.average))
                for each in found:
                    each.div_(ranks.world())
        for hook in self.hooks:
            hook.on_epoch(state, progress)


def _statistics(model: nn.Module) -> tuple[Tensor, ...]:
    """Return the running statistics of batch norm."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    return tuple(b for m in layers for b in (m.running_mean, m.running_var) if b is not None)


def _groups_of(memory: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return parameter groups of a memory, with the weight decay that the model's parameters of as many axes have."""
    own = [p for p in memory.parameters() if p.requires_grad]
    decays = [group.get("weight_decay", 0.0) for group in optimizer.param_groups]
    groups = zip(optimizer.param_groups, decays, strict=True)
    spared = [p.ndim for group, decay in groups if decay == 0 for p in group["params"]]
    least = 1 + max(spared, default=-1) if max(decays) > 0 else 0
    parts = ([p for p in own if p.ndim >= least], max(decays)), ([p for p in own if p.ndim < least], 0.0)
    return [{"params": part, "weight_decay": decay} for part, decay in parts if part]


def _images(batches: Batches, state: State) -> Iterator[Tensor]:
    """Images of the next epoch."""
    for batch in batches.rest_of_epoch(state.step):
        yield batch.x
