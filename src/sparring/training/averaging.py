"""Averages of the weights over training. Evaluation uses the average if there is one."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.errors import UserError
from ..core.modes import eval_mode
from ..core.types import Progress


class Averaging(Protocol):
    """Rule by which an average of the weights follows the model.

    It keeps no state of its own: all state is in the average and in the progress.
    """

    def init(self, model: nn.Module) -> nn.Module:
        """Return the average before the first step."""
        ...

    def update(self, average: nn.Module, model: nn.Module, progress: Progress) -> None:
        """Update `average` after an optimiser step; `progress` counts the completed steps."""
        ...

    def settle(self, average: nn.Module, images: Iterable[Tensor], progress: Progress) -> None:
        """Prepare `average` for the evaluation after an epoch; `images` are the batches of the next epoch."""
        ...


def _copied(model: nn.Module) -> nn.Module:
    average = copy.deepcopy(model)
    average.requires_grad_(False)
    return average.eval()


@torch.no_grad()
def _approach(average: nn.Module, model: nn.Module, share: float) -> None:
    """Move the weights of `average` by `share` of the way to those of `model`, and copy the buffers of `model`."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), share)
    for kept, live in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(live)


@dataclass(frozen=True, slots=True)
class EMA:
    """Exponential moving average of the weights.

    Early in training the decay is (1 + t) / (10 + t) at step t, so that the random initial weights are forgotten.
    Buffers (batch-norm statistics) are those of the live model, as in the paper's code.

    Args:
        decay: share of the average that a step keeps; the paper's is 0.995.
        warm_up: share of the training, in [0, 1), in which the average is the model; 0.025 in the released code for
            PyTorch.

    Raises:
        UserError: when `decay` or `warm_up` is not in [0, 1).

    References:
        Gowal et al.: https://arxiv.org/abs/2010.03593.
    """

    decay: float = 0.995
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warm_up < 1:
            raise UserError(f"warm_up = {self.warm_up:g} of the average is no share of the training in [0, 1)")
        if not 0 <= self.decay < 1:
            raise UserError(f"decay = {self.decay:g} of the average is no share in [0, 1)")

    def init(self, model: nn.Module) -> nn.Module:
        return _copied(model)

    def update(self, average: nn.Module, model: nn.Module, progress: Progress) -> None:
        step = progress.step - self.warm_up * progress.epochs * progress.steps_per_epoch
        _approach(average, model, 1.0 if step < 0 else 1 - min(self.decay, (1 + step) / (10 + step)))

    def settle(self, average: nn.Module, images: Iterable[Tensor], progress: Progress) -> None: ...


@dataclass(frozen=True, slots=True)
class SWA:
    """Stochastic weight averaging: the plain average of the weights at the end of every epoch after epoch `start`.

    Until `start` the average is the model. Before an evaluation, the statistics of batch norm are estimated anew in one
    pass over the clean training images, augmented as in training.

    Args:
        start: number of epochs before the first epoch that is averaged, at least 0; with adversarial training, the
            second paper starts at 55 of 200 epochs.

    Raises:
        UserError: when `start` is negative.

    References:
        SWA: https://arxiv.org/abs/1803.05407.
        SWA in adversarial training: https://openreview.net/forum?id=qZzy5urZw9.
    """

    start: int

    def __post_init__(self) -> None:
        if self.start < 0:
            raise UserError(f"averaging cannot start after epoch {self.start}: start must be at least 0")

    def init(self, model: nn.Module) -> nn.Module:
        return _copied(model)

    def update(self, average: nn.Module, model: nn.Module, progress: Progress) -> None:
        epoch, within = divmod(progress.step, progress.steps_per_epoch)
        if within == 0:
            _approach(average, model, 1 / max(1, epoch - self.start))
        elif epoch <= self.start:  # training may be stopped before the first epoch that is averaged has ended
            _approach(average, model, 1.0)

    def settle(self, average: nn.Module, images: Iterable[Tensor], progress: Progress) -> None:
        if (
            progress.epoch > self.start + 1
        ):  # the average of one epoch is the model itself, and its statistics are right
            estimate_statistics(average, images)


@torch.no_grad()
def estimate_statistics(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Set the running statistics of batch norm to their means over the batches `images`, each `[B, C, H, W]`."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    try:
        with eval_mode(model):
            for m in norms:
                m.reset_running_stats()
                m.momentum = None  # torch then takes the cumulative mean
                m.train()
            for x in images:
                model(x)
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
