"""The nouns every room shares. Imports torch and nothing of ours that needs it."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from .errors import UserError
from .rng import Rng

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Batch:
    """`x` `[B, C, H, W]` in [0, 1] (the model normalises), `y` `[B]` class numbers, `index` `[B]`.

    `index` is the position in the training set: memory per example is keyed on it. A batch with `views` = 2 holds each
    image twice: one view of all images, then the other.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    views: int = 1


@dataclass(frozen=True, slots=True)
class TensorData:
    """Labelled images: `x` `[N, C, H, W]`, bytes or floats in [0, 1], `y` int64 `[N]` in 0 .. `len(classes)` - 1."""

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
        for rows in batches:
            yield self[rows], rows

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.x.shape[1:]
        return channels, height, width


class LabelledData(Protocol):
    """Labelled images in memory (`TensorData`), or in files, where those that are asked for by their rows become
    `TensorData`.
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
        """Some of them, still in files if they are there."""
        ...

    def relabelled(self, y: Tensor) -> "LabelledData":
        """The same images with other labels `[N]`."""
        ...

    def read(self, batches: Sequence[Tensor], seed: int) -> Iterator[tuple[TensorData, Tensor]]:
        """One batch after the other for training, with the rows that it holds. `seed` decides what is cut out."""
        ...


def pixels(x: Tensor) -> Tensor:
    """float32 in [0, 1]; bytes are divided by 255."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x.float()


def each(values: Tensor, like: Tensor) -> Tensor:
    """One number per example, shaped to broadcast against `like` `[B, ...]`."""
    return values.view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands. Every schedule is a function of this and of nothing else."""

    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    @property
    def done(self) -> float:
        """The share of training that lies behind, 0 to 1."""
        return self.step / (self.steps_per_epoch * self.epochs)


@runtime_checkable
class Schedule(Protocol[T_co]):
    """A value that changes during training: a float or a whole attack."""

    def at(self, progress: Progress) -> T_co: ...


def at(value: "T | Schedule[T]", progress: Progress) -> T:
    """What `value` is now, whether or not it changes; a schedule of schedules is followed to its value."""
    while isinstance(value, Schedule):
        value = value.at(progress)
    return value


@runtime_checkable
class Threat(Protocol):
    """A set around `x`, inside [0, 1]: where an adversary may go.

    `sample` and `project` land in it; `ascent` turns a gradient into the steepest step of unit length
    in the norm of the set. All work on `[B, ...]` and treat examples independently.
    """

    @property
    def eps(self) -> float: ...
    def sample(self, x: Tensor, rng: Rng) -> Tensor: ...
    def project(self, z: Tensor, x: Tensor) -> Tensor: ...
    def ascent(self, grad: Tensor) -> Tensor: ...
    def norm(self, delta: Tensor) -> Tensor:
        """The size of each perturbation, `[B]`, in the norm of the set."""
        ...


class LossOutput(NamedTuple):
    """What an attack learns at its points: `value` `[B]` to raise and, if the loss can tell, `fooled` `[B]`."""

    value: Tensor
    fooled: Tensor | None = None


class PerExampleLoss(Protocol):
    """A per-example function to raise. `loss[rows]` is the same function for some of the examples."""

    def __call__(self, x: Tensor) -> LossOutput: ...
    def __getitem__(self, rows: Tensor) -> "PerExampleLoss": ...


class Attack(Protocol):
    """Raises a per-example loss over a set around `x`. Knows neither the model nor the labels.

    Returns a detached tensor and leaves `x`, the model and its gradients as they were.
    """

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor: ...


Forward: TypeAlias = Callable[[Tensor], Tensor]
ModelMode: TypeAlias = Callable[[nn.Module], AbstractContextManager[Any]]
Terms: TypeAlias = Mapping[str, Tensor]
Closure: TypeAlias = Callable[[], Terms]
Update: TypeAlias = Callable[[nn.Module, torch.optim.Optimizer, Closure], Terms]


class Classifier(nn.Module):
    """Normalisation, a body that gives features `[B, F]`, and a head that reads them."""

    def __init__(self, body: nn.Module, head: nn.Module, normalize: nn.Module | None = None) -> None:
        super().__init__()
        self.normalize = nn.Identity() if normalize is None else normalize
        self.body, self.head = body, head

    def features(self, x: Tensor) -> Tensor:
        return self.body(self.normalize(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def is_bare(self) -> bool:
        """Whether its logits are its head on its features: no subclass, method or hook makes them something else."""
        exchanged = {"forward", "features"} & vars(self).keys() or type(self).forward is not Classifier.forward
        hooked = self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks
        return not exchanged and not hooked


class Pointwise(nn.Module):
    """Treats every number by itself, as activations do. Whoever traces a model need not look inside."""


class Reference(nn.Module):
    """Only reads its buffers, which may be as large as a training set: what attacks search on shares them."""


@runtime_checkable
class Refreshable(Protocol):
    """A module that stores what the model makes of its training set, and is stale once the weights have changed."""

    def refresh(self, model: nn.Module, data: "LabelledData") -> None:
        """Computes it anew, with the model in eval mode."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Numbers to be logged after each refresh."""
        ...

    def alarm(self) -> str | None:
        """A sentence if what is stored shows that training has failed."""
        ...

    def describe(self) -> str:
        """One line for the user, before training."""
        ...


