"""Attacks that have been told what to fool: what evaluation takes, and the shortest way to attack any model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..checks import check_examples
from ..core import Attack, Forward, PointLoss, make_rng
from ..losses import Untargeted
from ..views import eval_mode, frozen


class Adversary(Protocol):
    """Adversarial versions of `x` `[B, C, H, W]` in [0, 1] with labels `y` `[B]`."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class WhiteBox:
    """An attack that sees the model's gradients, on the loss that `loss(model, y)` gives.

    The model is attacked in eval mode with frozen parameters, and left as it was.
    """

    attack: Attack
    loss: Callable[[Forward, Tensor], PointLoss] = Untargeted

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        with eval_mode(model), frozen(model):
            return self.attack(self.loss(model, y), x, rng)


def perturb(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, seed: int = 0) -> Tensor:
    """Adversarial versions of `x`, with everything checked first: `perturb(model, x, y, PGD(Linf("8/255")))`.

    Raises `UserError` for images outside [0, 1], labels the model has no class for, and probabilities
    instead of logits.
    """
    with eval_mode(model):
        check_examples(model, x, y)
    return WhiteBox(attack)(model, x, y, make_rng(seed, x.device))
