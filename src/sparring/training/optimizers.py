"""Optimisers as values. The training loop sets the learning rate of every parameter group before each step."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..core.errors import UserError


@dataclass(frozen=True, slots=True)
class SGD:
    """SGD with momentum.

    Args:
        momentum: factor of the momentum; 0 is plain SGD.
        nesterov: use Nesterov momentum, which needs a momentum above 0.
        weight_decay: coefficient of the weight decay; 5e-4 suits adversarial training.
        decay_vectors: decay biases and the scales of normalisation layers too.
        centralize: gradient centralisation, which subtracts the mean from the decayed gradient of every output: of
            "nothing", of all "weights", or of "convolutions" only.

    Raises:
        UserError: when `nesterov` is set without a momentum above 0.

    References:
        Weight decay in adversarial training: https://arxiv.org/abs/2010.00467.
        Gradient centralisation: https://arxiv.org/abs/2004.01461.
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
    """SGD on centralised gradients; the mean is subtracted after weight decay, as in the released code."""

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
    """Adam with torch's defaults; weight decay is added to the gradient.

    Args:
        betas: decay rates of the averages of the gradient and of its square.
        weight_decay: coefficient of the weight decay.
        decay_vectors: decay biases and the scales of normalisation layers too.

    References:
        Adam: https://arxiv.org/abs/1412.6980.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    decay_vectors: bool = True

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = _groups(model, self.weight_decay, self.decay_vectors)
        return torch.optim.Adam(groups, lr=0.0, betas=self.betas, fused=_can_fuse(model))


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay and torch's defaults.

    Args:
        betas: decay rates of the averages of the gradient and of its square.
        weight_decay: coefficient of the weight decay.
        decay_vectors: decay biases and the scales of normalisation layers too.

    References:
        AdamW: https://arxiv.org/abs/1711.05101.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    decay_vectors: bool = True

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = _groups(model, self.weight_decay, self.decay_vectors)
        return torch.optim.AdamW(groups, lr=0.0, betas=self.betas, fused=_can_fuse(model))


def _can_fuse(model: nn.Module) -> bool:
    """Return True if torch has a fused optimiser step for the devices and types of all parameters."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in model.parameters())


def _groups(model: nn.Module, weight_decay: float, decay_vectors: bool) -> list[dict[str, Any]]:
    """Parameter groups; scalars, such as the alpha of `SmoothReLU`, are never decayed."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    least = 1 if decay_vectors else 2
    free = [p for p in wanted if p.ndim < least]
    decayed = {"params": [p for p in wanted if p.ndim >= least], "weight_decay": weight_decay}
    return [decayed, {"params": free, "weight_decay": 0.0}] if free or not decay_vectors else [decayed]
