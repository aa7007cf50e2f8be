"""Types that all packages share. Imports torch, and none of our modules that needs more than these types."""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from .errors import UserError
from .ranks import world
from .rng import PerExample, Rng, mixed_seed
from .splitting import parts

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of training images.

    Args:
        x: Images `[B, C, H, W]` in [0, 1]; the model normalises them.
        y: Class numbers `[B]`.
        index: Positions of the images in the training set, `[B]`; memory per example is keyed on it.
        views: Number of views of each image: a batch with 2 holds one view of all images, then the other.
        whole: Number of rows of the batch that the weights are updated for, if this is a part of it: on one of several
            processes, or a micro-batch. None: all processes have parts of this size.
        accumulate: Number of micro-batches into which a step divides the batch, one after the other, to save memory.
        soft: Soft targets, a probability for each class, `[B, C]`, of which `y` has the most probable class; None if
            the targets are the classes `y`.
        places: Number of the pixel of the unaugmented image that each pixel was moved from, counted from 0 row by row,
            -1 for padding, `[B, H, W]` (int64); None if no method needs it.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    views: int = 1
    whole: int | None = None
    accumulate: int = 1
    soft: Tensor | None = None
    places: Tensor | None = None

    @property
    def target(self) -> Tensor:
        """The target of cross-entropy: soft targets `[B, C]` if there are any, or else the classes `[B]`."""
        return self.y if self.soft is None else self.soft

    @property
    def share(self) -> float:
        """The share of this part in the batch that the weights are updated for."""
        return 1 / world() if self.whole is None else len(self.index) / self.whole

    @property
    def streams(self) -> Tensor:
        """The number of the random stream of each row `[B]`: views of an image have streams of their own."""
        if self.views == 1:
            return self.index
        view = torch.arange(len(self.index), device=self.index.device) // (len(self.index) // self.views)
        return self.index + (view << _VIEW)

    def micro_batches(self) -> "list[Batch]":
        """Return the micro-batches; each has all views of its images."""
        if self.accumulate == 1:
            return [self]
        whole = len(self.index) * world() if self.whole is None else self.whole
        count = len(self.index) // self.views
        if count < self.accumulate:
            raise UserError(
                f"a batch of {count} images cannot be divided into {self.accumulate} micro-batches: accumulate less"
            )
        rows = torch.arange(len(self.index), device=self.index.device).view(self.views, count)
        chosen = (part.flatten() for part in rows.tensor_split(self.accumulate, dim=1))
        return [self._of_rows(rows, whole) for rows in chosen]

    def _of_rows(self, rows: Tensor, whole: int) -> "Batch":
        soft, places = (None if each is None else each[rows] for each in (self.soft, self.places))
        return Batch(self.x[rows], self.y[rows], self.index[rows], self.views, whole, soft=soft, places=places)


_VIEW = 40  # bits for the numbers of examples in a stream


