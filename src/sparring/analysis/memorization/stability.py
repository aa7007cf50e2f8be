"""Stability of the gradient of a training loss when the weights move, which decides whether training converges."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ...attacks import PGD, Benign, GaussianStart
from ...core.errors import UserError, need_whole
from ...core.gate import gated
from ...core.modes import eval_mode, frozen, full_precision
from ...core.rng import PerExample, make_rng, normal
from ...core.types import Batch, Context, ForwardCache, Progress, TensorData, Threat, at, pixels
from ...objectives.cross_entropy import CrossEntropy
from ...objectives.trades import TRADES
from ...records.results import Array
from ...training.engine import Method

LENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3)
DIRECTIONS = {"up": "+ gradient / |gradient|", "down": "- gradient / |gradient|"}
"""Directions of the move. https://arxiv.org/abs/2106.01606 may mean either; a step of training is "down"."""


def standard_methods(threat: Threat, steps: int = 10, beta: float = 6.0) -> dict[str, Method]:
    """Return the training methods that the paper compares: clean cross-entropy, PGD-AT and TRADES.

    Args:
        threat: The threat of the attacks.
        steps: Number of steps of PGD, each of eps / 4.
        beta: Weight of the divergence in TRADES.

    Returns:
        Each method by name, with the attack of its training.
    """
    return {
        "clean": Method(Benign(), CrossEntropy()),
        "PGD-AT": Method(PGD(threat, steps, threat.eps / 4), CrossEntropy()),
        "TRADES": Method(PGD(threat, steps, threat.eps / 4, GaussianStart()), TRADES(beta)),
    }


@dataclass(frozen=True, slots=True)
class Stability:
    """Stability of the gradient of each loss J when the weights θ move by λ d, d = ∇J(θ) / |∇J(θ)|.

    Args:
        lengths: L2 lengths λ of the move, `[K]`.
        weights: |θ|.
        value: J(θ) by the name of the loss.
        norm: |∇J(θ)| by the name of the loss.
        change: |∇J(θ ± λ d) - ∇J(θ)| by (loss, direction), `[K]`.
        cosine: Cosine between these two gradients by (loss, direction), `[K]`.
    """

    lengths: Array
    weights: float
    value: Mapping[str, float]
    norm: Mapping[str, float]
    change: Mapping[tuple[str, str], Array]
    cosine: Mapping[tuple[str, str], Array]

    def plain(self) -> dict[str, Any]:
        return {
            "lengths": self.lengths.tolist(),
            "weights": self.weights,
            "losses": {
                name: {
                    "value": self.value[name],
                    "gradient": self.norm[name],
                    **{
                        f"weights moved by length x ({DIRECTIONS[way]})": {
                            "change": self.change[name, way].tolist(),
                            "cosine": self.cosine[name, way].tolist(),
                        }
                        for way in DIRECTIONS
                    },
                }
                for name in self.value
            },
        }


@gated
def measure_gradient_stability(
    model: nn.Module,
    data: TensorData,
    methods: Mapping[str, Method],
    *,
    lengths: Sequence[float] = LENGTHS,
    batch_size: int = 128,
    seed: int = 0,
) -> Stability:
    """Measure how the gradient of each method's loss changes when the weights move along it and against it.

    The loss is averaged over `data`, with a copy of the model in eval mode and in float64. Adversarial examples are
    crafted anew at the moved weights, from the same random numbers. Schedules are evaluated at the start of training,
    and the memory of a method holds only these weights.

    Args:
        model: The model.
        data: The images on which losses are averaged.
        methods: Training methods by name, as from `standard_methods`.
        lengths: L2 lengths of the move, all above 0.
        batch_size: Number of images per batch.
        seed: Seed of the attacks.

    Returns:
        Change and cosine of the gradients by (loss, direction), over `lengths`.

    Raises:
        UserError: If there are no lengths, or one is not above 0.
    """
    if not lengths or min(lengths) <= 0:
        raise UserError(f"lengths = {list(lengths)} must hold at least one number, and all must be above 0")
    wide = copy.deepcopy(model).double()
    value, norm = {}, {}
    change: dict[tuple[str, str], Array] = {}
    cosine: dict[tuple[str, str], Array] = {}
    with full_precision(), eval_mode(wide):
        origin = parameters_to_vector(wide.parameters()).detach().clone()
        for name, method in methods.items():
            value[name], here = gradient(method, wide, data, batch_size, seed)
            norm[name] = float(here.norm())
            for way, sign in (("up", 1.0), ("down", -1.0)):
                there = []
                for length in lengths:
                    vector_to_parameters(
                        origin + sign * length * here / here.norm().clamp_min(1e-300), wide.parameters()
                    )
                    there.append(gradient(method, wide, data, batch_size, seed)[1])
                change[name, way] = np.array([float((g - here).norm()) for g in there])
                cosine[name, way] = np.array([float(F.cosine_similarity(g, here, dim=0)) for g in there])
            vector_to_parameters(origin, wide.parameters())
    return Stability(np.array(lengths), float(origin.norm()), value, norm, change, cosine)


