"""Attacks that have been told what to fool: what evaluation takes, and the shortest way to attack any model."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from ..attacks.compose import keep_worst
from ..attacks.losses import CE, EOT, Margin, TargetedDLR, microbatched
from ..attacks.threats import L1, L2, Linf, ScaledThreat
from ..core.errors import UserError, need_seed, need_whole
from ..core.gate import alone, check_examples
from ..core.modes import ComposedMode, eval_mode, frozen, named
from ..core.rng import PerExample, Rng, some
from ..core.types import Attack, Forward, ModelMode, PerExampleLoss, Threat
from ..core.validation import check_attack
from ..core.walk import walk


class Adversary(Protocol):
    """Adversarial versions of `x` `[B, C, H, W]` in [0, 1] with labels `y` `[B]`."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor: ...


@runtime_checkable
class Divides(Protocol):
    """An adversary that can hold more examples than it asks the model about at a time, at most `at_once`."""

    def dividing(self, at_once: int) -> Adversary: ...


@dataclass(frozen=True, slots=True)
class Dividing:
    """What adversaries that divide what they are given have in common; `at_once` decides no result."""

    at_once: int | None = field(default=None, repr=False, compare=False, kw_only=True)

    def dividing(self, at_once: int) -> Self:
        return dataclasses.replace(self, at_once=at_once)


@dataclass(frozen=True, slots=True)
class WhiteBox(Dividing):
    """An attack that sees the model, on the loss that `loss(model, y)` gives.

    The model is attacked in eval mode with frozen parameters, and left as it was. For a randomised model, `draws` is
    over how many passes the loss is averaged (`EOT`). With `at_once`, it is asked about so many images at a time.
    """

    attack: Attack
    loss: Callable[[Forward, Tensor], PerExampleLoss] = CE
    draws: int = 1

    def __post_init__(self) -> None:
        check_attack(self.attack)
        need_whole("draws", self.draws)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        with eval_mode(model), frozen(model):
            loss = self.loss(model.__call__, y)
            loss = loss if self.draws == 1 else EOT(loss, self.draws)
            return self.attack(microbatched(loss, self.at_once), x, rng)


