"""Adversaries (an attack together with its loss), and `perturb`, the shortest way to attack any model."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any, Protocol, Self, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

from ..attacks.compose import PerView, keep_worst
from ..attacks.losses import CE, EOT, Margin, OnLogits, TargetedCE, TargetedDLR, microbatched
from ..attacks.threats import L1, L2, Linf, ScaledThreat
from ..core.devices import finest
from ..core.errors import UserError, need_seed, need_whole
from ..core.gate import alone, check_examples
from ..core.modes import ComposedMode, eval_mode, frozen, named
from ..core.rng import PerExample, Rng, some
from ..core.types import Attack, Forward, ModelMode, PerExampleLoss, Threat, recordable
from ..core.validation import check_attack
from ..core.walk import children, walk


class Adversary(Protocol):
    """A function that gives adversarial examples for images `x` `[B, C, H, W]` in [0, 1] with labels `y` `[B]`."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor: ...


@runtime_checkable
class Divides(Protocol):
    """An adversary that can hold more examples than the `at_once` that it passes through the model together."""

    def dividing(self, at_once: int) -> Adversary: ...


@dataclass(frozen=True, slots=True)
class Dividing:
    """The common base of adversaries that divide their batch; `at_once` has no influence on results."""

    at_once: int | None = field(default=None, repr=False, compare=False, kw_only=True)

    def dividing(self, at_once: int) -> Self:
        return dataclasses.replace(self, at_once=at_once)


def _need_attack(attack: Attack) -> None:
    """Raise `UserError` unless it is an attack whose points do not depend on the other images of a batch."""
    check_attack(attack)
    if isinstance(attack, Dividing):
        raise UserError(
            f"{type(attack).__name__} is an adversary, which has its own loss: wanted is the attack alone, as "
            "PGD(Linf('8/255'))"
        )
    if any(isinstance(each, PerView) for each in walk(attack)):
        raise UserError(
            "PerView divides a batch among its attacks, so that verdicts would depend on the batch: to evaluate, give "
            "each attack a name of its own, or take Worst((..)) of them"
        )


def _need_loss(loss: Any, what: str, count: int) -> None:
    """Raise `UserError` unless a loss can be built from `count` arguments."""
    try:
        inspect.signature(loss).bind(*range(count))
    except TypeError:
        name = getattr(loss, "__name__", repr(loss))
        raise UserError(f"loss = {name} is no function of {what}: write one that calls it") from None
    except ValueError:  # a function in C does not say what it takes
        pass


@dataclass(frozen=True, slots=True)
class WhiteBox(Dividing):
    """A white-box adversary: an attack that maximises the loss `loss(model, y)`.

    The model is attacked in eval mode with frozen parameters; both are restored afterwards.

    Args:
        attack: The attack.
        loss: Builds the loss that the attack maximises from the model and the labels `[B]`; by default cross-entropy.
        draws: Number of passes over which the loss is averaged, for a randomised model (expectation over
            transformation, `EOT`).
        at_once: Number of images that pass through the model at once; None for all. It has no influence on results.

    Raises:
        UserError: If `attack` is no attack or a `PerView`, `loss` no function of a model and labels, or `draws` no
            whole number from 1 on.
    """

    attack: Attack
    loss: Callable[[Forward, Tensor], PerExampleLoss] = CE
    draws: int = 1

    def __post_init__(self) -> None:
        _need_attack(self.attack)
        _need_loss(self.loss, "a model and labels, such as CE", 2)
        if self.loss is TargetedCE:  # it would take labels for targets, and move every example towards its own class
            raise UserError("TargetedCE needs targets, which WhiteBox has not: MultiTargeted chooses them")
        need_whole("draws", self.draws)

    @property
    def recordable(self) -> bool:
        """True if a search never waits for the device, so that it can be recorded as a CUDA graph."""
        on_logits = isinstance(self.loss, type) and issubclass(self.loss, OnLogits)
        return recordable(self.attack) and on_logits and self.draws == 1

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        with eval_mode(model), frozen(model):
            loss = self.loss(model.__call__, y)
            loss = loss if self.draws == 1 else EOT(loss, self.draws)
            return self.attack(microbatched(loss, self.at_once), x, rng)