@dataclass(frozen=True, slots=True)
class TensorData:
    """Labelled images in memory.

    Args:
        x: Images `[N, C, H, W]`, as bytes or as floats in [0, 1].
        y: Class numbers `[N]` (int64) in 0 .. `len(classes)` - 1.
        classes: Names of the classes.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor | slice) -> "TensorData":
        return TensorData(self.x[rows], self.y[rows], self.classes)

    def to(self, device: torch.device | str) -> "TensorData":
        return TensorData(self.x.to(device), self.y.to(device), self.classes)

    def part(self, rows: Tensor) -> "TensorData":
        return self[rows]

    def relabelled(self, y: Tensor) -> "TensorData":
        return TensorData(self.x, y.to(self.y.device), self.classes)

    def read(self, batches: Sequence[Tensor], seed: int) -> Iterator[tuple["TensorData", Tensor]]:
        del seed
        for each in batches:
            rows = each.to(self.y.device, non_blocking=True)  # a GPU would wait for an index on the processor
            yield self[rows], rows

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.x.shape[1:]
        return channels, height, width


class LabelledData(Protocol):
    """Labelled images, in memory (`TensorData`) or in files.

    Images in files become `TensorData` when they are asked for by their rows.
    """

    @property
    def y(self) -> Tensor: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Tensor | slice) -> TensorData: ...
    def to(self, device: torch.device | str) -> "LabelledData": ...

    def part(self, rows: Tensor) -> "LabelledData":
        """Return some of the images; images in files stay in files."""
        ...

    def relabelled(self, y: Tensor) -> "LabelledData":
        """Return the same images with other labels `[N]`."""
        ...

    def read(self, batches: Sequence[Tensor], seed: int) -> Iterator[tuple[TensorData, Tensor]]:
        """Yield the training batches, each with its rows; `seed` decides the crops of images in files."""
        ...


def pixels(x: Tensor) -> Tensor:
    """Converts images to float32 in [0, 1].

    Args:
        x: Images as bytes, which are divided by 255, or as floats.

    Returns:
        The images as float32, of the same shape.
    """
    return x.float().div_(255) if x.dtype == torch.uint8 else x.float()


def each(values: Tensor, like: Tensor) -> Tensor:
    """Reshapes one number per example so that it broadcasts against images.

    Args:
        values: Numbers `[B]`.
        like: Tensor `[B, ...]` to broadcast against.

    Returns:
        The numbers, `[B, 1, ..]`, with as many dimensions as `like`.
    """
    return values.view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True, slots=True)
class Progress:
    """The position in a training. Every schedule is a function of this value alone.

    Args:
        step: Number of steps done.
        steps_per_epoch: Steps of an epoch.
        epochs: Epochs of the whole training.
    """

    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    @property
    def done(self) -> float:
        """Share of the training that is done, 0 to 1."""
        return self.step / (self.steps_per_epoch * self.epochs)


@runtime_checkable
class Schedule(Protocol[T_co]):
    """A value that changes during training: a number, an attack, or an update."""

    def at(self, progress: Progress) -> T_co: ...


def at(value: "T | Schedule[T]", progress: Progress) -> T:
    """Evaluates a value that may be a schedule.

    Args:
        value: The value; a schedule of schedules is followed until a plain value is reached.
        progress: The position in the training.

    Returns:
        The value at this position; a value that is no schedule is returned as it is.
    """
    kind: type = type(value)
    while _scheduled(kind):
        value = cast(Schedule[T], value).at(progress)
        kind = type(value)
    return cast(T, value)


@cache
def _scheduled(kind: type) -> bool:
    """Return True for a type of schedules. A protocol answers in 20 microseconds; `cost` may ask 100,000 times."""
    return issubclass(kind, Schedule)


@runtime_checkable
class Threat(Protocol):
    """A set of allowed images around `x`, inside [0, 1].

    `sample` and `project` return points of the set; `ascent` turns a gradient into the steepest step of unit length in
    the norm of the set. All work on `[B, ...]` and treat examples independently.
    """

    @property
    def eps(self) -> float: ...
    def sample(self, x: Tensor, rng: Rng) -> Tensor: ...
    def project(self, z: Tensor, x: Tensor) -> Tensor: ...
    def ascent(self, grad: Tensor) -> Tensor: ...
    def norm(self, delta: Tensor) -> Tensor:
        """Return the size of each perturbation, `[B]`, in the norm of the set."""
        ...


class LossOutput(NamedTuple):
    """Output of a per-example loss.

    `value` `[B]` is the loss, which the attack maximises. `fooled` `[B]` (bool) is True where the model is fooled; it
    is None if the loss cannot tell.
    """

    value: Tensor
    fooled: Tensor | None = None


class PerExampleLoss(Protocol):
    """A per-example loss that an attack maximises.

    `loss[rows]` is the same loss for some of the examples.
    """

    def __call__(self, x: Tensor) -> LossOutput: ...
    def __getitem__(self, rows: Tensor) -> "PerExampleLoss": ...


class Attack(Protocol):
    """Maximises a per-example loss over a set around `x`. It knows neither the model nor the labels.

    It returns a detached tensor and leaves `x`, the model and its gradients as they were.
    """

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor: ...


def recordable(attack: object) -> bool:
    """Tells whether an attack never waits for the device and always runs on all examples, as a CUDA graph needs it.

    Args:
        attack: An attack or an adversary. One of your own has an attribute `recordable` that is True.

    Returns:
        The attribute `recordable`; False without one.
    """
    return bool(getattr(attack, "recordable", False))


@dataclass(frozen=True, slots=True)
class GivenStart:
    """Starts the search at given points, which are projected onto the set.

    Args:
        points: Points of the whole batch, `[B, C, H, W]`.
    """

    points: Tensor

    def __call__(self, threat: Threat, x: Tensor, rng: Rng) -> Tensor:
        del rng
        return threat.project(self.points, x)


def started_at(attack: Attack, points: Tensor) -> Attack:
    """Makes an attack begin at given points.

    Args:
        attack: An attack with a field `start`, such as PGD.
        points: The points, `[B, C, H, W]`.

    Returns:
        The attack with this start.

    Raises:
        UserError: If the attack has no start.
    """
    if not (is_dataclass(attack) and any(each.name == "start" for each in fields(attack))):
        raise UserError(
            f"{type(attack).__name__} has no start, and this method begins its attack where it ended before: take PGD "
            "or FGSM"
        )
    return replace(attack, start=GivenStart(points))


Forward: TypeAlias = Callable[[Tensor], Tensor]
ModelMode: TypeAlias = Callable[[nn.Module], AbstractContextManager[Any]]
Terms: TypeAlias = Mapping[str, Tensor]
Closure: TypeAlias = Callable[[], Terms]
Update: TypeAlias = Callable[[nn.Module, torch.optim.Optimizer, Closure], Terms]


class Classifier(nn.Module):
    """A model made of normalisation, a body that gives features, and a head that gives logits.

    Args:
        body: Maps normalised images `[B, C, H, W]` to features `[B, F]`.
        head: Maps features to logits `[B, classes]`.
        normalize: Normalises images in [0, 1]; None for no normalisation.
    """

    def __init__(self, body: nn.Module, head: nn.Module, normalize: nn.Module | None = None) -> None:
        super().__init__()
        self.normalize = nn.Identity() if normalize is None else normalize
        self.body, self.head = body, head

    @classmethod
    def split(cls, model: nn.Module, images: Tensor, at: str | None = None) -> "Classifier":
        """Make a classifier of any model, by splitting it before its last layer.

        Args:
            model: The model, which is copied.
            images: Some images `[B, C, H, W]`, on which the split is checked.
            at: Name of the last layer, such as "fc"; None for the last linear layer that runs.

        Returns:
            A classifier with the same logits; a `Classifier` itself if `at` is None.

        Raises:
            UserError: If there is no such layer, if other layers follow it, or if its input is no vector for each
                image.
        """
        if isinstance(model, Classifier) and at is None:
            return model
        found = cls(*parts(model, images, at))
        found.training = model.training
        return found

    def features(self, x: Tensor) -> Tensor:
        return self.body(self.normalize(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def is_bare(self) -> bool:
        """Return True if the logits are the head applied to the features: no subclass, method or hook changes them."""
        exchanged = {"forward", "features"} & vars(self).keys() or type(self).forward is not Classifier.forward
        hooked = self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks
        return not exchanged and not hooked


class Pointwise(nn.Module):
    """A module that acts on every number separately, as activations do.

    Code that traces a model need not descend into it.

    Args:
        *args: Passed on to `torch.nn.Module`.
        **kwargs: Passed on to `torch.nn.Module`.
    """


class Reference(nn.Module):
    """A module that only reads its buffers.

    The buffers may be as large as a training set, so accelerated copies of a model share them.

    Args:
        *args: Passed on to `torch.nn.Module`.
        **kwargs: Passed on to `torch.nn.Module`.
    """


@runtime_checkable
class Refreshable(Protocol):
    """A module that stores outputs of the model on its training set.

    They are out of date once the weights have changed.
    """

    def refresh(self, model: nn.Module, data: "LabelledData") -> None:
        """Compute the stored values again, with the model in eval mode."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Return numbers to be logged after each refresh."""
        ...

    def alarm(self) -> str | None:
        """Return a sentence if the stored values show that training has failed."""
        ...

    def describe(self) -> str:
        """Return one line for the user, shown before training."""
        ...