@dataclass(frozen=True, slots=True)
class MultiTargeted(Dividing):
    """An attack towards each of several other classes, those of the highest logits first, until one fools.

    `loss(model, y, target)` is what the attack raises. There are as many targets as `targets` or other classes.
    """

    attack: Attack
    loss: Callable[[Forward, Tensor, Tensor], PerExampleLoss] = TargetedDLR
    targets: int = 9

    def __post_init__(self) -> None:
        check_attack(self.attack)
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
    """An adversary that sees the model through a view, and is judged on the model without it.

    `SurrogateGradient(SmoothBackward(1.0), WhiteBox(PGD(threat)))` follows another gradient than that of ReLU: a net
    that was trained with a gradient of its own must not be believed under one gradient alone. Several views are one,
    `ComposedMode`; a mode is no view for this, since adversaries set eval mode themselves.
    """

    view: ModelMode
    adversary: Adversary

    def __post_init__(self) -> None:
        if not isinstance(self.adversary, WhiteBox | MultiTargeted):
            raise UserError(
                f"a {type(self.adversary).__name__} cannot look through a view: give it to each WhiteBox or "
                "MultiTargeted "
                "inside, and several views as one, ComposedMode((..))"
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
    """An adversary or a cascade as it is; a bare attack as one that sees the model (`WhiteBox`).

    What tells them apart is what they are called with: (loss, x, rng), or (model, x, y, rng). Raises `UserError` for
    what can be neither.
    """
    if hasattr(value, "stages"):
        return value
    check_attack(value)
    return WhiteBox(value) if _takes(value, 3) and not _takes(value, 4) else value  # type: ignore[arg-type]


def _takes(function: Any, count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):  # another number of arguments, or built in and without a signature
        return False
    return True


def threats_of(value: Any) -> list[Threat]:
    """The threats inside a value, in order: of an attack, an adversary, an evaluation. Models are not looked into.

    Whatever fulfils the protocol is one, a user's own too.
    """
    found = [each for each in walk(value, lambda each: not _is_threat(each)) if _is_threat(each)]
    if found or isinstance(value, type | nn.Module | Tensor):
        return found
    return [each for each in getattr(value, "__dict__", {}).values() if _is_threat(each)]  # a class of a user's own


def _is_threat(value: object) -> bool:
    """Of a set that was shrunk for one batch, the whole is the threat: the other serves no part of the batch."""
    return isinstance(value, Threat) and not isinstance(value, type | nn.Module | Tensor | ScaledThreat)


def bound(adversary: object) -> Threat | None:
    """The one set that the points of an attack or adversary must lie in to count; None if it names none, or several."""
    return the_one(threats_of(adversary))


def the_one(threats: Sequence[Threat | None]) -> Threat | None:
    """The threat that all of these are, if they are one."""
    return threats[0] if threats and all(_same(threat, threats[0]) for threat in threats) else None


def _same(one: Threat | None, other: Threat | None) -> bool:
    try:
        return one is other or bool(one == other)
    except (RuntimeError, ValueError):  # a set of the user's may hold tensors, whose equality is no bool
        return False


def threat_of(value: Any) -> Threat | None:
    """The first threat inside a value."""
    return next(iter(threats_of(value)), None)


def perturb(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack, seed: int = 0, index: Tensor | None = None
) -> Tensor:
    """Adversarial versions of `x`, with everything checked first: `perturb(model, x, y, PGD(Linf("8/255")))`.

    The random numbers of an example depend on `seed` and on its `index`, by default its place in `x`. One thread at a
    time attacks a model. Raises `UserError` for images outside [0, 1], labels the model has no class for, probabilities
    instead of logits, a model that changes its images, and points that are not finite or leave the set of the attack.
    """
    adversary = WhiteBox(attack)
    need_seed(seed)
    with alone(model):
        check_examples(model, x, y)
        index = checked_index(index, len(x), x.device)
        found = adversary(model, x.detach(), y, PerExample(seed, index))
        return checked_points(found, x, getattr(attack, "reach", None) or bound(attack))


def check_name(name: str) -> None:
    """Raises `UserError` for what no adversary can be called in a result."""
    if name == "clean" or "/" in name:
        raise UserError(f"no adversary can be called {name!r}: clean and names with / have a meaning of their own")


def checked_points(z: Tensor, x: Tensor, threat: Threat | None) -> Tensor:
    """The points of an attack, if they are finite images of the set around `x`."""
    lost = ~z.isfinite().flatten(1).all(1)
    if bool(lost.any()):
        raise UserError(
            f"the attack gives NaN or infinite pixels for {int(lost.sum())} of {len(x)} images: the logits of the "
            "model, or their gradients, are not finite there. Look at its weights, and at sqrt, log and divisions by 0"
        )
    if float(z.min()) < 0 or float(z.max()) > 1:
        raise UserError(f"the attack gives pixels in [{float(z.min()):.9g}, {float(z.max()):.9g}], outside [0, 1]")
    if threat is not None and bool((outside := beyond(threat, z, x)).any()):
        raise UserError(f"{int(outside.sum())} of {len(x)} points of the attack are outside of {threat!r}")
    return z


ROUNDING = 1e-5  # relative to eps, and a tenth of it absolute: what float32 makes of a point on the sphere
MOVED = 1e-4  # of a pixel: a projection of one's own may be found by iterating


def beyond(threat: Threat, z: Tensor, x: Tensor) -> Tensor:
    """Which points are outside of the set around `x`, by more than rounding: `[B]`.

    A set of the user's need not be a ball, as where only some pixels may change: what its projection moves is outside.
    """
    outside = threat.norm((z - x).double()) > threat.eps * (1 + ROUNDING) + ROUNDING / 10
    if isinstance(threat, Linf | L2 | L1):
        return outside
    return outside | ((threat.project(z, x) - z).flatten(1).abs().amax(1) > MOVED)


def checked_index(index: Tensor | None, count: int, device: torch.device) -> Tensor:
    """One int64 per image, on the device; their places if none is given."""
    if index is None:
        return torch.arange(count, device=device)
    if index.shape != (count,) or index.dtype != torch.int64:
        raise UserError(f"index is {index.dtype} of shape {tuple(index.shape)}: wanted is one int64 per image")
    return index.to(device)
