"""Optimisers as values. The learning rate is a schedule of the loop and reaches every parameter group."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .errors import UserError


@dataclass(frozen=True, slots=True)
class SGD:
    """Momentum SGD; weight decay 5e-4 suits adversarial training (https://arxiv.org/abs/2010.00467).

    With `decay_vectors=False`, biases and the scales of normalisation layers are not decayed.
    """

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_vectors: bool = True

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum <= 0:
            raise UserError("Nesterov momentum needs a momentum above 0: set it, or --optimizer.no-nesterov")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = _groups(model, self.weight_decay, self.decay_vectors)
        rules: dict[str, Any] = {"momentum": self.momentum, "nesterov": self.nesterov}
        return torch.optim.SGD(groups, lr=0.0, fused=_can_fuse(model), **rules)


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101), torch's defaults."""

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    decay_vectors: bool = True

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = _groups(model, self.weight_decay, self.decay_vectors)
        return torch.optim.AdamW(groups, lr=0.0, betas=self.betas, fused=_can_fuse(model))


def _can_fuse(model: nn.Module) -> bool:
    """Whether torch has the step in one pass over the memory."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in model.parameters())


def _groups(model: nn.Module, weight_decay: float, decay_vectors: bool) -> list[dict[str, Any]]:
    wanted = [p for p in model.parameters() if p.requires_grad]
    if decay_vectors:
        return [{"params": wanted, "weight_decay": weight_decay}]
    return [
        {"params": [p for p in wanted if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in wanted if p.ndim <= 1], "weight_decay": 0.0},
    ]
