"""Complexity measures: numbers of a network that are proposed to explain how well its robustness generalises.

Each measure is a function with its formula and source. W are the parameters `weight` of two dimensions or more of all
layers; a convolution counts as the matrix `[out, in x height x width]` of its kernel; biases and batch norm are not
counted. z are the logits.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from ...attacks import PGD, RandomStart
from ...attacks.gradients import value_and_grad
from ...attacks.losses import CE, Margin
from ...attacks.threats import L2
from ...core.errors import UserError
from ...core.gate import gated
from ...core.modes import eval_mode, frozen
from ...core.rng import PerExample
from ...core.types import Classifier, Forward, LossOutput, PerExampleLoss, TensorData, Threat, each, pixels


class NotDefined(UserError):  # noqa: N818
    """Raised when a measure is not defined for a network."""


def _computes_weight(layer: nn.Module) -> bool:
    """Return True if the weight of a layer is computed from other parameters, as by weight norm, new or old."""
    old = isinstance(getattr(layer, "weight", None), Tensor) and "weight" not in layer._parameters
    return parametrize.is_parametrized(layer) or (old and "weight" not in layer._buffers)


def _weights(model: nn.Module) -> list[nn.Parameter]:
    computed = [name for name, layer in model.named_modules() if _computes_weight(layer)]
    if computed:
        raise NotDefined(f"not defined where weights are computed from others, as in {computed[0]}")
    found = [p for name, p in model.named_parameters() if p.ndim > 1 and name.endswith("weight")]
    if not found:
        raise NotDefined(f"not defined for {type(model).__name__}, which has no weights of two dimensions")
    return found


def matrices(model: nn.Module) -> list[Tensor]:
    """Return the weights W as matrices."""
    return [p.detach().flatten(1) for p in _weights(model)]


def weight_norm(model: nn.Module) -> float:
    """Return Σ |W|_F² (https://arxiv.org/abs/1503.00036)."""
    return sum(float(w.square().sum()) for w in matrices(model))


def distance(model: nn.Module, initial: nn.Module) -> float:
    """Return Σ |W - W₀|_F², with W₀ the weights before training (https://arxiv.org/abs/1901.01672)."""
    now, before = matrices(model), matrices(initial)
    if [w.shape for w in now] != [w.shape for w in before]:
        raise UserError("the initial model has weights of other shapes: give the model as it was before training")
    return sum(float((w - w0).square().sum()) for w, w0 in zip(now, before, strict=True))


def log_spectral(model: nn.Module) -> float:
    """Return the logarithm of the spectral complexity without the margin, log(Π |W|₂² x Σ |W|_F² / |W|₂²).

    Source: https://arxiv.org/abs/1707.09564.
    """
    found = matrices(model)
    sigmas = [float(torch.linalg.matrix_norm(w.double(), 2)) for w in found]
    if min(sigmas) == 0:
        raise NotDefined("not defined for a network with a weight matrix of zeros")
    ratios = [float(w.square().sum()) / s**2 for w, s in zip(found, sigmas, strict=True)]
    return 2 * sum(map(math.log, sigmas)) + math.log(sum(ratios))


_PATHS = frozenset(
    [
        *("convolution", "addmm", "mm", "mean", "sum", "add", "add_", "cat", "constant_pad_nd", "relu", "relu_"),
        *("avg_pool2d", "_adaptive_avg_pool2d", "max_pool2d_with_indices"),
        *("view", "_unsafe_view", "reshape", "flatten", "t", "permute", "transpose", "expand", "slice", "squeeze"),
        *("unsqueeze", "clone", "detach", "alias"),
    ]
)


class _PathsOnly(TorchDispatchMode):
    """Refuses operations for which the output is not a sum over paths of products of weights."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in _PATHS:
            raise NotDefined(
                f"not defined for a network with the operation {name}: paths go through ReLU and linear maps only"
            )
        return func(*args, **(kwargs or {}))


def path_norm(model: nn.Module, shape: tuple[int, int, int]) -> float:
    """Return sqrt(Σ over paths of Π w²), the sum of the outputs for an image of ones with squared weights.

    Normalisation and batch norm are left out, and biases count as paths that begin at them. Raises `NotDefined` for
    networks with operations other than linear maps, ReLU and pooling, for example attention. Source:
    https://arxiv.org/abs/1706.08947.
    """
    squared = copy.deepcopy(model).double().eval()
    if isinstance(squared, Classifier):
        squared.normalize = nn.Identity()
    for parent in list(squared.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, nn.Identity())
    with torch.no_grad():
        for p in squared.parameters():
            p.square_()
        ones = torch.ones(1, *shape, dtype=torch.float64, device=next(squared.parameters()).device)
        with _PathsOnly():
            out = squared(ones)
    total = float(out.sum())
    if not 0 < total < math.inf:
        raise NotDefined(f"not defined where the sum over paths is {total:g}")
    return math.sqrt(total)


def margin(model: nn.Module, x: Tensor, y: Tensor, quantile: float = 0.1) -> float:
    """Return the `quantile`, by default the 10th percentile, of z_y - max z_j, j ≠ y, at `x` `[B, ...]`.

    The caller passes adversarial examples as `x`.
    """
    with torch.no_grad():
        return float(torch.quantile(-Margin(model, y)(x).value.double(), quantile))


def thickness(
    model: nn.Module,
    x: Tensor,
    rng: PerExample,
    eps: float = 1.0,
    steps: int = 10,
    alpha: float = 0.0,
    beta: float = 0.75,
) -> float:
    """Return the boundary thickness, E[ |x_r - x_s| x share of the segment where alpha < p_i - p_j < beta ].

    x_r are the images, of predicted class i; x_s are the points where PGD in an L2 ball of `eps` ends, of predicted
    class j. Images whose predicted class does not change are left out (https://arxiv.org/abs/2007.05086, alpha 0, beta
    0.75). Raises `NotDefined` if no class changes.
    """
    with torch.no_grad():
        i = model(x).argmax(1)
    threat = L2(eps)
    z = PGD(threat, steps, threat.eps / 4)(CE(model.__call__, i), x, rng)
    with torch.no_grad():
        j = model(z).argmax(1)
        changed = (i != j).nonzero()[:, 0]
        if not len(changed):
            raise NotDefined(f"not defined if no image changes its class within an L2 ball of {eps:g}")
        x, z, i, j = x[changed], z[changed], i[changed], j[changed]
        within = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        points = (torch.arange(_POINTS, device=x.device, dtype=x.dtype) + 0.5) / _POINTS
        for t in points:
            p = model(t * x + (1 - t) * z).softmax(1)
            gap = p.gather(1, i[:, None]) - p.gather(1, j[:, None])
            within += ((gap > alpha) & (gap < beta))[:, 0]
        return float(((x - z).flatten(1).norm(dim=1) * within / _POINTS).mean())


_POINTS = 128


@dataclass(frozen=True, slots=True)
class _Quotient:
    """The loss |z(x) - z(x')|₁ / |x - x'|, in the norm of a threat."""

    logits: Forward
    origin: Tensor
    known: Tensor
    threat: Threat

    def __call__(self, x: Tensor) -> LossOutput:
        apart = self.threat.norm(x - self.origin).clamp_min(1e-12)
        return LossOutput((self.logits(x) - self.known).abs().sum(1) / apart)

    def __getitem__(self, rows: Tensor) -> PerExampleLoss:
        return _Quotient(self.logits, self.origin[rows], self.known[rows], self.threat)


def lipschitz(model: nn.Module, x: Tensor, threat: Threat, rng: PerExample, steps: int = 10) -> float:
    """Return the mean over images of max |z(x) - z(x')|₁ / |x - x'| within the threat, maximised by PGD.

    Source: https://arxiv.org/abs/2003.02460.
    """
    with torch.no_grad():
        loss = _Quotient(model.__call__, x, model(x), threat)
    z = PGD(threat, steps, threat.eps / 4, RandomStart())(loss, x, rng)
    with torch.no_grad():
        return float(loss(z).value.mean())


def sharpness(model: nn.Module, x: Tensor, y: Tensor, gamma: float = 0.01, steps: int = 5) -> float:
    """Return max L(w + v) - L(w) over |v| <= gamma |w| in each layer, approximated by gradient steps.

    L is the mean cross-entropy at `x`, which does not change with the weights; the caller passes adversarial examples
    (https://arxiv.org/abs/2004.05884).
    """
    moved = copy.deepcopy(model)
    weights = _weights(moved.requires_grad_(True))
    origin = [w.detach().clone() for w in weights]
    with torch.no_grad():
        before = best = float(F.cross_entropy(moved(x), y))
    for _ in range(steps):
        grads = torch.autograd.grad(F.cross_entropy(moved(x), y), weights, allow_unused=True)
        with torch.no_grad():
            for w, g, w0 in zip(weights, grads, origin, strict=True):
                if g is None:
                    continue
                most = gamma * w0.norm()
                v = w - w0 + 2.5 / steps * most * g / g.norm().clamp_min(1e-20)
                w.copy_(w0 + v * (most / v.norm().clamp_min(1e-20)).clamp(max=1.0))
            best = max(best, float(F.cross_entropy(moved(x), y)))
    return best - before


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, p: float = 2.0) -> float:
    """Return the mean of |∇ₓ CE| at the images, in the norm `p` (https://arxiv.org/abs/1802.08760)."""
    return float(value_and_grad(CE(model.__call__, y), x).grad.flatten(1).norm(p=p, dim=1).mean())


def curvature(model: nn.Module, x: Tensor, y: Tensor, h: float = 0.01) -> float:
    """Return the mean of |∇CE(x + h g) - ∇CE(x)| / h, with g the normalised gradient at x.

    Source: https://arxiv.org/abs/1811.09716.
    """
    loss = CE(model.__call__, y)
    here = value_and_grad(loss, x).grad
    g = here / each(here.flatten(1).norm(dim=1).clamp_min(1e-20), x)
    return float(((value_and_grad(loss, x + h * g).grad - here).flatten(1).norm(dim=1) / h).mean())


@gated
def complexity_measures(
    model: nn.Module,
    initial: nn.Module | None,
    data: TensorData,
    threat: Threat,
    *,
    steps: int = 10,
    thick: float | None = None,
    seed: int = 0,
) -> Mapping[str, float | str]:
    """Compute all complexity measures on training images, all at once, in eval mode and float64.

    Args:
        model: The trained model.
        initial: The model before training; None if it is not known, and the distance from it is not measured.
        data: Training images.
        threat: The threat of the adversarial examples.
        steps: Number of steps of PGD.
        thick: Radius of the L2 ball for the boundary thickness; by default a tenth of the square root of the number of
            dimensions.
        seed: Seed of the random numbers.

    Returns:
        Each measure by name; for a measure that is not defined for the model, the reason instead of a number.
    """
    wide = copy.deepcopy(model).double()
    x, y = pixels(data.x).double(), data.y
    rng = PerExample(seed, torch.arange(len(x), device=x.device))
    ball = 0.1 * math.sqrt(x[0].numel()) if thick is None else thick
    with eval_mode(wide):
        with frozen(wide):
            z = PGD(threat, steps, threat.eps / 4)(CE(wide.__call__, y), x, rng)
        found: dict[str, float | str] = {}

        def measure(name: str, value: Callable[[], float]) -> None:
            try:
                found[name] = value()
            except NotDefined as error:
                found[name] = str(error)

        measure("weight norm", lambda: weight_norm(wide))
        measure("distance from initialisation", lambda: _distance_from(initial, wide))
        measure("log spectral complexity", lambda: log_spectral(wide))
        measure("log path norm", lambda: math.log(path_norm(wide, data.shape)))
        gamma = margin(wide, z, y)
        measure("adversarial margin", lambda: gamma)
        measure("1 / margin²", lambda: 1 / _positive(gamma) ** 2)
        measure("log spectral complexity / margin²", lambda: log_spectral(wide) - 2 * math.log(_positive(gamma)))
        measure("weight norm / margin²", lambda: weight_norm(wide) / _positive(gamma) ** 2)
        measure("path norm / margin", lambda: path_norm(wide, data.shape) / _positive(gamma))
        with frozen(wide):
            measure("boundary thickness", lambda: thickness(wide, x, rng, ball, steps))
            measure("local Lipschitz constant", lambda: lipschitz(wide, x, threat, rng, steps))
            measure("input gradient, L1", lambda: input_gradient(wide, x, y, 1.0))
            measure("input gradient, L2", lambda: input_gradient(wide, x, y))
            measure("input curvature", lambda: curvature(wide, x, y))
        measure("weight sharpness", lambda: sharpness(wide, z, y))
    return found


def _distance_from(initial: nn.Module | None, model: nn.Module) -> float:
    if initial is None:
        raise NotDefined("not measured, for the weights before training are not known")
    return distance(model, copy.deepcopy(initial).double())


def _positive(gamma: float) -> float:
    """Return the margin; refuse one that is not positive, because its square would hide misclassified examples."""
    if gamma <= 0:
        raise NotDefined("not defined for a margin that is not above 0")
    return gamma