def refreshable(model: nn.Module) -> list[Refreshable]:
    """Finds the modules of a model that have to be refreshed.

    Args:
        model: The model.

    Returns:
        The modules, in the order of `model.modules()`.
    """
    return [module for module in model.modules() if isinstance(module, Refreshable)]


class Encoder(nn.Module):
    """A body that can return more than its features.

    `encoder(x)` gives the features `[B, F]`; `encoder(x, parts=True)` gives a tuple of the features and other outputs
    that objectives use, such as feature maps or a projection.

    Args:
        *args: Passed on to `torch.nn.Module`.
        **kwargs: Passed on to `torch.nn.Module`.
    """

    in_parts = True


KEPT_OUTPUTS = 8
"""Number of tensors whose outputs are kept in an update: more than a loss has. An attack, which has many, keeps two."""


@dataclass(slots=True)
class ForwardCache:
    """A model during one phase of a training step, with its latest outputs remembered.

    It runs the model once per distinct tensor, so that the terms of a loss share a forward pass and batch norm sees
    every input once. Any `nn.Module` that returns logits will do; only `features` needs a `Classifier`.

    Args:
        model: The model.
    """

    model: nn.Module
    _seen: "deque[tuple[Tensor, int, bool, tuple[Tensor, ...]]]" = field(default_factory=lambda: deque(maxlen=2))

    def logits(self, x: Tensor) -> Tensor:
        if isinstance(self.model, Classifier) and self.model.is_bare():
            return self.model.head(self.features(x))
        return self._once(lambda z: (self.model(z),), x, whole=True)[0]

    def features(self, x: Tensor) -> Tensor:
        model = self._classifier()
        return self._once(lambda z: (model.features(z),), x)[0]

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the features and the other outputs of the body of the model (`Encoder`)."""
        model = self._classifier()
        if not getattr(model.body, "in_parts", False):
            return (self.features(x),)
        return self._once(lambda z: model.body(model.normalize(z), parts=True), x, least=2)

    def _classifier(self) -> Classifier:
        if not isinstance(self.model, Classifier):
            raise UserError(
                f"features are asked of a {type(self.model).__name__}, which does not define them: "
                "wrap it as sparring.Classifier(body, head)"
            )
        return self.model

    def _once(
        self, forward: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, least: int = 1, whole: bool = False
    ) -> tuple[Tensor, ...]:
        """Return the remembered output, unless a gradient is needed that was not recorded, or `least` parts are.

        `whole` outputs are logits of the whole model, the others features.
        """
        for known, version, of_whole, out in self._seen:
            fits = len(out) >= least and (out[0].requires_grad or not self._wants_grad(x))
            if known is x and version == x._version and of_whole == whole and fits:
                return out
        out = forward(x)
        self._seen.append((x, x._version, whole, out))
        return out

    def _wants_grad(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.model.parameters()))


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that an objective may use.

    Args:
        lens: The model, with its latest outputs remembered.
        batch: The batch of training images.
        memory: The module that `Objective.init` has returned.
        progress: The position in the training.
        seed: The seed of this step.
        start: The points at which the attack began, if the objective chose them (`Objective.start`).
    """

    lens: ForwardCache
    batch: Batch
    memory: nn.Module
    progress: Progress
    seed: int = 0
    start: Tensor | None = None

    def remembering(self, memory: nn.Module) -> "Context":
        """Return the context for a part of an objective, which has its own memory."""
        return replace(self, memory=memory)

    def on(self, model: nn.Module) -> "Context":
        """Return the same context in another phase of the step: for this model, which has computed nothing yet."""
        return replace(self, lens=ForwardCache(model, deque(maxlen=KEPT_OUTPUTS)))

    def chance(self, purpose: str) -> int:
        """Return the seed of this step for a purpose, the same on every process and however often it is asked for."""
        return mixed_seed(int(self.seed), purpose)

    def rng(self, purpose: str) -> PerExample:
        """Return the random numbers of the rows of the batch in this step for a purpose, from their beginning."""
        return PerExample(self.chance(purpose), self.batch.streams, together=True)


