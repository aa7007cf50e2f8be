"""The loss around images: its curvature along the path of an attack, how fast its gradient turns, and surfaces."""

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...attacks import PGD
from ...attacks.gradients import value_and_grad
from ...attacks.losses import CE
from ...core.errors import need_whole
from ...core.gate import gated
from ...core.modes import eval_mode, frozen, full_precision
from ...core.rng import PerExample, normal
from ...core.types import PerExampleLoss, TensorData, Threat, each, pixels
from ...records.results import Array
from ...records.statistics import interval

DISTANCES = (1.0, 0.1, 0.01)
"""Distances, in eps, at which the gradient is compared with the gradient at the image."""
MEANINGS = {
    "loss": "cross-entropy at the image, nats",
    "loss under attack": "cross-entropy where PGD ends",
    "gradient": "L2 length of the gradient at the image, nats per unit of L2",
    "curvature": "mean second derivative of the loss along the straight line from the image to where PGD ends",
    "curvature / gradient": "the curvature over the length of the gradient at the image",
    "nonlinearity": "by how much the loss at the end of the attack differs from the line along the gradient, nats",
    **{f"lipschitz at {d:g} eps": f"largest change of the gradient over distance, {d:g} eps away" for d in DISTANCES},
}


@dataclass(frozen=True, slots=True)
class LossLandscape:
    """Measures of the loss around images, and loss surfaces of a few images.

    Args:
        threat: The threat, as text.
        values: One value per image, `[N]`, for each measure, named as in `MEANINGS`.
        surfaces: Loss `[P, G, G]` of the first P images at `x + a u + b v`, with a along the rows and b along the
            columns; u is the steepest direction in the norm of the threat, v a random one.
        grid: Values `[G]` of a and b, in eps.
    """

    threat: str
    values: Mapping[str, Array]
    surfaces: Array
    grid: Array

    def plain(self) -> dict[str, Any]:
        """Return median and mean of each measure, with 95 % bootstrap intervals over images, and the maximum.

        Where a ratio has a small denominator on some images, the mean is unreliable.
        """
        summary = {
            name: {
                "median": estimate(found, np.median),
                "mean": estimate(found, np.mean),
                "largest": float(found.max()),
                "meaning": MEANINGS[name],
            }
            for name, found in self.values.items()
        }
        return {"threat": self.threat, "examples": len(next(iter(self.values.values()))), "figures": summary}

    def arrays(self) -> dict[str, Array]:
        return {**self.values, "surfaces": self.surfaces, "grid": self.grid}


def estimate(values: Array, statistic: Callable[..., Any]) -> dict[str, float]:
    """Return a statistic with its 95 % bootstrap interval over images.

    Args:
        values: One value per image, `[N]`.
        statistic: Function of the values, such as `np.mean`, that takes `axis`.

    Returns:
        The statistic as "value", and the ends of its interval as "low" and "high".
    """
    low, high = interval(values, statistic)
    return {"value": float(statistic(values)), "low": low, "high": high}


