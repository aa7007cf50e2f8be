"""The effective information: what a representation keeps of an image when its weights are noisy."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.gate import gated
from ...core.modes import full_precision
from ...core.rng import make_rng, normal
from ...core.types import TensorData, pixels
from ...models.layers import FEATURES, Layers
from ...records.results import Array
from . import weights
from .jacobian import refuse_coupling


@dataclass(frozen=True, slots=True)
class Effective:
    """The effective information for each image, in nats.

    `by_volume` lacks the constant H(x) and is None where J has too few rows. `rise` is the mean KL divergence between
    the predictions with and without the noise, on the images that the weights are measured on.
    """

    gaussian: Array
    by_volume: Array | None
    rise: float


@gated
def effective_information(
    model: nn.Module,
    training: TensorData,
    test: TensorData,
    *,
    layer: str = FEATURES,
    tolerated: float = 0.1,
    draws: int | None = None,
    pixels_of: TensorData | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> Effective:
    """Measure how much a representation keeps of an image when its weights are as noisy as the task tolerates.

    The noise on the weights before `layer` is N(0, S), with S = b (F + b / w²)⁻¹ for each weight. It minimises
    1/2 tr(F S) + b KL(N(0, S), N(0, w²)), with F the diagonal of the Fisher information on `training` and
    b = 2 x `tolerated` / number of weights. To second order, predictions then change by at most `tolerated` nats;
    `rise` is their measured change, because the second order is an approximation. The noise of a weight is never
    larger than the weight, and no scale of a weight or of the representation changes the result.

    Around an image, the representation is then N(f(x), M), M = J_w S J_wᵀ, and its Fisher information about the image
    is F_z = Jᵀ M⁺ J.

    `gaussian` is 1/2 log det(1 + C F_z), C the covariance of the pixels: the mutual information of a linear channel
    with that noise and a Gaussian image. It is exact in that case and otherwise a linearisation at each image.
    `by_volume` is the formula of the paper, H(x) - 1/2 log((2 pi e)^d / |F_z|), without H(x), which is the same for all
    networks. It needs small noise and a Jacobian of rank d, the number of pixels; otherwise |F_z| is 0 and it is not
    defined.

    Args:
        model: The network, in eval mode.
        training: Images on which the Fisher information of the weights is measured.
        test: Images whose effective information is computed.
        layer: Name of the layer whose output is the representation.
        tolerated: Change of the predictions, in nats, that the noise may cause to second order.
        draws: Number of labels per image that are drawn from the prediction for F; None for all classes, exactly.
        pixels_of: Images whose pixels give the covariance C; `training` by default.
        batch_size: Number of images per batch for the information of the weights.
        seed: Seed of the noise with which `rise` is measured.

    Returns:
        `gaussian` and `by_volume` for each test image, and `rise`, in nats.

    Raises:
        UserError: If no weights lie before the layer, or the Jacobian with respect to the weights takes more than
            `MOST` backward passes per image. Within that limit it is computed in blocks of rows that fit into
            `weights.BUDGET`.

    References:
        Information of the representation about the image: https://arxiv.org/abs/1905.12213.
    """
    refuse_coupling(model)
    read = Layers(model, (layer,))
    x = pixels(test.x)
    with weights.thawed(model):
        named = _before(model, read, x[:1])
        _check_cost(read, x[:1], named)
        fisher = weights.diagonal(model, training, batch_size, draws=draws, seed=seed)
        b = 2 * tolerated / sum(p.numel() for p in named.values())
        noise = [b * w.square() / (fisher[name] * w.square() + b) for name, p in named.items() for w in (p.detach(),)]
        centred = pixels((training if pixels_of is None else pixels_of).x).flatten(1)
        centred = centred - centred.mean(0)
        gaussian, volume = [], []
        with full_precision():
            for image in x.split(1):
                jacobian, m = _jacobian_and_noise(read, image, list(named.values()), noise)
                whitened = _whitened(jacobian, m)
                gaussian.append(channel(whitened, centred))
                volume.append(_by_volume(whitened))
            rise = _rise(model, training, list(named.values()), noise, seed)
    found = np.array([each for each in volume if each is not None])
    return Effective(np.array(gaussian), found if len(found) == len(volume) else None, rise)


@torch.no_grad()
def _rise(
    model: nn.Module, data: TensorData, parameters: list[nn.Parameter], noise: list[Tensor], seed: int, draws: int = 8
) -> float:
    """Return the mean KL divergence over images and draws of the noise; the weights are restored."""
    x, rng = pixels(data.x), make_rng(seed, parameters[0].device)
    clean, before = model(x).log_softmax(1), [p.clone() for p in parameters]
    found = []
    try:
        for _ in range(draws):
            for p, was, scale in zip(parameters, before, noise, strict=True):
                p.copy_(was + scale.sqrt() * normal(was, rng))
            found.append(F.kl_div(model(x).log_softmax(1), clean, log_target=True, reduction="batchmean"))
    finally:
        for p, was in zip(parameters, before, strict=True):
            p.copy_(was)
    return float(torch.stack(found).mean())


def _before(model: nn.Module, read: Layers, x: Tensor) -> dict[str, nn.Parameter]:
    """Return the parameters that the representation depends on."""
    named = dict(model.named_parameters())
    with torch.enable_grad():
        z = read.first(x).sum()
        grads = torch.autograd.grad(z, list(named.values()), allow_unused=True) if z.requires_grad else ()
    found = {name: p for (name, p), g in zip(named.items(), grads, strict=False) if g is not None}
    if not found:
        raise UserError(f"no weights lie before the layer {read.names[0]!r}, so no weight noise can reach it")
    return found


MOST = 20_000


def _block(outputs: int, parameters: list[nn.Parameter]) -> int:
    """Return the number of rows to compute at a time, such that two blocks in float64 fit into the budget."""
    return max(1, min(outputs, weights.BUDGET // (16 * sum(p.numel() for p in parameters))))


def _check_cost(read: Layers, x: Tensor, named: dict[str, nn.Parameter]) -> None:
    with torch.no_grad():
        k = read.first(x).numel()
    blocks = -(-k // _block(k, list(named.values())))
    passes = k * (blocks + 1) // 2
    if passes > MOST:
        raise UserError(
            f"the effective information of {k} numbers behind {sum(p.numel() for p in named.values()):,} weights takes "
            f"{passes:,} backward passes an image: leave it out with jacobian_examples=0 (--jacobian-examples 0), or "
            "name a smaller layer"
        )


def _jacobian_and_noise(
    read: Layers, image: Tensor, parameters: list[nn.Parameter], noise: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return J with respect to the image `[k, d]`, and the covariance M `[k, k]` from the weight noise; in float64."""
    image = image.detach().requires_grad_()
    with torch.enable_grad():
        z = read.first(image).flatten()
    k, scales = len(z), [s.sqrt() for s in noise]
    blocks = list(torch.arange(k, device=z.device).split(_block(k, parameters)))
    m = z.new_zeros(k, k, dtype=torch.float64)
    jacobian = z.new_zeros(k, image.numel(), dtype=torch.float64)

    def block(chosen: Tensor) -> tuple[Tensor, Tensor]:
        units = torch.zeros(len(chosen), k, device=z.device)
        units[torch.arange(len(chosen)), chosen] = 1
        found = _rows(z, [image, *parameters], units)
        by_weights = torch.cat([g.flatten(1) * s.flatten() for g, s in zip(found[1:], scales, strict=True)], 1)
        return found[0].flatten(1).double(), by_weights.double()

    for i, one in enumerate(blocks):
        jacobian[one], mine = block(one)
        for j in range(i, len(blocks)):
            other = mine if j == i else block(blocks[j])[1]
            part = mine @ other.T
            m[one[:, None], blocks[j]] = part
            m[blocks[j][:, None], one] = part.T
    return jacobian, m


