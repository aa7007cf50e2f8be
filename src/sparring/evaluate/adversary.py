"""Attacks that have been told what to fool: what evaluation takes, and the shortest way to attack any model."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..attacks.compose import keep_worst
from ..checks import check_examples
from ..core import Attack, Forward, PointLoss, Threat
from ..errors import UserError
from ..losses import Expected, Margin, TargetedDLR, Untargeted
from ..randomness import PerExample, Rng, some
from ..threats import L1, L2, Linf
from ..views import eval_mode, frozen


class Adversary(Protocol):
    """Adversarial versions of `x` `[B, C, H, W]` in [0, 1] with labels `y` `[B]`."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class WhiteBox:
    """An attack that sees the model, on the loss that `loss(model, y)` gives.

    The model is attacked in eval mode with frozen parameters, and left as it was. For a randomised model, `draws` is
    over how many passes the loss is averaged (`Expected`).
    """

    attack: Attack
    loss: Callable[[Forward, Tensor], PointLoss] = Untargeted
    draws: int = 1

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        with eval_mode(model), frozen(model):
            loss = self.loss(model, y)
            return self.attack(loss if self.draws == 1 else Expected(loss, self.draws), x, rng)


@dataclass(frozen=True, slots=True)
class EachTarget:
    """An attack towards each of several other classes, those of the highest logits first, until one fools.

    `loss(model, y, target)` is what the attack raises. There are as many targets as `targets` or other classes.
    """

    attack: Attack
    loss: Callable[[Forward, Tensor, Tensor], PointLoss] = TargetedDLR
    targets: int = 9

    def __post_init__(self) -> None:
        if self.targets < 1:
            raise UserError(f"there is at least one target, not {self.targets}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        with eval_mode(model), frozen(model):
            with torch.no_grad():
                others = model(x).scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
            targets = iter(others[:, : min(self.targets, others.shape[1] - 1)].T)
            count = min(self.targets, others.shape[1] - 1)

            def run(rows: Tensor) -> Tensor:
                loss = self.loss(model, y[rows], next(targets)[rows])
                return self.attack(loss, x[rows], some(rng, rows))

            return keep_worst(run, count, Margin(model, y), x)


def threat_of(value: Any) -> Threat | None:
    """The first threat inside a value made of dataclasses: of an attack, an adversary, an evaluation."""
    if isinstance(value, Linf | L2 | L1):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, f.name) for f in dataclasses.fields(value)]
    elif isinstance(value, dict):
        parts = list(value.values())
    else:
        parts = list(value) if isinstance(value, tuple) else []
    return next((found for part in parts if (found := threat_of(part)) is not None), None)


def perturb(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack, seed: int = 0, index: Tensor | None = None
) -> Tensor:
    """Adversarial versions of `x`, with everything checked first: `perturb(model, x, y, PGD(Linf("8/255")))`.

    The random numbers of an example depend on `seed` and on its `index`, by default its place in `x`. Raises
    `UserError` for images outside [0, 1], labels the model has no class for, and probabilities instead of logits.
    """
    with eval_mode(model):
        check_examples(model, x, y)
    index = torch.arange(len(x), device=x.device) if index is None else index
    return WhiteBox(attack)(model, x, y, PerExample(seed, index))