@dataclass(frozen=True, slots=True)
class MultiTargeted(Dividing):
    """A targeted adversary: the attack runs towards one other class after another until the model is fooled.

    Target classes are taken in the order of their logits on the clean image, the highest first. The model is attacked
    in eval mode with frozen parameters.

    Args:
        attack: The attack.
        loss: Builds the loss that the attack maximises from the model, the labels `[B]` and the targets `[B]`; by
            default the targeted DLR loss.
        targets: Number of target classes; all other classes if there are fewer.
        at_once: Number of images that pass through the model at once; None for all. It has no influence on results.

    Raises:
        UserError: If `attack` is no attack or a `PerView`, `loss` no function of a model, labels and targets, or
            `targets` no whole number from 1 on.
    """

    attack: Attack
    loss: Callable[[Forward, Tensor, Tensor], PerExampleLoss] = TargetedDLR
    targets: int = 9

    def __post_init__(self) -> None:
        _need_attack(self.attack)
        _need_loss(self.loss, "a model, labels and targets, such as TargetedDLR and Margin", 3)
        need_whole("targets", self.targets)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        with eval_mode(model), frozen(model):
            with torch.no_grad():
                logits = torch.cat([model(part) for part in x.split(self.at_once or len(x))])
            others = logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
            targets = iter(others[:, : min(self.targets, others.shape[1] - 1)].T)
            count = min(self.targets, others.shape[1] - 1)

            def run(rows: Tensor) -> Tensor:
                loss = self.loss(model.__call__, y[rows], next(targets)[rows])
                return self.attack(microbatched(loss, self.at_once), x[rows], some(rng, rows))

            return keep_worst(run, count, microbatched(Margin(model.__call__, y), self.at_once), x)


@dataclass(frozen=True, slots=True, repr=False)
class SurrogateGradient:
    """An adversary that attacks the model with a surrogate gradient, and is judged on the model without it.

    `SurrogateGradient(SmoothBackward(1.0), WhiteBox(PGD(threat)))` follows another gradient than that of ReLU. The
    robustness of a network that was trained with a gradient of its own must not be believed under one gradient alone.

    Args:
        view: The change of the model under which the attack runs. Several views are given as one, `ComposedMode`. A
            mode such as `train_mode` is no view, since adversaries set eval mode themselves.
        adversary: The adversary that attacks the changed model: a `WhiteBox` or a `MultiTargeted`.

    Raises:
        UserError: If `adversary` is of another class, or `view` is a mode.
    """

    view: ModelMode
    adversary: Adversary

    def __post_init__(self) -> None:
        if not isinstance(self.adversary, WhiteBox | MultiTargeted):
            raise UserError(
                f"a {type(self.adversary).__name__} cannot run under a view: give the view to each WhiteBox "
                "or MultiTargeted inside it, and several views as one, ComposedMode((..))"
            )
        if getattr(self.view, "__module__", "") == eval_mode.__module__ and not isinstance(self.view, ComposedMode):
            raise UserError(f"{named(self.view)} is undone by the adversary, which sets eval mode itself")

    def dividing(self, at_once: int) -> "SurrogateGradient":
        assert isinstance(self.adversary, Dividing)
        return SurrogateGradient(self.view, self.adversary.dividing(at_once))

    def __repr__(self) -> str:
        return f"SurrogateGradient({named(self.view)}, {self.adversary!r})"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        with self.view(model):
            return self.adversary(model, x, y, rng)


def as_adversary(value: object) -> Any:
    """Return an adversary or a cascade unchanged, and a bare attack as a `WhiteBox`.

    They differ in the arguments of a call: an attack takes (loss, x, rng), an adversary (model, x, y, rng). Raises
    `UserError` for a value that is neither.
    """
    if hasattr(value, "stages"):
        return value
    check_attack(value)
    return WhiteBox(value) if _takes(value, 3) and not _takes(value, 4) else value  # type: ignore[arg-type]


def _takes(function: Any, count: int) -> bool:
    """Return True if a function can be called with `count` positional arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):  # another number of arguments, or built in and without a signature
        return False
    return True


def threats_of(value: Any) -> list[Threat]:
    """The threats inside a value (an attack, an adversary, an evaluation), in order. Models are not searched.

    Every object that fulfils the protocol counts, also one of a user's own class, and one in an object that is no
    dataclass.
    """
    return list(_threats_in(value, ()))


def _threats_in(value: object, around: tuple[object, ...]) -> Iterator[Threat]:
    if _is_threat(value):
        yield value  # what a set consists of is not a set of its own
    elif not any(value is each for each in around):
        for child in children(value) or _attributes(value):
            yield from _threats_in(child, (*around, value))


def _attributes(value: object) -> list[Any]:
    """Return the attributes of an object of a user's own class; classes, functions, models and tensors have none."""
    if isinstance(value, type | nn.Module | Tensor | FunctionType | ModuleType):
        return []
    return list(getattr(value, "__dict__", {}).values())


def _is_threat(value: object) -> TypeGuard[Threat]:
    """Return True for a threat, except for a `ScaledThreat`.

    That is shrunk for one batch and wraps the whole set, which is the threat.
    """
    if not hasattr(value, "project"):  # true of most values, and a comparison with the protocol is slow
        return False
    return isinstance(value, Threat) and not isinstance(value, type | nn.Module | Tensor | ScaledThreat)


