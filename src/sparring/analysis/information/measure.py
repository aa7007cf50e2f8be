"""Fisher information in a network: its weights about the task, its prediction and its representation about the image.

Adversarial training is reported to reduce all of these (https://arxiv.org/abs/2007.11259). The values depend on the
scale of weights and features, so each raw value comes with a scale-free one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import UserError, need_one_of
from ...core.gate import gated
from ...core.modes import full_precision
from ...core.rng import PerExample, normal, uniform
from ...core.types import TensorData, pixels
from ...models.layers import FEATURES, Layers
from ...records.results import Array
from ..landscape.measure import estimate
from . import weights
from .effective import effective_information
from .jacobian import Jacobian, power_iteration, refuse_coupling, spectrum, squared_norm

MEANINGS = {
    "weights: trace": "trace of the Fisher information of the weights, by the estimator, nats",
    "weights on test images: trace": "the same trace on images that were not used for training",
    "weights: relative": "the trace for relative changes of the weights, Σ F w²: invariant to the scale of the weights",
    "prediction: trace": "trace of the Fisher information of the prediction about the image, nats per pixel unit²",
    "prediction: largest": "its largest eigenvalue",
    "prediction: scale-free": "the trace, times the mean variance of a pixel",
    "representation: trace": "|J|², J the derivative of the representation by the image; over s², it is the Fisher "
    "information with noise N(0, s²) on the representation",
    "representation: largest": "the largest eigenvalue of J Jᵀ",
    "representation: scale-free": "|J|² times the mean variance of a pixel, over that of a feature",
    "representation: effective rank": "e to the entropy of the shares of the eigenvalues of J Jᵀ",
    "effective information": "nats about an image that the representation keeps when its weights are as noisy as the "
    "task tolerates, for a Gaussian image and a network linearised at the image",
    "effective information, by volume": "the same by the formula of the paper, without the constant H(x): only where "
    "J has as many independent rows as an image has pixels",
}


Estimator = Literal["exact", "sampled", "batch"]


@dataclass(frozen=True, slots=True)
class Information:
    """The Fisher information of a network's weights, prediction and representation.

    Args:
        layer: Name of the layer whose output is the representation.
        values: One value per image for each measure, named as in `MEANINGS`, with the group of weights after a colon.
        estimates: The trace of the weights by several estimators, on the same images.
        eigenvalues: The largest eigenvalues of J Jᵀ for each test image, `[N, m]`.
        sizes: Number of weights in each group.
        tolerated: Change of the predictions, in nats, that the noise on the weights may cause to second order.
        rise: Mean change of the predictions, in nats, that the noise of the effective information causes: measured, not
            from the second-order expansion. None if the effective information was not computed.
        estimator: How the information of weights and predictions was measured. With "batch", values of the weights are
            one per batch instead of one per image.
    """

    layer: str
    values: Mapping[str, Array]
    estimates: Mapping[str, Array]
    eigenvalues: Array
    sizes: Mapping[str, int]
    tolerated: float
    rise: float | None
    estimator: Estimator = "exact"

    def plain(self) -> dict[str, Any]:
        """Return the mean and median of each measure with 95 % bootstrap intervals over images."""
        figures = {
            name: {
                "mean": estimate(each, np.mean),
                "median": estimate(each, np.median),
                "batches" if self.estimator == "batch" and name.startswith("weights") else "images": len(each),
                "meaning": MEANINGS[_meant(name)],
            }
            for name, each in self.values.items()
        }
        return {
            "layer": self.layer,
            "estimator": self.estimator,
            "figures": figures,
            "trace of the weights by estimator": {
                name: estimate(each, np.mean) for name, each in self.estimates.items()
            },
            "singular values": np.sqrt(self.eigenvalues).mean(0).tolist(),
            "weights": dict(self.sizes),
            "tolerated": self.tolerated,
            "rise": self.rise,
        }

    def arrays(self) -> dict[str, Array]:
        return {**self.values, "eigenvalues": self.eigenvalues}


def _meant(name: str) -> str:
    return ":".join(name.split(":")[:2]) if name.startswith("weights") else name


@gated
def measure_information(
    model: nn.Module,
    training: TensorData,
    test: TensorData,
    *,
    layer: str = FEATURES,
    jacobian_examples: int = 20,
    probes: int = 16,
    count: int = 50,
    tolerated: float = 0.1,
    estimator: Estimator = "exact",
    pixels_of: TensorData | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> Information:
    """Measure the Fisher information of the weights, the prediction and the representation, in float32.

    Memory is bounded: gradients of single images are computed for as many images at a time as fit into 256 MiB, or one
    by one. The time is bounded by the choice of the estimator, in backward passes for each image:

    | estimator | weights | prediction | use |
    |---|---|---|---|
    | exact | one per class, per image | one per class | up to some hundred classes |
    | sampled | one, per image | `probes` | many classes |
    | batch | 4, of whole batches | `probes` | many classes and large models |

    Args:
        model: The network, in eval mode.
        training: Training images, on which the information of the weights is measured.
        test: Test images, on which the information of predictions and representation is measured.
        layer: Name of the layer whose output is the representation.
        jacobian_examples: Number of test images, the first ones, for the effective information, which costs a Jacobian
            with respect to the weights per image; 0 leaves it out.
        probes: Number of random vectors for the trace of a representation that is too large for an exact one.
        count: Number of the largest eigenvalues of J Jᵀ to compute.
        tolerated: Change of the predictions, in nats, that the noise on the weights may cause to second order.
        estimator: "exact" over classes; "sampled" with labels drawn from the prediction; "batch" from gradients of
            whole batches. All are without bias. The effective information needs gradients of single images.
        pixels_of: Images whose pixels give the covariance for the effective information; `training` by default.
        batch_size: Number of images per batch.
        seed: Seed of the random numbers.

    Returns:
        The measures per image, with the eigenvalues and the sizes of the groups of weights.

    Raises:
        UserError: If the model is in training mode, a batch norm mixes images, the layer does not exist, or a number is
            out of range.
    """
    for name, number, least in (
        ("probes", probes, 1),
        ("count", count, 1),
        ("jacobian_examples", jacobian_examples, 0),
    ):
        if number < least:
            raise UserError(f"{name} = {number} is below {least}")
    if tolerated <= 0:
        raise UserError(f"tolerated = {tolerated:g} is not above 0: without noise, all information is kept")
    need_one_of("estimator", estimator, get_args(Estimator))
    if estimator == "batch" and jacobian_examples:
        raise UserError(
            "the effective information needs gradients of single images, which the estimator batch avoids: leave it "
            "out with jacobian_examples=0 (--jacobian-examples 0), or take another estimator"
        )
    refuse_coupling(model)
    read = Layers(model, (layer,))
    values, estimates = _about_weights(model, training, test, estimator, batch_size, seed)
    draws = None if estimator == "exact" else probes
    found, eigenvalues = _about_images(model, read, test, probes, count, draws, batch_size, seed)
    kept = None
    if jacobian_examples:
        seen = training if pixels_of is None else pixels_of
        few = test[:jacobian_examples]
        kept = effective_information(
            model,
            training,
            few,
            layer=layer,
            tolerated=tolerated,
            draws=draws,
            pixels_of=seen,
            batch_size=batch_size,
            seed=seed,
        )
        found["effective information"] = kept.gaussian
        if kept.by_volume is not None:
            found["effective information, by volume"] = kept.by_volume
    return Information(
        layer=layer,
        values={**values, **found},
        estimates=estimates,
        eigenvalues=eigenvalues,
        sizes=weights.sizes(model),
        tolerated=tolerated,
        rise=None if kept is None else kept.rise,
        estimator=estimator,
    )


def _about_weights(
    model: nn.Module, training: TensorData, test: TensorData, estimator: Estimator, batch_size: int, seed: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the measures of the weights, and their trace by this estimator and by each cheaper one."""
    raw, relative = _from_batches(model, training, seed)
    estimates = {"from batches": _array(raw[weights.ALL])}
    if estimator == "batch":
        unseen, _ = _from_batches(model, test, seed)
    else:
        raw, relative = weights.sampled(model, training, 1, batch_size, seed)
        estimates = {"labels drawn": _array(raw[weights.ALL]), **estimates}
        if estimator == "exact":
            raw, relative = weights.exact(model, training, batch_size)
            estimates = {"exact": _array(raw[weights.ALL]), **estimates}
        per_image = weights.exact if estimator == "exact" else partial(weights.sampled, draws=1, seed=seed)
        unseen, _ = per_image(model, test, batch_size=batch_size)
    values = {f"weights: trace: {kind}": _array(each) for kind, each in raw.items()}
    values |= {f"weights: relative: {kind}": _array(each) for kind, each in relative.items()}
    values["weights on test images: trace: all"] = _array(unseen[weights.ALL])
    return values, estimates