Search: TypeAlias = Callable[[Sequence[Tensor], Rng], Tensor]
"""Returns the points that an attack finds, from tensors `[B, ...]`, images first, and random numbers."""


@dataclass(frozen=True, slots=True)
class SearchCall:
    """A search with its inputs.

    Args:
        key: Stands for everything that the search depends on, besides the model and the inputs.
        find: The search.
        inputs: Tensors `[B, ...]`, images first.
        rng: Random numbers.
        fixed: The same search, which raises where it would read what may change between two calls with an equal key;
            None if `find` reads no such thing.
    """

    key: Hashable
    find: Search
    inputs: tuple[Tensor, ...]
    rng: Rng
    fixed: Search | None = None

    def carried_out(self) -> Tensor:
        """Return the points that the search finds."""
        return self.find(self.inputs, self.rng)


class AttackBackend(Protocol):
    """Provides the model that attacks run on: the model itself, or an accelerated copy with the same outputs."""

    def __call__(self, model: nn.Module, few: Tensor, kind: str | None = None) -> AbstractContextManager[nn.Module]:
        """Give the model in its present state and mode; a copy is checked against the model on `few` images.

        A copy of the given `kind` is used without this check, unless the model was changed.
        """
        ...

    def kind(self, model: nn.Module) -> str | None:
        """Return the kind used last for a model, as a word to be saved, or None if there is no choice."""
        ...

    def in_float32(self) -> "AttackBackend":
        """Return the backend that computes in float32, for attacks that search for a decision boundary."""
        ...

    def batches_in_flight(self, device: torch.device) -> int:
        """Return the number of batches an attack holds at once, so that rows of finished examples can be refilled.

        It is more than 1 where the batch size matters.
        """
        ...

    def search(self, attacked: nn.Module, call: SearchCall) -> Tensor:
        """Carry out a search that attacks the model `attacked`, which the backend has given.

        A backend may record the search, and repeat it for another call with an equal key.
        """
        ...

    def describe(self, device: torch.device) -> str:
        """Describe the backend in words, as far as it affects results."""
        ...

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        """Return remarks for the user on how this model is attacked."""
        ...