def bound(adversary: object) -> Threat | None:
    """The one set that points of an attack or adversary must lie in to count; None if it has no threat, or several."""
    return the_one(threats_of(adversary))


def the_one(threats: Sequence[Threat | None]) -> Threat | None:
    """The common threat if all of these are equal, else None."""
    return threats[0] if threats and all(_same(threat, threats[0]) for threat in threats) else None


def _same(one: Threat | None, other: Threat | None) -> bool:
    try:
        return one is other or bool(one == other)
    except (RuntimeError, ValueError):  # a user's own set may hold tensors, whose comparison gives no bool
        return False


def threat_of(value: Any) -> Threat | None:
    """Return the first threat inside a value.

    Args:
        value: An attack, an adversary or an evaluation.

    Returns:
        The first threat in the order of the fields; None if there is none.
    """
    return next(iter(threats_of(value)), None)


def perturb(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack, seed: int = 0, index: Tensor | None = None
) -> Tensor:
    """Return adversarial examples for `x` after checking all arguments: `perturb(model, x, y, PGD(Linf("8/255")))`.

    The loss is cross-entropy, and the model is attacked in eval mode. Only one thread attacks a model at a time.

    Args:
        model: A module that gives logits `[N, K]`.
        x: Images `[N, C, H, W]` in [0, 1].
        y: Labels `[N]`.
        attack: The attack.
        seed: Seed of the random numbers.
        index: int64 `[N]`; the random numbers of an example depend on `seed` and its index, by default its place in
            `x`.

    Returns:
        Adversarial examples `[N, C, H, W]` in [0, 1], inside the set of the attack.

    Raises:
        UserError: For images outside [0, 1], labels that the model has no class for, probabilities instead of logits, a
            model that changes its images, and points that are not finite or leave the set of the attack.
    """
    adversary = WhiteBox(attack)
    need_seed(seed)
    with alone(model):
        check_examples(model, x, y)
        index = checked_index(index, len(x), x.device)
        found = adversary(model, x.detach(), y, PerExample(seed, index))
        reaches = [value.reach for value in walk(attack) if _is_threat(getattr(value, "reach", None))]
        return checked_points(found, x, the_one(reaches) if reaches else bound(attack))


def check_adversary_name(name: str) -> None:
    """Check that an adversary can have this name in a result.

    Args:
        name: The name.

    Raises:
        UserError: If the name is "clean" or contains "/".
    """
    if name == "clean" or "/" in name:
        raise UserError(f"no adversary can be called {name!r}: clean and names with / are reserved")


def checked_points(z: Tensor, x: Tensor, threat: Threat | None) -> Tensor:
    """Return the points of an attack, after checking that they are finite images inside the set around `x`."""
    lost = ~z.isfinite().flatten(1).all(1)
    if bool(lost.any()):
        raise UserError(
            f"the attack gives NaN or infinite pixels for {int(lost.sum())} of {len(x)} images: the logits of the "
            "model, or their gradients, are not finite there. Check its weights, and sqrt, log and divisions by 0"
        )
    if float(z.min()) < 0 or float(z.max()) > 1:
        raise UserError(f"the attack gives pixels in [{float(z.min()):.9g}, {float(z.max()):.9g}], outside [0, 1]")
    if threat is not None and bool((outside := beyond(threat, z, x)).any()):
        raise UserError(f"{int(outside.sum())} of {len(x)} points of the attack are outside of {threat!r}")
    return z


ROUNDING = 1e-5  # relative to eps, plus a tenth of it absolute: the float32 error of a point on the sphere
MOVED = 1e-4  # of a pixel: a user's own projection may be iterative, and so inexact


def beyond(threat: Threat, z: Tensor, x: Tensor) -> Tensor:
    """Points that are outside the set around `x` by more than rounding, as bools `[B]`.

    A user's own set need not be a ball (only some pixels may change, say): points that its projection moves are
    outside.
    """
    outside = threat.norm((z - x).to(finest(x.device))) > threat.eps * (1 + ROUNDING) + ROUNDING / 10
    if isinstance(threat, Linf | L2 | L1):
        return outside
    return outside | ((threat.project(z, x) - z).flatten(1).abs().amax(1) > MOVED)


def checked_index(index: Tensor | None, count: int, device: torch.device) -> Tensor:
    """The index, one int64 per image, on the device; the places of the images if none is given."""
    if index is None:
        return torch.arange(count, device=device)
    if index.shape != (count,) or index.dtype != torch.int64:
        raise UserError(
            f"index is {index.dtype} of shape {tuple(index.shape)}: it must be int64 of shape ({count},), one per image"
        )
    return index.to(device)
