"""Inversion of a network: search for an image with the same representation as a given one.

Robust networks are reported to be easier to invert, although they keep less information
(https://arxiv.org/abs/2007.11259). The optimization is that of the attacks, on another loss.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...attacks import PGD, CleanStart, CoarseToFine, ParametrizedSearch
from ...attacks.losses import FeatureMatch, FeatureUnit, SumLoss, TotalVariation, residuals
from ...attacks.threats import L2
from ...core.errors import UserError
from ...core.gate import check_taken, gated
from ...core.modes import eval_mode, frozen, full_precision
from ...core.rng import PerExample, normal
from ...core.types import Attack, PerExampleLoss, TensorData, pixels
from ...core.validation import check_tensor
from ...models import FEATURES, Layers
from ...records.results import Array
from ..information.jacobian import refuse_coupling
from ..landscape.measure import estimate
from .fake_relu import not_passing, passing
from .similarity import psnr, ssim

MEANINGS = {
    "residual": "|f(x') - f(x)| / |f(x)| at the end, the mean over layers and nets",
    "psnr": "peak signal-to-noise ratio of x' against x, dB",
    "ssim": "structural similarity of x' and x",
    "agreement": "1 if another network predicts the same class for x' and x, else 0",
}
NOISE = 1 / 20


def whole_cube(shape: Sequence[int]) -> L2:
    """Return an L2 ball that holds all images of a shape around any centre, so that only [0, 1] limits an inversion."""
    return L2(math.sqrt(math.prod(shape)))


def descent(shape: Sequence[int], steps: int = 400, step_size: float = 0.5, rounds: int = 6) -> CoarseToFine:
    """Return the default search: normalised L2 gradient steps in rounds of decreasing step size, the last of 0.005.

    Runs the largest multiple of the number of rounds that does not exceed `steps`.
    """
    rounds = min(rounds, steps)
    each = steps // rounds
    return CoarseToFine(PGD(whole_cube(shape), steps=each, step_size=step_size, start=CleanStart()), rounds)


@dataclass(frozen=True, slots=True)
class Inverter:
    """Settings of an inversion: the layers to match and the search to use.

    A warning is given where no ReLU can pass gradients through, as in pre-activation networks, or where the last ReLU
    is a function or runs at several places.

    Args:
        layers: Names of the layers whose outputs are matched.
        search: The attack that searches for the image; None for `descent` with `steps`.
        steps: Number of steps of the default search, at least 1.
        fake_relu: True to let the last ReLU before the representation pass gradients through.
        smooth: Weight of the total variation of the image, a prior that is independent of the network; 0 for none.

    Raises:
        UserError: If `steps` is below 1 or `smooth` is negative.
    """

    layers: tuple[str, ...] = (FEATURES,)
    search: Attack | None = None
    steps: int = 400
    fake_relu: bool = True
    smooth: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps = {self.steps} must be at least 1")
        if self.smooth < 0:
            raise UserError(f"smooth = {self.smooth:g} is below 0: it would reward rough images")

    def matched(
        self, models: Sequence[nn.Module], targets: Sequence[tuple[Tensor, ...]], start: Tensor, rng: PerExample
    ) -> Tensor:
        """Search from `start` for images `[B, ...]` whose layers come near the `targets` of each model."""
        reads = [Layers(model, self.layers) for model in models]
        losses = [FeatureMatch(read.__call__, target) for read, target in zip(reads, targets, strict=True)]
        return self.maximize(models, losses, start, rng)

    def maximize(
        self, models: Sequence[nn.Module], losses: Sequence[PerExampleLoss], start: Tensor, rng: PerExample
    ) -> Tensor:
        """Search from `start` for images that maximise the sum of losses of these models, less the total variation."""
        search = self.search or descent(start.shape[1:], self.steps)
        parts = (*losses, *([TotalVariation(self.smooth)] if self.smooth else []))
        loss = parts[0] if len(parts) == 1 else SumLoss(parts)
        for note in self.notes(models, start[:1]):
            warnings.warn(note, stacklevel=2)
        with ExitStack() as views:
            for model in models:
                views.enter_context(frozen(model))
                if self.fake_relu:
                    views.enter_context(passing(model, start[:1], self.layers))
            return search(loss, start, rng)

    def notes(self, models: Sequence[nn.Module], few: Tensor) -> tuple[str, ...]:
        """Return, for models whose last ReLU does not pass gradients through although it should, the reasons why."""
        found = [not_passing(model, few, self.layers) for model in models] if self.fake_relu else []
        return tuple(dict.fromkeys(note for note in found if note is not None))


def beginning(like: Tensor, rng: PerExample) -> Tensor:
    """Return the start of an inversion: grey with noise, 0.5 + N(0, 1/20²), clipped to [0, 1]."""
    return (0.5 + NOISE * normal(like, rng)).clamp(0, 1)


def seen(models: Sequence[nn.Module], layers: tuple[str, ...], x: Tensor) -> list[tuple[Tensor, ...]]:
    """Return the outputs of the layers of each model for images: the targets of an inversion."""
    with torch.no_grad():
        return [Layers(model, layers)(x) for model in models]


@gated
def invert(
    models: nn.Module | Sequence[nn.Module],
    x: Tensor,
    how: Inverter = Inverter(),
    *,
    start: Tensor | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Tensor:
    """Search for images that have the same representation in the models as given images, in float32.

    Args:
        models: One model or several, which are inverted jointly; in eval mode.
        x: Images `[N, C, H, W]` whose representation is matched.
        how: Settings of the inversion.
        start: Images at which the search begins, of the shape of `x`; grey with noise by default.
        batch_size: Number of images per batch.
        seed: Seed of the noise and of the search.

    Returns:
        The images found, `[N, C, H, W]`.

    Raises:
        UserError: If a model is in training mode, cannot take the images, or does not have the layers.
    """
    nets = [models] if isinstance(models, nn.Module) else list(models)
    for model in nets:
        refuse_coupling(model)
        check_taken(model, x)
    if start is not None and start.shape != x.shape:
        raise UserError(f"start has the shape {tuple(start.shape)}, and x {tuple(x.shape)}: give one image for each")
    found = []
    with full_precision():
        for rows in torch.arange(len(x), device=x.device).split(batch_size):
            rng, part = PerExample(seed, rows), x[rows]
            begin = beginning(part, rng) if start is None else start[rows]
            found.append(how.matched(nets, seen(nets, how.layers, part), begin, rng))
    return torch.cat(found)


@gated
def invert_annealed(
    models: Sequence[nn.Module], x: Tensor, how: Inverter = Inverter(), *, batch_size: int = 64, seed: int = 0
) -> Tensor:
    """Invert one model after the other, each from the result of the one before: from the most to the least robust.

    Args:
        models: The models in the order in which they are inverted; in eval mode.
        x: Images `[N, C, H, W]` whose representation is matched.
        how: Settings of each inversion.
        batch_size: Number of images per batch.
        seed: Seed of the noise and of the searches.

    Returns:
        The images `[N, C, H, W]` found with the last model.

    Raises:
        UserError: If the search is one that cannot start from an image: `ParametrizedSearch` by "network".
    """
    if isinstance(how.search, ParametrizedSearch) and how.search.by == "network":
        raise UserError(
            'a search by "network" begins with noise and cannot continue from the image of another model: use another '
            "search for annealing"
        )
    found = None
    for model in [models] if isinstance(models, nn.Module) else models:
        found = invert(model, x, how, start=found, batch_size=batch_size, seed=seed)
    assert found is not None
    return found


@gated
def interpolate(
    model: nn.Module, a: Tensor, b: Tensor, shares: Sequence[float], how: Inverter = Inverter(), *, seed: int = 0
) -> Tensor:
    """Search for images whose layers lie between those of two images.

    Args:
        model: The model, in eval mode.
        a: Images `[N, C, H, W]` at share 0.
        b: Images `[N, C, H, W]` at share 1.
        shares: Shares of the way from the representation of `a` to that of `b`, S of them.
        how: Settings of the inversion.
        seed: Seed of the noise and of the search.

    Returns:
        The images found, `[N, S, C, H, W]`.

    Raises:
        UserError: If `a` and `b` differ in shape, or there are no shares.
    """
    refuse_coupling(model)
    check_taken(model, a)
    if a.shape != b.shape or not len(shares):
        raise UserError(
            f"images are interpolated in pairs at one share or more: there are {len(a)}, {len(b)} and {len(shares)}"
        )
    ((*one,), (*other,)) = seen([model], how.layers, a)[0], seen([model], how.layers, b)[0]
    found = []
    with full_precision():
        for share in shares:
            rng = PerExample(seed, torch.arange(len(a), device=a.device))
            targets = tuple((1 - share) * z + share * w for z, w in zip(one, other, strict=True))
            found.append(how.matched([model], [targets], beginning(a, rng), rng))
    return torch.stack(found, 1)


@gated
def visualize_features(
    model: nn.Module, coordinates: Tensor, start: Tensor, how: Inverter = Inverter(), *, seed: int = 0
) -> Tensor:
    """Search for images that maximise one number each of the output of the first of the layers.

    Args:
        model: The model, in eval mode.
        coordinates: Index `[N]` of the number to maximise for each image, in the flattened output of the layer.
        start: Images `[N, C, H, W]` at which the search begins.
        how: Settings of the inversion.
        seed: Seed of the search.

    Returns:
        The images found, `[N, C, H, W]`.

    Raises:
        UserError: If there is not one index for each image, or one is out of the range of the layer's output.
    """
    refuse_coupling(model)
    check_taken(model, start)
    check_tensor(coordinates, "coordinates")
    if coordinates.dtype != torch.int64 or coordinates.shape != start.shape[:1]:
        raise UserError(
            f"coordinates are {coordinates.dtype} {tuple(coordinates.shape)}: wanted are int64 ({len(start)},), one "
            "for each image"
        )
    how = replace(how, layers=how.layers[:1])  # further layers would change which ReLU lets gradients pass
    read = Layers(model, how.layers)
    with torch.no_grad():
        many = read.first(start[:1]).numel()
    if not bool(((coordinates >= 0) & (coordinates < many)).all()):
        raise UserError(
            f"coordinates = {coordinates.tolist()} must lie between 0 and {many - 1} for the layer {how.layers[0]!r}"
        )
    rng = PerExample(seed, torch.arange(len(start), device=start.device))
    with full_precision():
        return how.maximize([model], [FeatureUnit(read.first, coordinates)], start, rng)


@dataclass(frozen=True, slots=True)
class Inversion:
    """The images found by an inversion and measures of how near they come to the originals.

    Args:
        values: One value per image, `[N]`, for each measure, named as in `MEANINGS`.
        originals: The images `[N, C, H, W]` whose representation was matched.
        images: The images found, `[N, C, H, W]`.
        notes: For models whose last ReLU did not pass gradients through, the reasons why.
    """

    values: Mapping[str, Array]
    originals: Array
    images: Array
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return median and mean with 95 % bootstrap intervals over images, and the quartiles, of each measure."""
        return {
            name: {
                "median": estimate(each, np.median),
                "mean": estimate(each, np.mean),
                "quartiles": np.quantile(each, [0.25, 0.75]).tolist(),
                "meaning": MEANINGS[name],
            }
            for name, each in self.values.items()
        }