def _rows(z: Tensor, inputs: list[Tensor], units: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of `units` `[R, k]` times z with respect to each input, `[R, ...]`."""
    zeros = [torch.zeros_like(each) for each in inputs]

    def once(unit: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(z, inputs, unit, retain_graph=True, allow_unused=True)
        return [zero if g is None else g for g, zero in zip(found, zeros, strict=True)]

    return tuple(torch.stack(parts) for parts in zip(*(once(unit) for unit in units), strict=True))


def _whitened(jacobian: Tensor, m: Tensor) -> Tensor:
    """Return A `[r, d]` with Aᵀ A = Jᵀ M⁺ J, without the directions that have neither noise nor signal.

    Where there is no noise there is no signal either: an inactive unit has both derivatives 0.
    """
    scale, directions = torch.linalg.eigh(m)
    kept = scale > _RELATIVE * scale[-1:].clamp_min(1e-300)
    return (directions[:, kept].T @ jacobian) / scale[kept].sqrt()[:, None]


_RELATIVE = 1e-10  # relative to the largest: products are in float64, their factors are accurate to 1e-7


def channel(whitened: Tensor, centred: Tensor) -> float:
    """Return the mutual information 1/2 log det(1 + A C Aᵀ), in nats, of a linear channel A `[r, d]` with unit noise.

    C = Xᵀ X / N is the covariance of the centred images X `[N, d]`.
    """
    if not len(whitened):
        return 0.0
    signal = whitened @ centred.double().T
    gram = signal @ signal.T / len(centred)
    return 0.5 * float(torch.linalg.slogdet(torch.eye(len(gram), dtype=gram.dtype, device=gram.device) + gram)[1])


def _by_volume(whitened: Tensor) -> float | None:
    """Return -1/2 log((2 pi e)^d / |Aᵀ A|), or None where the determinant is 0."""
    d = whitened.shape[1]
    if len(whitened) < d:
        return None
    values = torch.linalg.svdvals(whitened)
    if float(values[-1]) <= _RELATIVE**0.5 * float(values[0]):
        return None
    return float(values.log().sum()) - 0.5 * d * math.log(2 * math.pi * math.e)
