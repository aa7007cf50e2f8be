"""Optimisers as values. The learning rate is a schedule of the loop and reaches every parameter group."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..core.errors import UserError


@dataclass(frozen=True, slots=True)
class SGD:
    """Momentum SGD; weight decay 5e-4 suits adversarial training (https://arxiv.org/abs/2010.00467).

    With `decay_vectors=False`, biases and the scales of normalisation layers are not decayed. `centralize` takes the
    mean out of the decayed gradient of every output, of all weights or of convolutions only (gradient centralisation,
    https://arxiv.org/abs/2004.01461).
    """

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_vectors: bool = True
    centralize: Literal["nothing", "weights", "convolutions"] = "nothing"

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum <= 0:
            raise UserError("Nesterov momentum needs a momentum above 0: set it, or --optimizer.no-nesterov")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = _groups(model, self.weight_decay, self.decay_vectors)
        rules: dict[str, Any] = {"momentum": self.momentum, "nesterov": self.nesterov}
        if self.centralize == "nothing":
            return torch.optim.SGD(groups, lr=0.0, fused=_can_fuse(model), **rules)
        least = 2 if self.centralize == "weights" else 3
        return _CentralSGD(groups, least, fused=_can_fuse(model), **rules)


class _CentralSGD(torch.optim.SGD):
    """SGD on gradients without their mean, which is taken out after weight decay, as in the released code."""

    def __init__(self, groups: list[dict[str, Any]], least_dimensions: int, **rules: Any) -> None:
        super().__init__(groups, lr=0.0, **rules)
        self.least_dimensions = least_dimensions

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.add_(p, alpha=group["weight_decay"])
                    if p.ndim >= self.least_dimensions:
                        p.grad.sub_(p.grad.mean(dim=tuple(range(1, p.ndim)), keepdim=True))
            group["weight_decay"] = 0.0  # it is in the gradient already
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam (https://arxiv.org/abs/1412.6980), torch's defaults; weight decay is added to the gradient."""

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    decay_vectors: bool = True

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = _groups(model, self.weight_decay, self.decay_vectors)
        return torch.optim.Adam(groups, lr=0.0, betas=self.betas, fused=_can_fuse(model))


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
    """Parameters without a dimension, such as the alpha of `SmoothReLU`, are never decayed."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    least = 1 if decay_vectors else 2
    free = [p for p in wanted if p.ndim < least]
    decayed = {"params": [p for p in wanted if p.ndim >= least], "weight_decay": weight_decay}
    return [decayed, {"params": free, "weight_decay": 0.0}] if free or not decay_vectors else [decayed]