class Objective:
    """A training method: the loss that the attack maximises and the loss that the optimiser minimises.

    A subclass is a frozen dataclass of hyperparameters. Its state between batches is kept in the module that `init`
    returns, as buffers, so it is saved, loaded and moved with the rest of the training state. Only `observe` and
    `remember` may change it. Parameters of that module are trained with the model.
    """

    needs_views: ClassVar[int] = 1
    """Number of views of each image that a batch must hold."""
    needs_knn: ClassVar[bool] = False
    """True if the model must have a kNN head."""
    needs_places: ClassVar[bool] = False
    """True if a batch must say where augmentations moved each pixel from (`Batch.places`)."""
    takes_any_attack: ClassVar[bool] = True
    """False if the method is made for an attack of one kind, so that a guard cannot exchange it."""

    @property
    def begins(self) -> float:
        """Epoch at which the method takes full effect, after a warm-up of its own."""
        return 0.0

    def check(self, attack: Attack) -> None:
        """Raise `UserError` if this method cannot be trained with an attack. By default it can with any."""

    def init(self, data: LabelledData) -> nn.Module:
        """Return the memory of this method: a label bank, a teacher or a feature bank. By default it is empty."""
        del data
        return nn.Module()

    def observe(self, ctx: Context) -> None:
        """Update the memory; called once per batch, before the attack, without gradients."""

    def start(self, ctx: Context) -> Tensor | None:
        """Return the points at which the attack shall begin, such as those of an earlier epoch; None leaves it free."""
        del ctx
        return None

    def attacking(self, ctx: Context, attack: Attack) -> Attack:
        """Return the attack for this batch; by default the given one, from `ctx.start` if there is one."""
        return attack if ctx.start is None else started_at(attack, ctx.start)

    def inner(self, ctx: Context) -> PerExampleLoss:
        """Return the loss that the attack maximises: a function of images that gives `LossOutput(value, fooled)`."""
        raise UserError(f"{type(self).__name__} has no `inner`: let it return the loss of the attack, as CE(..) is one")

    def remember(self, ctx: Context, x_adv: Tensor) -> None:
        """Update the memory after the attack; called once per batch, without gradients."""

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        """Return named scalar terms: the optimiser minimises their sum, and each is logged under its name."""
        raise UserError(
            f"{type(self).__name__} has no `outer`: let it return the terms of the update, as {{'ce': loss}}"
        )