@gated
def measure_inversion(
    models: nn.Module | Sequence[nn.Module],
    data: TensorData,
    how: Inverter = Inverter(),
    *,
    judge: nn.Module | None = None,
    annealing: bool = False,
    batch_size: int = 64,
    seed: int = 0,
) -> Inversion:
    """Invert models on the images of a data set and measure how near the result comes.

    Args:
        models: One model or several, which are inverted jointly; put into eval mode meanwhile.
        data: The images to invert.
        how: Settings of the inversion.
        judge: Another model, which takes no part in the inversion; measures whether it predicts the same class for both
            images. None leaves this out.
        annealing: True to invert several models one after the other instead of jointly.
        batch_size: Number of images per batch.
        seed: Seed of the noise and of the search.

    Returns:
        The images found and the measures. With `annealing`, residuals are those of the last model.
    """
    nets = [models] if isinstance(models, nn.Module) else list(models)
    x = pixels(data.x)
    with ExitStack() as views:
        for net in nets:
            views.enter_context(eval_mode(net))
        make = invert_annealed if annealing else invert
        found = make(nets, x, how, batch_size=batch_size, seed=seed)
        measured = _measured(nets[-1:] if annealing else nets, how.layers, x, found, batch_size)
        notes = how.notes(nets, x[:1])
    if judge is not None:
        with eval_mode(judge), torch.no_grad():
            check_taken(judge, x)
            agreed = torch.cat([judge(part).argmax(1) for part in torch.cat([x, found]).split(batch_size)])
        measured["agreement"] = agreed[: len(x)] == agreed[len(x) :]
    return Inversion(
        {name: each.double().cpu().numpy() for name, each in measured.items()},
        x.cpu().numpy(),
        found.cpu().numpy(),
        notes,
    )


def _measured(
    nets: Sequence[nn.Module], layers: tuple[str, ...], x: Tensor, found: Tensor, batch_size: int
) -> dict[str, Tensor]:
    left = []
    for a, b in zip(x.split(batch_size), found.split(batch_size), strict=True):
        pairs = zip(seen(nets, layers, b), seen(nets, layers, a), strict=True)
        left.append(torch.stack([residuals(one, other).mean(0) for one, other in pairs]).mean(0))
    return {"residual": torch.cat(left), "psnr": psnr(x, found), "ssim": ssim(x, found)}


def searches(shape: Sequence[int], steps: int) -> dict[str, Attack]:
    """Return the searches by the names that the command line uses."""
    return {
        "descent": descent(shape, steps),
        "adam": ParametrizedSearch("pixels", steps),
        "fourier": ParametrizedSearch("fourier", steps),
        "network": ParametrizedSearch("network", steps),
    }
