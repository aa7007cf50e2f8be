"""SODEF: a stable neural ODE behind the features of a wide residual network (https://arxiv.org/abs/2110.12976)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.optional import library
from ..core.types import Classifier
from .deepmind import dm_wide_resnet
from .robustbench import fit_names, our_names


class ODE(nn.Module):
    """Solves dz/dt = sin(-(W z + b)) from z(0) = x to time 5, with the adaptive solver of torchdiffeq (dopri5).

    The solver chooses its steps for a batch as a whole, so an output depends a little, within the tolerance of 1e-3, on
    what else is in the batch. The gradient is that of the steps which were taken.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, features)
        self.solve: Any = library("torchdiffeq", "ode", "this model").odeint

    def forward(self, x: Tensor) -> Tensor:
        times = torch.tensor([0.0, 5.0], device=x.device, dtype=x.dtype)
        return self.solve(lambda _, z: torch.sin(-self.layer(z)), x, times, rtol=1e-3, atol=1e-3)[1]


def sodef(
    depth: int,
    width: int,
    num_classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    normalize: nn.Module | None = None,
) -> Classifier:
    """A `dm_wide_resnet`, an orthogonal map of its features to 64, and the ODE; the head reads where that ends."""
    features = dm_wide_resnet(depth, width, shape=shape).body
    body = nn.Sequential(features, nn.Linear(64 * width, 64, bias=False), ODE(64))
    return Classifier(body, nn.Linear(64, num_classes), normalize)


def fill_sodef(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the published weights, whose orthogonal map is written as a base and a skew-symmetric matrix, in place."""
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    features = our_names({name.removeprefix("0."): t for name, t in state.items() if name.startswith("0.")})
    named = {name.replace("body.", "body.0.", 1): tensor for name, tensor in features.items()}
    lower, base = (state[f"1.fc0.linear.parametrizations.weight.{name}"] for name in ("original", "0.base"))
    named["body.1.weight"] = _orthogonal(base, lower).T
    for last in ("weight", "bias"):
        named[f"body.2.layer.{last}"] = state[f"2.0.odefunc.fc1._layer.{last}"]
        named[f"head.{last}"] = state[f"2.1.fc0.{last}"]
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("normalize.")}
    fit_names(model, {**own, **named})


def _orthogonal(base: Tensor, lower: Tensor) -> Tensor:
    """Return the first columns of base exp(A - A'), where A has the columns of `lower` below the diagonal."""
    square = nn.functional.pad(lower, (0, base.shape[0] - lower.shape[1])).tril(-1)
    return (base @ torch.linalg.matrix_exp(square - square.T))[:, : lower.shape[1]]
