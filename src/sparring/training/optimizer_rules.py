"""Optimisers that `torch.optim` lacks. Each step works on all tensors of a group together and never waits for a GPU."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Group = dict[str, Any]


class CentralSGD(torch.optim.SGD):
    """SGD on centralised gradients; the mean is subtracted after weight decay, as in the released code."""

    def __init__(self, groups: list[Group], least_dimensions: int, **rules: Any) -> None:
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


class _ByGroup(torch.optim.Optimizer):
    """Optimiser that updates the tensors of a group, which have a gradient, together; its rate is set by its user."""

    def __init__(self, groups: list[Group], **rules: Any) -> None:
        super().__init__(groups, {"lr": 0.0, **rules})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._update(group, weights, [p.grad for p in weights])
        return loss

    def _update(self, group: Group, weights: list[Tensor], grads: list[Tensor]) -> None:
        raise NotImplementedError

    def _kept(self, name: str, weights: list[Tensor], start: float = 0.0) -> list[Tensor]:
        """Return a tensor of the state for each weight, filled with `start` at first."""
        for p in weights:
            if name not in self.state[p]:
                self.state[p][name] = torch.full_like(p, start)
        return [self.state[p][name] for p in weights]


class Lars(_ByGroup):
    """SGD with momentum whose rate is scaled for each layer; the rate of a step is a part of its momentum."""

    def _update(self, group: Group, weights: list[Tensor], grads: list[Tensor]) -> None:
        decay, velocity = group["weight_decay"], self._kept("momentum_buffer", weights)
        moves = list(torch._foreach_add(grads, weights, alpha=decay))
        layers = _layers(weights)
        if layers:
            sizes = _norms(weights, layers)
            slopes = _norms(grads, layers)
            ratios = group["trust_coefficient"] * sizes / (slopes + decay * sizes)
            torch._foreach_mul_([moves[i] for i in layers], _trusted(ratios, sizes, slopes))
        torch._foreach_mul_(velocity, group["momentum"])
        torch._foreach_add_(velocity, moves, alpha=group["lr"])
        torch._foreach_sub_(weights, velocity)


class Lamb(_ByGroup):
    """Adam with weight decay whose step is scaled, for each layer, to the length of the weights."""

    def _update(self, group: Group, weights: list[Tensor], grads: list[Tensor]) -> None:
        means, squares = self._kept("exp_avg", weights), self._kept("exp_avg_sq", weights)
        steps = self._counted(weights)
        first, second = group["betas"]
        torch._foreach_lerp_(means, grads, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, grads, grads, 1 - second)
        roots = torch._foreach_div(squares, [1 - second**n for n in steps])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        moves = list(torch._foreach_div(means, [1 - first**n for n in steps]))
        torch._foreach_div_(moves, roots)
        torch._foreach_add_(moves, weights, alpha=group["weight_decay"])
        layers = _layers(weights)
        if layers:
            sizes, lengths = _norms(weights, layers), _norms(moves, layers)
            torch._foreach_mul_([moves[i] for i in layers], _trusted(sizes / lengths, sizes, lengths))
        torch._foreach_sub_(weights, moves, alpha=group["lr"])

    def _counted(self, weights: list[Tensor]) -> list[int]:
        """Return the number of this step for each weight, which counts those in which it had a gradient."""
        for p in weights:
            self.state[p]["step"] = self.state[p].get("step", 0) + 1
        return [self.state[p]["step"] for p in weights]


class RMSPropTF(_ByGroup):
    """RMSProp as in TensorFlow: eps is in the root, squares begin at 1, the rate of a step is a part of its momentum.

    torch's own adds eps to the root, begins at 0, and multiplies the momentum by the present rate.
    """

    def _update(self, group: Group, weights: list[Tensor], grads: list[Tensor]) -> None:
        squares = self._kept("square_avg", weights, start=1.0)
        velocity = self._kept("momentum_buffer", weights)
        slopes = torch._foreach_add(grads, weights, alpha=group["weight_decay"])
        torch._foreach_mul_(squares, group["alpha"])
        torch._foreach_addcmul_(squares, slopes, slopes, 1 - group["alpha"])
        roots = torch._foreach_add(squares, group["eps"])
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(velocity, group["momentum"])
        torch._foreach_addcdiv_(velocity, slopes, roots, group["lr"])
        torch._foreach_sub_(weights, velocity)


def _layers(weights: Sequence[Tensor]) -> list[int]:
    """Return the positions of what has a rate of its own: matrices and kernels, not biases and scales."""
    return [i for i, p in enumerate(weights) if p.ndim > 1]


def _norms(tensors: Sequence[Tensor], chosen: Sequence[int]) -> Tensor:
    return torch.stack(torch._foreach_norm([tensors[i] for i in chosen]))


def _trusted(ratios: Tensor, *norms: Tensor) -> list[Tensor]:
    """Return the ratio of each layer, and 1 where a norm is 0, so that weights which begin at 0 are trained."""
    for norm in norms:
        ratios = torch.where(norm > 0, ratios, 1.0)
    return list(ratios.unbind())
