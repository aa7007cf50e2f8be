"""Images rebuilt from what a net makes of them, by searching for one that it takes for the same.

Robust nets are said to be easier to invert, though they keep less information (https://arxiv.org/abs/2007.11259). The
search is that of the attacks, on another loss.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
    "agreement": "whether another net takes x' for what it takes x",
}
NOISE = 1 / 20


def whole_cube(shape: Sequence[int]) -> L2:
    """A ball that holds all images of a shape, around any: what limits an inversion is [0, 1] alone."""
    return L2(math.sqrt(math.prod(shape)))


def descent(shape: Sequence[int], steps: int = 400, step_size: float = 0.5, rounds: int = 6) -> CoarseToFine:
    """Normalised L2 steps of the attacks, in rounds of shorter and shorter ones, the last of 0.005.

    As many `steps` as can be divided by the number of rounds.
    """
    rounds = min(rounds, steps)
    each = steps // rounds
    return CoarseToFine(PGD(whole_cube(shape), steps=each, step_size=step_size, start=CleanStart()), rounds)


@dataclass(frozen=True, slots=True)
class Inverter:
    """How a net is inverted: `layers` whose outputs are matched, by `search` (left out, `descent` of `steps`).

    The last ReLU before the representation passes gradients through (`fake_relu`); a warning says where no ReLU can do
    so, as in pre-activation nets, and where it is a function or runs at several places. `smooth` weighs the total
    variation of the image, a prior that knows nothing of the net.
    """

    layers: tuple[str, ...] = (FEATURES,)
    search: Attack | None = None
    steps: int = 400
    fake_relu: bool = True
    smooth: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"an inversion takes at least one step, not {self.steps}")
        if self.smooth < 0:
            raise UserError(f"smooth = {self.smooth:g} is below 0: it would make images rough")

    def matched(
        self, models: Sequence[nn.Module], targets: Sequence[tuple[Tensor, ...]], start: Tensor, rng: PerExample
    ) -> Tensor:
        """Images `[B, ...]` whose layers come near the `targets` of each model, searched for from `start`."""
        reads = [Layers(model, self.layers) for model in models]
        losses = [FeatureMatch(read.__call__, target) for read, target in zip(reads, targets, strict=True)]
        return self.raised(models, losses, start, rng)

    def raised(
        self, models: Sequence[nn.Module], losses: Sequence[PerExampleLoss], start: Tensor, rng: PerExample
    ) -> Tensor:
        """The same for any losses of these models; the total variation is taken off their sum."""
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
        """Of which models the last ReLU stays as it is, though it should pass gradients through, and why."""
        found = [not_passing(model, few, self.layers) for model in models] if self.fake_relu else []
        return tuple(dict.fromkeys(note for note in found if note is not None))


def beginning(like: Tensor, rng: PerExample) -> Tensor:
    """Grey with noise, 0.5 + N(0, 1/20²), clipped to [0, 1]: where an inversion starts."""
    return (0.5 + NOISE * normal(like, rng)).clamp(0, 1)


def seen(models: Sequence[nn.Module], layers: tuple[str, ...], x: Tensor) -> list[tuple[Tensor, ...]]:
    """What the layers of each model make of images: the targets of an inversion."""
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
    """Images that the models (one, or several jointly) take for the images `x` `[N, C, H, W]`, in float32.

    The search begins at `start`, or at grey with noise. Raises `UserError` for models in training mode, images that
    they do not take, and layers that they do not have.
    """
    nets = [models] if isinstance(models, nn.Module) else list(models)
    for model in nets:
        refuse_coupling(model)
        check_taken(model, x)
    found = []
    with full_precision():
        for rows in torch.arange(len(x), device=x.device).split(batch_size):
            rng, part = PerExample(seed, rows), x[rows]
            begin = beginning(part, rng) if start is None else start[rows]
            found.append(how.matched(nets, seen(nets, how.layers, part), begin, rng))
    return torch.cat(found)


@gated
def annealed(
    models: Sequence[nn.Module], x: Tensor, how: Inverter = Inverter(), *, batch_size: int = 64, seed: int = 0
) -> Tensor:
    """One net after the other, each from where the one before ended: from the most robust one to the least."""
    if isinstance(how.search, ParametrizedSearch) and how.search.by == "network":
        raise UserError("what a net paints begins with noise, and cannot go on from another net: anneal another search")
    found = None
    for model in models:
        found = invert(model, x, how, start=found, batch_size=batch_size, seed=seed)
    assert found is not None
    return found


@gated
def interpolated(
    model: nn.Module, a: Tensor, b: Tensor, shares: Sequence[float], how: Inverter = Inverter(), *, seed: int = 0
) -> Tensor:
    """Images `[N, S, ...]` whose layers lie between those of `a` and of `b`, at each share of the way."""
    refuse_coupling(model)
    check_taken(model, a)
    ((*one,), (*other,)) = seen([model], how.layers, a)[0], seen([model], how.layers, b)[0]
    found = []
    with full_precision():
        for share in shares:
            rng = PerExample(seed, torch.arange(len(a), device=a.device))
            targets = tuple((1 - share) * z + share * w for z, w in zip(one, other, strict=True))
            found.append(how.matched([model], [targets], beginning(a, rng), rng))
    return torch.stack(found, 1)


@gated
def visualised(
    model: nn.Module, coordinates: Tensor, start: Tensor, how: Inverter = Inverter(), *, seed: int = 0
) -> Tensor:
    """Images, from `start` `[N, ...]`, that raise one number each of the first of the layers, numbers `[N]`."""
    refuse_coupling(model)
    check_taken(model, start)
    read = Layers(model, how.layers)
    with torch.no_grad():
        many = read.first(start[:1]).numel()
    if not bool(((coordinates >= 0) & (coordinates < many)).all()):
        raise UserError(f"the layer {how.layers[0]!r} gives numbers 0 to {many - 1}, not {coordinates.tolist()}")
    rng = PerExample(seed, torch.arange(len(start), device=start.device))
    with full_precision():
        return how.raised([model], [FeatureUnit(read.first, coordinates)], start, rng)


@dataclass(frozen=True, slots=True)
class Inversion:
    """What came of it: `values[name]` `[N]`, named as in `MEANINGS`; the originals, and the images `[N, C, H, W]`.

    `notes` say of which nets the last ReLU did not pass gradients through, and why.
    """

    values: Mapping[str, Array]
    originals: Array
    images: Array
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Median and mean with 95 % bootstrap intervals over images, and the quartiles."""
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
    """Inverts the models on the images of `data` and measures how near that comes; several jointly, or one after the
    other with `annealing`.

    `judge`, a net that took no part, says whether it takes both for the same class.
    """
    nets = [models] if isinstance(models, nn.Module) else list(models)
    x = pixels(data.x)
    with ExitStack() as views:
        for net in nets:
            views.enter_context(eval_mode(net))
        make = annealed if annealing else invert
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
    """The ways to search, by the names that the shell knows them by."""
    return {
        "descent": descent(shape, steps),
        "adam": ParametrizedSearch("pixels", steps),
        "fourier": ParametrizedSearch("fourier", steps),
        "network": ParametrizedSearch("network", steps),
    }
