"""Measures of a representation: accuracy of heads on it, clean and under attack, and how much it keeps of an image."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attacks import APGD, PGD
from ...attacks.losses import Margin, TargetedDLR
from ...core.errors import UserError
from ...core.gate import as_taken, gated
from ...core.modes import eval_mode
from ...core.rng import PerExample
from ...core.types import Classifier, LabelledData, TensorData, Threat, pixels
from ...core.validation import as_classifier
from ...evaluation import Adversary, Cascade, Ensemble, FeatureAttack, KNNAttackSuite, MultiTargeted, WhiteBox, evaluate
from ...models import KNN, encode, linear_probe
from ...objectives.contrastive_losses import information_bound
from ...records.results import Accuracy, Array
from ...records.statistics import interval
from ..information.jacobian import effective_count

TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Reading:
    """Accuracy of one head on a representation, on clean images and on the same images under attack.

    Args:
        clean: Clean accuracy.
        robust: Robust accuracy.
        defense_success_rate: The share of the correctly classified clean images that are robust.
    """

    clean: Accuracy
    robust: Accuracy
    defense_success_rate: Accuracy

    def plain(self) -> dict[str, Any]:
        return {
            "clean": self.clean.plain(),
            "robust": self.robust.plain(),
            "defended": self.defense_success_rate.plain(),
        }


@dataclass(frozen=True, slots=True)
class MutualInformation:
    """A lower bound, in nats, on the mutual information of the features of images and of their adversarial versions.

    Args:
        value: The bound.
        low: Lower end of its 95 % bootstrap interval over pairs.
        high: Upper end of that interval.
        ceiling: Logarithm of the number of images that the bound is computed on, which the bound cannot exceed, however
            large the information is.
        temperature: Temperature of the critic, the one that is best for the first half of the pairs.
    """

    value: float
    low: float
    high: float
    ceiling: float
    temperature: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] nats, of at most {self.ceiling:.2f}"


@dataclass(frozen=True, slots=True)
class Representation:
    """Measures of a representation.

    Args:
        threat: The threat, as text.
        readings: Accuracies by the name of the head.
        information: Bound on the mutual information of clean and adversarial features.
        spread: 1 if the directions of the bank's features are spread all around, 0 if they are all alike.
        rank: Effective rank of the bank's features: e to the entropy of the shares of the variance.
    """

    threat: str
    readings: Mapping[str, Reading]
    information: MutualInformation
    spread: float
    rank: float

    def plain(self) -> dict[str, Any]:
        information = self.information
        return {
            "threat": self.threat,
            "readings": {name: reading.plain() for name, reading in self.readings.items()},
            "information": {name: getattr(information, name) for name in information.__slots__},
            "spread": self.spread,
            "rank": self.rank,
        }


@gated
def measure_representation(
    model: nn.Module,
    bank: LabelledData,
    test: TensorData,
    threat: Threat,
    *,
    k: int = 75,
    steps: int = 20,
    restarts: int = 2,
    softness: tuple[float, ...] = (0.02, 0.05, 0.1),
    batch_size: int = 128,
    seed: int = 0,
) -> Representation:
    """Measure how well heads on the features of a model classify, and how much the features keep under attack.

    The heads are `k` nearest neighbours with one vote each, 200 weighted neighbours (or the whole bank), a linear
    probe, and the model's own head unless that is a kNN head. Each head is attacked by several attacks of `steps`; an
    example counts as broken if any of them succeeds.

    Args:
        model: The model, whose features are measured whatever head it has.
        bank: Labelled images on which the heads are fitted.
        test: Test images.
        threat: The threat.
        k: Number of neighbours with one vote each.
        steps: Number of steps of each attack.
        restarts: Number of restarts of the attacks on the kNN heads.
        softness: Temperatures of the soft votes that the attacks on the kNN heads use.
        batch_size: Number of images per batch.
        seed: Seed of the attacks.

    Returns:
        The accuracies of each head, the bound on the information, and spread and rank of the features of the bank.

    Raises:
        UserError: If the model is no `Classifier`, and no linear layer gives its logits.
    """
    model = as_classifier(model, as_taken(model, bank[:2].x))
    with eval_mode(model):
        features = encode(model.features, bank, batch_size)
    heads = _heads(model, features, bank.y, len(test.classes), k)
    readings = {}
    for name, head in heads.items():
        reader = Classifier(model.body, head, model.normalize).eval()
        attacks = {"worst": _worst(head, KNNAttackSuite(threat, steps, restarts, softness), len(test.classes))}
        found = evaluate(reader, test, attacks, batch_size=batch_size, seed=seed)
        readings[name] = Reading(found.table()["clean"], found.table()["worst"], found.defense_success_rate("worst"))
    adversarial = _driven_away(model, test, threat, steps, batch_size, seed)
    with eval_mode(model), torch.no_grad():
        pairs = [encode(model.features, data, batch_size) for data in (test, adversarial)]
    return Representation(
        threat=repr(threat),
        readings=readings,
        information=mutual_information(*pairs),
        spread=next(head.spread for head in heads.values() if isinstance(head, KNN)),
        rank=effective_rank(features),
    )


def _heads(model: Classifier, features: Tensor, y: Tensor, classes: int, k: int) -> dict[str, nn.Module]:
    even, weighted = KNN(classes, k), KNN(classes, min(200, len(features)), "weighted")
    for head in (even, weighted):
        head.to(features.device).fit(features, y)
    own: dict[str, nn.Module] = {} if isinstance(model.head, KNN) else {"its own head": model.head}
    return {
        **own,
        f"{k} nearest neighbours": even,
        f"{weighted.k} weighted neighbours": weighted,
        "linear probe": linear_probe(features, y, classes),
    }


def _worst(head: nn.Module, attacks: KNNAttackSuite, classes: int) -> Cascade:
    """Return the attacks on a head: the given suite on a kNN head, else attacks with as many steps and no bank."""
    if isinstance(head, KNN):
        return attacks
    threat, steps = attacks.threat, attacks.steps
    apgd, loss = APGD(threat, steps), TargetedDLR if classes > 3 else Margin
    parts: dict[str, Adversary] = {
        "apgd-ce": WhiteBox(apgd),
        "apgd-t": MultiTargeted(apgd, loss, 3),
        "distance": FeatureAttack(PGD(threat, steps, threat.eps / 4, patience=0)),
    }
    return Ensemble(parts)


def _driven_away(
    model: nn.Module, test: TensorData, threat: Threat, steps: int, batch_size: int, seed: int
) -> TensorData:
    """Return images moved, without labels, so that their features are as far from the originals as possible."""
    attack, moved = FeatureAttack(PGD(threat, steps, threat.eps / 4)), []
    for start in range(0, len(test), batch_size):
        part = test[start : start + batch_size]
        index = torch.arange(start, start + len(part), device=part.y.device)
        moved.append(attack(model, pixels(part.x), part.y, PerExample(seed, index)))
    return TensorData(torch.cat(moved), test.y, test.classes)


def mutual_information(a: Tensor, b: Tensor) -> MutualInformation:
    """Compute InfoNCE's bound on the mutual information of pairs of features, with the critic cosine / temperature.

    Each half of the pairs is measured at the temperature that is best for the other half, so that choosing it does not
    bias the bound. The ceiling is that of a half.

    Args:
        a: Features `[N, F]`.
        b: Features `[N, F]`; row i is paired with row i of `a`.

    Returns:
        The bound in nats, with its interval and ceiling.

    Raises:
        UserError: If there are fewer than 4 pairs, or the features differ in shape.
    """
    if a.shape != b.shape:
        raise UserError(f"features are paired row by row, and are {tuple(a.shape)} and {tuple(b.shape)}")
    half = len(a) // 2
    if half < 2:
        raise UserError(
            f"the bound on the information needs at least 4 pairs, two for each half, and there are {len(a)}"
        )
    scores = [_cosines(a[part], b[part]) for part in (slice(0, half), slice(half, 2 * half))]
    best = [max(TEMPERATURES, key=lambda by: float(information_bound(s / by).mean())) for s in scores]
    each = torch.cat([information_bound(s / by) for s, by in zip(scores, reversed(best), strict=True)])
    values: Array = each.double().cpu().numpy()
    low, high = interval(values, np.mean)
    return MutualInformation(float(values.mean()), low, high, math.log(half), best[0])


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def effective_rank(features: Tensor) -> float:
    """Compute e to the entropy of the shares that the principal directions have of the variance.

    Args:
        features: Features `[N, F]`.

    Returns:
        The effective rank; 0 if the features have no variance.
    """
    z = features.double()
    values = torch.linalg.svdvals(z - z.mean(0)).square()
    return float(effective_count(values[None], torch.ones_like(values)[None]))
