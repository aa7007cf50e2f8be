"""Averages of the weights over training. Evaluation uses the average where there is one."""

import copy
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class EMA:
    """Exponential moving average, `decay` 0.995 per step as in https://arxiv.org/abs/2010.03593.

    Early on the decay is (1 + t) / (10 + t), so that the random beginning is forgotten. Buffers (batch-norm
    statistics) are those of the live model, as in that paper's code.
    """

    decay: float = 0.995

    def init(self, model: nn.Module) -> nn.Module:
        average = copy.deepcopy(model)
        average.requires_grad_(False)
        return average.eval()

    @torch.no_grad()
    def update(self, average: nn.Module, model: nn.Module, step: int) -> None:
        """Moves `average` towards `model` after optimiser step number `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        for kept, live in zip(average.buffers(), model.buffers(), strict=True):
            kept.copy_(live)
