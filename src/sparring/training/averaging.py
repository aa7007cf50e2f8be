"""Averages of the weights over training. Evaluation uses the average where there is one."""

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
    """How an average follows the model. It keeps no state of its own: all is in the average and in the progress."""

    def init(self, model: nn.Module) -> nn.Module: ...

    def update(self, average: nn.Module, model: nn.Module, progress: Progress) -> None:
        """Moves `average` after an optimiser step; `progress` counts the steps that are done."""
        ...

    def settle(self, average: nn.Module, images: Iterable[Tensor], progress: Progress) -> None:
        """Before the average is evaluated at the end of an epoch; `images` are those of the epoch to come."""
        ...


def _copied(model: nn.Module) -> nn.Module:
    average = copy.deepcopy(model)
    average.requires_grad_(False)
    return average.eval()


@torch.no_grad()
def _approach(average: nn.Module, model: nn.Module, share: float) -> None:
    """The weights go this share of the way to the model; buffers are those of the model."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), share)
    for kept, live in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(live)


@dataclass(frozen=True, slots=True)
class EMA:
    """Exponential moving average, `decay` 0.995 per step as in https://arxiv.org/abs/2010.03593.

    Early on the decay is (1 + t) / (10 + t), so that the random beginning is forgotten. Buffers (batch-norm
    statistics) are those of the live model, as in that paper's code.
    """

    decay: float = 0.995

    def init(self, model: nn.Module) -> nn.Module:
        return _copied(model)

    def update(self, average: nn.Module, model: nn.Module, progress: Progress) -> None:
        _approach(average, model, 1 - min(self.decay, (1 + progress.step) / (10 + progress.step)))

    def settle(self, average: nn.Module, images: Iterable[Tensor], progress: Progress) -> None: ...


@dataclass(frozen=True, slots=True)
class SWA:
    """The plain average of the weights at the end of every epoch after epoch `start` (https://arxiv.org/abs/1803.05407).

    In adversarial training as in https://openreview.net/forum?id=qZzy5urZw9, which starts at 55 of 200 epochs. Batch
    norm takes new statistics from one pass over the clean training images, augmented as in training; until `start` the
    average is the model.
    """

    start: int

    def __post_init__(self) -> None:
        if self.start < 0:
            raise UserError(f"averaging starts after epoch 0 or later, not {self.start}")

    def init(self, model: nn.Module) -> nn.Module:
        return _copied(model)

    def update(self, average: nn.Module, model: nn.Module, progress: Progress) -> None:
        epoch, within = divmod(progress.step, progress.steps_per_epoch)
        if within == 0:
            _approach(average, model, 1 / max(1, epoch - self.start))

    def settle(self, average: nn.Module, images: Iterable[Tensor], progress: Progress) -> None:
        if progress.epoch > self.start + 1:  # an average of one is the model, with its own statistics
            estimate_statistics(average, images)


@torch.no_grad()
def estimate_statistics(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Batch norm takes its running statistics anew, as the mean over these batches `[B, C, H, W]`; all else stays."""
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