def _array(values: Tensor) -> Array:
    found: Array = values.detach().double().cpu().numpy()
    return found


def _from_batches(model: nn.Module, data: TensorData, seed: int) -> tuple[weights.Traces, weights.Traces]:
    """Return the traces, `[batches]` by group, from batches of nearly 32 images, so that few images are left out."""
    size = len(data) // -(-len(data) // 32)
    raw, relative = weights.from_batches(model, data, size, draws=4, seed=seed)
    mean = [{kind: each.mean(1) for kind, each in found.items()} for found in (raw, relative)]
    return mean[0], mean[1]


def _about_images(
    model: nn.Module,
    read: Layers,
    test: TensorData,
    probes: int,
    count: int,
    draws: int | None,
    batch_size: int,
    seed: int,
) -> tuple[dict[str, Array], Array]:
    """Return the measures of predictions and representation for each image, and the eigenvalues of J Jᵀ."""
    found: dict[str, list[Tensor]] = {}
    values, outputs = [], []
    with full_precision():
        for rows in torch.arange(len(test), device=test.y.device).split(_together(read, test, count, batch_size)):
            x, rng = pixels(test.x[rows]), PerExample(seed, rows)
            prediction, z = Jacobian(model.__call__, x), Jacobian(read.first, x)
            for name, each in _of_prediction(prediction, rng, draws).items():
                found.setdefault(f"prediction: {name}", []).append(each)
            top, rank = spectrum(z, rng, count)
            whole = {"trace": squared_norm(z, rng, probes), "largest": top[:, 0], "effective rank": rank}
            for name, each in whole.items():
                found.setdefault(f"representation: {name}", []).append(each)
            values.append(top)
            outputs.append(z.out.detach())
    arrays = {name: _array(torch.cat(parts)) for name, parts in found.items()}
    pixel, feature = _spread(pixels(test.x)), _spread(torch.cat(outputs))
    arrays["prediction: scale-free"] = arrays["prediction: trace"] * pixel
    arrays["representation: scale-free"] = arrays["representation: trace"] * (pixel / max(feature, 1e-30))
    return {name: arrays[name] for name in MEANINGS if name in arrays}, _array(torch.cat(values))