def gradient(method: Method, model: nn.Module, data: TensorData, batch_size: int, seed: int) -> tuple[float, Tensor]:
    """Return the loss of a method and its gradient with respect to the weights as one vector, averaged over `data`."""
    model.zero_grad(set_to_none=True)
    value, dtype = 0.0, next(model.parameters()).dtype
    for index in torch.arange(len(data), device=data.y.device).split(batch_size):
        batch = Batch(pixels(data.x[index]).to(dtype), data.y[index], index)
        loss = _loss(method, model, batch, method.init(data), PerExample(seed, index)) * (len(index) / len(data))
        loss.backward()
        value += float(loss.detach())
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return value, parameters_to_vector(found)


def _loss(method: Method, model: nn.Module, batch: Batch, memory: nn.Module, rng: PerExample) -> Tensor:
    """Return the loss that the update minimises, at the points that the attack finds."""
    ctx = Context(ForwardCache(model), batch, memory, Progress(0, 1, 1))
    with frozen(model):
        with torch.no_grad():
            method.objective.observe(ctx)
            ctx = replace(ctx, start=method.objective.start(ctx))
        attack = method.objective.attacking(ctx, at(method.attack, ctx.progress))
        x_adv = attack(method.objective.inner(ctx.on(model)), batch.x, rng)
    return torch.stack(list(method.objective.outer(ctx.on(model), x_adv).values())).sum()


@dataclass(frozen=True, slots=True)
class Bound:
    """Theorem 1 of https://arxiv.org/abs/2106.01606 for two weights: `jump` <= `clean` + 2 eps K.

    `jump` is the change of the adversarial gradient, `clean` the change of the clean gradient, and K bounds how fast
    the gradient with respect to the weights changes with the image. The last term remains when the two weights
    coincide.
    """

    jump: float
    clean: float
    lipschitz: float
    eps: float

    @property
    def most(self) -> float:
        return self.clean + 2 * self.eps * self.lipschitz


@gated
def robustness_bound(
    model: nn.Module,
    other: nn.Module,
    data: TensorData,
    threat: Threat,
    *,
    steps: int = 10,
    points: int = 20,
    seed: int = 0,
) -> Bound:
    """Compute both sides of the bound on the change of the adversarial gradient for two models, on small data.

    K is the largest quotient |∇CE(x') - ∇CE(x)| / |x' - x|, in the norm of the threat, at random points around each
    image, for both weights: a lower bound of the true K. Points that the attacks find are not among them.

    Args:
        model: The first model.
        other: The second model, of the same architecture.
        data: The images, in one batch.
        threat: The threat.
        steps: Number of steps of PGD.
        points: Number of random points per image, half of them at the largest distance.
        seed: Seed of the attacks and of the points.

    Returns:
        Both sides of the inequality: `jump` on the left, `most` on the right.

    Raises:
        UserError: If a number is out of its range: without points there is no K.

    References:
        Theorem 1: https://arxiv.org/abs/2106.01606.
    """
    need_whole("points", points)
    methods, quotients = standard_methods(threat, steps), [0.0]
    clean: list[Tensor] = []
    adversarial: list[Tensor] = []
    for net in (model, other):
        wide = copy.deepcopy(net).double()
        with full_precision(), eval_mode(wide):
            clean.append(gradient(methods["clean"], wide, data, len(data), seed)[1])
            adversarial.append(gradient(methods["PGD-AT"], wide, data, len(data), seed)[1])
            for row in range(len(data)):
                one = data[row : row + 1]
                x, y, rng = pixels(one.x).double(), one.y, make_rng(seed + row, one.y.device)
                near = [threat.sample(x, rng) for _ in range(points - points // 2)]
                far = [threat.ascent(normal(x, rng)) for _ in range(points // 2)]
                near += [threat.project(x + threat.eps * way, x) for way in far]
                here = _by_weights(wide, x, y)
                for z in near:
                    apart = float(threat.norm(z - x))
                    quotients.append(float((_by_weights(wide, z, y) - here).norm()) / max(apart, 1e-12))
    jump = float((adversarial[0] - adversarial[1]).norm())
    return Bound(jump, float((clean[0] - clean[1]).norm()), max(quotients), threat.eps)


def _by_weights(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    parameters = list(model.parameters())
    grads = torch.autograd.grad(F.cross_entropy(model(x), y), parameters, allow_unused=True)
    found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
    return parameters_to_vector(found)
