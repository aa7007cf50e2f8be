"""Optimisers as values. The training loop sets the learning rate of every parameter group before each step."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..core.errors import UserError
from .optimizer_rules import CentralSGD, Lamb, Lars, RMSPropTF


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
        UserError: when a number is out of its range, or `nesterov` is set without a momentum above 0.

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
        _need_rates(self.weight_decay, momentum=self.momentum)
        if self.nesterov and self.momentum <= 0:
            raise UserError("Nesterov momentum needs a momentum above 0: set it, or --optimizer.no-nesterov")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = _groups(model, self.weight_decay, self.decay_vectors)
        rules: dict[str, Any] = {"momentum": self.momentum, "nesterov": self.nesterov}
        if self.centralize == "nothing":
            return torch.optim.SGD(groups, lr=0.0, fused=_can_fuse(model), **rules)
        least = 2 if self.centralize == "weights" else 3
        return CentralSGD(groups, least, fused=_can_fuse(model), **rules)


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam with torch's defaults; weight decay is added to the gradient.

    Args:
        betas: decay rates of the averages of the gradient and of its square.
        weight_decay: coefficient of the weight decay.
        decay_vectors: decay biases and the scales of normalisation layers too.

    Raises:
        UserError: when a number is out of its range.

    References:
        Adam: https://arxiv.org/abs/1412.6980.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    decay_vectors: bool = True

    def __post_init__(self) -> None:
        _need_rates(self.weight_decay, **_named(self.betas))

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

    Raises:
        UserError: when a number is out of its range.

    References:
        AdamW: https://arxiv.org/abs/1711.05101.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    decay_vectors: bool = True

    def __post_init__(self) -> None:
        _need_rates(self.weight_decay, **_named(self.betas))

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = _groups(model, self.weight_decay, self.decay_vectors)
        return torch.optim.AdamW(groups, lr=0.0, betas=self.betas, fused=_can_fuse(model))


@dataclass(frozen=True, slots=True)
class LARS:
    """SGD with momentum and a learning rate for each layer, for batches of many thousand images.

    The rate of a layer is the learning rate x `trust_coefficient` x |w| / (|g| + `weight_decay` x |w|), for its weights
    w and their gradient g; where one of the two is 0, and for biases and scales, it is the learning rate itself. The
    rate of a step is a part of its momentum, as in the paper.

    Args:
        momentum: factor of the momentum; 0 is none.
        weight_decay: coefficient of the weight decay.
        trust_coefficient: share of its own length by which a layer may move in a step, at a learning rate of 1.
        decay_vectors: decay biases and the scales of normalisation layers too.

    Raises:
        UserError: when a number is out of its range.

    References:
        LARS: https://arxiv.org/abs/1708.03888.
    """

    momentum: float = 0.9
    weight_decay: float = 1e-4
    trust_coefficient: float = 0.001
    decay_vectors: bool = False

    def __post_init__(self) -> None:
        _need_rates(self.weight_decay, momentum=self.momentum)
        if not self.trust_coefficient > 0:
            raise UserError(
                f"trust_coefficient = {self.trust_coefficient:g} of LARS is not above 0, so no layer would move: "
                "0.001 is usual"
            )

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = _groups(model, self.weight_decay, self.decay_vectors)
        return Lars(groups, momentum=self.momentum, trust_coefficient=self.trust_coefficient)


@dataclass(frozen=True, slots=True)
class LAMB:
    """Adam with weight decay and a learning rate for each layer, for batches of many thousand images.

    The step of a layer, weight decay included, is scaled to the length of its weights times the learning rate; where
    one of the two lengths is 0, and for biases and scales, it is the step of Adam.

    Args:
        betas: decay rates of the averages of the gradient and of its square.
        epsilon: number that is added to the root of the average square.
        weight_decay: coefficient of the weight decay.
        decay_vectors: decay biases and the scales of normalisation layers too.

    Raises:
        UserError: when a number is out of its range.

    References:
        LAMB: https://arxiv.org/abs/1904.00962.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    decay_vectors: bool = False

    def __post_init__(self) -> None:
        _need_rates(self.weight_decay, **_named(self.betas))

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return Lamb(_groups(model, self.weight_decay, self.decay_vectors), betas=self.betas, eps=self.epsilon)


@dataclass(frozen=True, slots=True)
class RMSProp:
    """RMSProp with momentum as in TensorFlow, with the settings of EfficientNet; weight decay is in the gradient.

    Three points differ from torch's: `epsilon` is inside the root, the average square begins at 1, and the rate of a
    step is a part of its momentum.

    Args:
        alpha: decay rate of the average of the squared gradient.
        momentum: factor of the momentum; 0 is none.
        epsilon: number that is added to the average square, inside the root.
        weight_decay: coefficient of the weight decay.
        decay_vectors: decay biases and the scales of normalisation layers too.

    Raises:
        UserError: when a number is out of its range.

    References:
        EfficientNet: https://arxiv.org/abs/1905.11946.
    """

    alpha: float = 0.9
    momentum: float = 0.9
    epsilon: float = 1e-3
    weight_decay: float = 1e-5
    decay_vectors: bool = False

    def __post_init__(self) -> None:
        _need_rates(self.weight_decay, alpha=self.alpha, momentum=self.momentum)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = _groups(model, self.weight_decay, self.decay_vectors)
        return RMSPropTF(groups, alpha=self.alpha, momentum=self.momentum, eps=self.epsilon)


def _named(betas: tuple[float, float]) -> dict[str, float]:
    """Return the two decay rates of Adam by name."""
    if len(betas) != 2:
        raise UserError(f"betas = {betas} are two rates: of the gradient and of its square")
    return {"betas[0]": betas[0], "betas[1]": betas[1]}


def _need_rates(weight_decay: float, **rates: float) -> None:
    """Raise `UserError` for a negative weight decay, or a rate of an average outside [0, 1)."""
    if not 0 <= weight_decay < math.inf:
        raise UserError(f"weight_decay = {weight_decay:g} is not a finite number from 0 on")
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UserError(f"{name} = {rate:g} is not in [0, 1)")


def _can_fuse(model: nn.Module) -> bool:
    """Return True if torch has a fused optimiser step for the devices and types of all parameters."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in model.parameters())


def _groups(model: nn.Module, weight_decay: float, decay_vectors: bool) -> list[dict[str, Any]]:
    """Parameter groups; scalars, such as the alpha of `SmoothReLU`, are never decayed."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    if not wanted:
        raise UserError("no parameter of the model is trainable: call requires_grad_(True) on those that should be")
    least = 1 if decay_vectors else 2
    free = [p for p in wanted if p.ndim < least]
    decayed = {"params": [p for p in wanted if p.ndim >= least], "weight_decay": weight_decay}
    return [decayed, {"params": free, "weight_decay": 0.0}] if free or not decay_vectors else [decayed]