def _together(read: Layers, test: TensorData, count: int, batch_size: int) -> int:
    """Return for how many images at a time the bases of the Lanczos method fit into the budget."""
    with torch.no_grad():
        outputs = read.first(pixels(test.x[:1])).numel()
    size = min(outputs, test.x[0].numel())
    return max(1, min(batch_size, weights.BUDGET // (4 * size * min(3 * count + 20, size))))


def _spread(x: Tensor) -> float:
    """Return the mean variance of a coordinate."""
    return float(x.flatten(1).double().var(0, correction=0).mean())


def _of_prediction(jacobian: Jacobian, rng: PerExample, draws: int | None) -> dict[str, Tensor]:
    """Return trace and largest eigenvalue, `[B]` each, of Jᵀ (diag p - p pᵀ) J, J the Jacobian of the logits.

    The trace is E |Jᵀ (e_y - p)|² over labels y from the prediction: exact, or the mean over `draws` labels.
    """
    p = jacobian.out.detach().softmax(1)

    def weighed(u: Tensor) -> Tensor:
        return p * u - p * (p * u).sum(1, keepdim=True)

    trace = torch.zeros_like(p[:, 0])
    for i in range(p.shape[1] if draws is None else draws):
        y = torch.full_like(p[:, 0], i, dtype=torch.long) if draws is None else _drawn(p, rng)
        unit = F.one_hot(y, p.shape[1]).to(p)
        share = p[:, i] if draws is None else 1 / draws
        trace = trace + share * jacobian.transposed(unit - p).square().sum(1)
    start = normal(jacobian.x.detach().flatten(1), rng)
    top = power_iteration(lambda v: jacobian.transposed(weighed(jacobian.times(v))), start)
    return {"trace": trace, "largest": top}


def _drawn(p: Tensor, rng: PerExample) -> Tensor:
    """Return a label `[B]` for each image, drawn from the prediction `p` `[B, C]`."""
    return (p.cumsum(1) < uniform(p[:, :1], rng, 0, 1)).sum(1).clamp_max(p.shape[1] - 1)