@gated
def measure_landscape(
    model: nn.Module,
    data: TensorData,
    threat: Threat,
    *,
    steps: int = 20,
    points: int = 10,
    pictures: int = 3,
    resolution: int = 31,
    batch_size: int = 128,
    seed: int = 0,
) -> LossLandscape:
    """Measure the cross-entropy around images, in eval mode and in float64, so that small differences count.

    The path of the attack is the line to the point where PGD ends. The curvature along it is exact, kinks included: the
    change of the slope along the line, over its length. The Lipschitz constant of the gradient is bounded from below by
    the largest quotient among `points` random directions and that of the attack, at three distances; where the loss has
    kinks, it grows without bound as the distance decreases. Directions are normally distributed, scaled to the distance
    in the norm of the threat. Points may leave [0, 1].

    Args:
        model: The model; a copy in float64 is measured.
        data: The images.
        threat: Norm and eps of the attack and of the distances.
        steps: Number of steps of PGD, each of eps / 4.
        points: Number of random directions per image, at least 1.
        pictures: Number of images, the first ones, whose loss surface is computed.
        resolution: Number of grid points per axis of a surface, from -2 to 2 eps; at least 2.
        batch_size: Number of images per batch, at least 1.
        seed: Seed of the attack and of the directions.

    Returns:
        The measures per image and the surfaces.

    Raises:
        UserError: If a number is too small.
    """
    for name, value, least in (("points", points, 1), ("resolution", resolution, 2), ("pictures", pictures, 0)):
        need_whole(name, value, least)
    wide = copy.deepcopy(model).double()
    found: dict[str, list[Tensor]] = {name: [] for name in MEANINGS}
    with full_precision(), eval_mode(wide), frozen(wide):
        for rows in torch.arange(len(data), device=data.y.device).split(batch_size):
            x, y, rng = pixels(data.x[rows]).double(), data.y[rows], PerExample(seed, rows)
            loss = CE(wide.__call__, y)
            z = PGD(threat, steps, threat.eps / 4)(loss, x, rng)
            for name, values in _measured(loss, x, z, threat, rng, points).items():
                found[name].append(values.cpu())
        grid = torch.linspace(-2, 2, resolution, dtype=torch.float64, device=data.y.device)
        few = data[: min(pictures, len(data))]
        surfaces = _surfaces(wide, few, threat, grid, seed)
    arrays = {name: torch.cat(parts).numpy() for name, parts in found.items()}
    return LossLandscape(repr(threat), arrays, surfaces.cpu().numpy(), grid.cpu().numpy())


def _measured(
    loss: PerExampleLoss, x: Tensor, z: Tensor, threat: Threat, rng: PerExample, points: int
) -> dict[str, Tensor]:
    """Return the measures of `MEANINGS`, `[B]` each."""
    here, there, delta = value_and_grad(loss, x), value_and_grad(loss, z), z - x
    length = _length(delta).clamp_min(1e-12)
    gradient, along = _length(here.grad), _inner(there.grad - here.grad, delta)
    found = {
        "loss": here.value,
        "loss under attack": there.value,
        "gradient": gradient,
        "curvature": along / length**2,
        "curvature / gradient": along / length**2 / gradient.clamp_min(1e-12),
        "nonlinearity": (there.value - here.value - _inner(here.grad, delta)).abs(),
    }
    largest = {f"lipschitz at {distance:g} eps": torch.zeros_like(gradient) for distance in DISTANCES}
    for direction in itertools.chain([delta], (normal(x, rng) for _ in range(points))):
        for distance, name in zip(DISTANCES, largest, strict=True):
            new = _quotient(loss, x, here.grad, direction, distance * threat.eps, threat)
            largest[name] = torch.maximum(largest[name], new)
    return {**found, **largest}


def _quotient(loss: PerExampleLoss, x: Tensor, grad: Tensor, direction: Tensor, size: float, threat: Threat) -> Tensor:
    """Return the change of the gradient over the L2 distance, for a step of `size` in the norm of the threat."""
    step = direction * each(size / threat.norm(direction).clamp_min(1e-12), x)
    return _length(value_and_grad(loss, x + step).grad - grad) / _length(step).clamp_min(1e-12)


def _surfaces(model: nn.Module, data: TensorData, threat: Threat, grid: Tensor, seed: int) -> Tensor:
    """Return loss surfaces `[P, G, G]`, computed one grid line for all images at a time."""
    x, y = pixels(data.x).double(), data.y
    steepest = threat.ascent(value_and_grad(CE(model.__call__, y), x).grad)
    chance = threat.ascent(normal(x, PerExample(seed, torch.arange(len(x), device=x.device))))
    steps = grid * threat.eps
    with torch.no_grad():
        lines = [
            torch.stack([CE(model.__call__, y)(x + a * steepest + b * chance).value for b in steps], 1) for a in steps
        ]
    return torch.stack(lines, 1)


def _length(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