def refreshable(model: nn.Module) -> list[Refreshable]:
    """The modules of a model that have to be refreshed."""
    return [module for module in model.modules() if isinstance(module, Refreshable)]


class Encoder(nn.Module):
    """A body that gives more than its features: `encoder(x)` is `[B, F]`, `encoder(x, parts=True)` a tuple.

    The features come first in it, and then what objectives read besides: feature maps, or a projection.
    """

    in_parts = True


@dataclass(slots=True)
class ForwardCache:
    """A model seen through one phase of one step.

    It runs the model once per distinct tensor, so that terms which are added share their forward pass
    and batch norm meets every input once. Any `nn.Module` that returns logits will do; only
    `features` needs a `Classifier`.
    """

    model: nn.Module
    _seen: "deque[tuple[Tensor, int, tuple[Tensor, ...]]]" = field(default_factory=lambda: deque(maxlen=2))

    def logits(self, x: Tensor) -> Tensor:
        if isinstance(self.model, Classifier) and self.model.is_bare():
            return self.model.head(self.features(x))
        return self._once(lambda z: (self.model(z),), x)[0]

    def features(self, x: Tensor) -> Tensor:
        model = self._classifier()
        return self._once(lambda z: (model.features(z),), x)[0]

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """The features, and what else the body of the model gives (`Encoder`)."""
        model = self._classifier()
        if not getattr(model.body, "in_parts", False):
            return (self.features(x),)
        return self._once(lambda z: model.body(model.normalize(z), parts=True), x, least=2)

    def _classifier(self) -> Classifier:
        if not isinstance(self.model, Classifier):
            raise UserError(
                f"features are asked of a {type(self.model).__name__}, which does not say what they are: "
                "wrap it as sparring.Classifier(body, head)"
            )
        return self.model

    def _once(self, forward: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, least: int = 1) -> tuple[Tensor, ...]:
        """The remembered output, unless a gradient is wanted now that was not recorded then, or `least` parts are."""
        for known, version, out in self._seen:
            fits = len(out) >= least and (out[0].requires_grad or not self._wants_grad(x))
            if known is x and version == x._version and fits:
                return out
        out = forward(x)
        self._seen.append((x, x._version, out))
        return out

    def _wants_grad(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.model.parameters()))


@dataclass(frozen=True, slots=True)
class Context:
    """Everything an objective may look at."""

    lens: ForwardCache
    batch: Batch
    memory: nn.Module
    progress: Progress

    def remembering(self, memory: nn.Module) -> "Context":
        """The same for a part of an objective, which has its own memory."""
        return Context(self.lens, self.batch, memory, self.progress)


class AttackBackend(Protocol):
    """Gives what attacks search on in place of a model: the model itself, or what answers alike and sooner."""

    def __call__(self, model: nn.Module, few: Tensor, kind: str | None = None) -> AbstractContextManager[nn.Module]:
        """As the model is now, in its present mode. Something else than the model is proved on `few` images.

        If `kind` is given, that is taken without a proof, unless the model was changed.
        """
        ...

    def kind(self, model: nn.Module) -> str | None:
        """What was taken the last time for a model, in a word to be saved; None if there is no choice."""
        ...

    def in_float32(self) -> "AttackBackend":
        """The same with the rounding of float32, for attacks that look for a boundary."""
        ...

    def batches_in_flight(self, device: torch.device) -> int:
        """From how many batches an evaluation should fill one while examples leave: more than 1 where sizes matter."""
        ...

    def describe(self, device: torch.device) -> str:
        """In words, as far as it decides a result."""
        ...

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        """What a user should know of how this model is searched on."""
        ...


class Objective:
    """One method: what the attack raises and what the optimiser lowers.

    A subclass is a frozen dataclass of hyperparameters. What it remembers between batches lives in the
    module that `init` returns, as buffers: saved, loaded and moved with the rest of the state.
    `observe` is the only place that may change it.
    """

    needs_views: ClassVar[int] = 1
    """Views of each image that a batch must hold."""
    needs_knn: ClassVar[bool] = False
    """Whether the model must have a kNN head."""

    def init(self, data: LabelledData) -> nn.Module:
        """What this method remembers: a label bank, a teacher, a feature bank. By default nothing."""
        del data
        return nn.Module()

    def observe(self, ctx: Context) -> None:
        """Once per batch, before the attack, without gradients."""

    def inner(self, ctx: Context) -> PerExampleLoss:
        """What the attack raises."""
        raise NotImplementedError

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        """Named scalar terms; their sum is what the optimiser lowers, and each is logged under its name."""
        raise NotImplementedError
