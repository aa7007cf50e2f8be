"""Attacks on what a model reads: its features, its nearest neighbours, a linear reading of the same features.

Attacks on nearest neighbours have fooled this literature before by being weak: report the worst case of several.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..attacks import APGD, PGD, Restarts
from ..attacks.losses import CE, Margin, TargetedDLR
from ..attacks.threats import need_threat
from ..core.errors import need_one_of
from ..core.modes import eval_mode, frozen
from ..core.rng import Rng
from ..core.types import Attack, ForwardCache, PerExampleLoss, Threat
from ..models.guided import GuideLoss
from ..models.knn import KNN, require_knn_head
from ..models.probe import PENALTY, linear_probe
from ..objectives.contrastive_losses import FeatureContrast, FeatureDistance, WithPredictions
from .adversaries import Adversary, MultiTargeted, WhiteBox


@dataclass(frozen=True, slots=True)
class FeatureAttack:
    """Drives the features away from those of the clean image, by no label: squared `distance`, `cosine` or `contrast`.

    The contrast is InfoNCE among the images of the batch, with `temperature`; so it depends on who is in it, and of one
    image alone it is the cosine. Labels only tell it when to rest. The model is a `Classifier`, whatever its head.
    """

    attack: Attack
    raises: Literal["distance", "cosine", "contrast"] = "distance"
    temperature: float = 0.2

    def __post_init__(self) -> None:
        need_one_of("raises", self.raises, ("distance", "cosine", "contrast"))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        def loss(lens: ForwardCache) -> PerExampleLoss:
            with torch.no_grad():
                clean = lens.features(x)
            if self.raises == "contrast" and len(x) > 1:
                return FeatureContrast(lens.features, clean, torch.arange(len(x), device=x.device), self.temperature)
            return FeatureDistance(lens.features, clean, self.raises != "distance")

        return _climbed(model, x, y, rng, self.attack, loss)


@dataclass(frozen=True, slots=True)
class KNNVoteAttack:
    """Cross-entropy of the soft votes of all the bank, at a `softness` of its own (0.02 to 0.1)."""

    attack: Attack
    softness: float = 0.05

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        bank = require_knn_head(model)

        def loss(lens: ForwardCache) -> PerExampleLoss:
            return CE(lambda z: bank.soft(lens.features(z), self.softness), y)

        return _climbed(model, x, y, rng, self.attack, loss)


@dataclass(frozen=True, slots=True)
class PGDkNN:
    """PGD-kNN: from the neighbours of the own class to those of the nearest other one (`models.guided.GuideLoss`)."""

    attack: Attack
    guides: int = 300

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        bank = require_knn_head(model)
        with eval_mode(model), frozen(model):
            return self.attack(GuideLoss(ForwardCache(model).features, bank, y, self.guides), x, rng)


@dataclass(frozen=True, slots=True)
class ProbeTransfer:
    """What fools a linear probe of the same features, fitted to the bank, is tried on its nearest neighbours."""

    attack: Attack
    penalty: float = PENALTY

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        probe = _probe(require_knn_head(model), self.penalty)

        def loss(lens: ForwardCache) -> PerExampleLoss:
            return CE(lambda z: probe(F.normalize(lens.features(z), dim=1)), y)

        return _climbed(model, x, y, rng, self.attack, loss)


@dataclass(frozen=True, slots=True)
class KNNAttackSuite:
    """Several attacks on nearest neighbours, each on what those before it have left: who stands, stands under all.

    APGD on the cross-entropy of the logits and towards targets, PGD on soft votes of each `softness`, on guides, by a
    linear probe, and on the features, by distance and cosine; `steps` each, soft votes with `restarts`.
    """

    threat: Threat
    steps: int = 50
    restarts: int = 5
    softness: tuple[float, ...] = (0.02, 0.05, 0.1)

    def __post_init__(self) -> None:
        need_threat(self.threat)

    @property
    def draws(self) -> int:
        return 1

    def stages(self, num_classes: int) -> Mapping[str, Adversary]:
        pgd = PGD(self.threat, self.steps, self.threat.eps / 4, patience=0)
        found: dict[str, Adversary] = {
            "apgd-ce": WhiteBox(APGD(self.threat, self.steps)),
            **{f"soft-{by:g}": KNNVoteAttack(Restarts(pgd, self.restarts), by) for by in self.softness},
            "guides": PGDkNN(pgd),
            "probe": ProbeTransfer(pgd),
            "distance": FeatureAttack(pgd),
            "cosine": FeatureAttack(pgd, "cosine"),
        }
        loss = TargetedDLR if num_classes > 3 else Margin
        return {**found, "apgd-t": MultiTargeted(APGD(self.threat, self.steps), loss, targets=3)}

    def notes(self, num_classes: int) -> tuple[str, ...]:
        del num_classes
        return ()


def _climbed(
    model: nn.Module, x: Tensor, y: Tensor, rng: Rng, attack: Attack, loss: Callable[[ForwardCache], PerExampleLoss]
) -> Tensor:
    """The attack on a loss of the features; the model's own answer says who is fooled, from the same forward pass."""
    with eval_mode(model), frozen(model):
        lens = ForwardCache(model)
        return attack(WithPredictions(loss(lens), lens.logits, y), x, rng)


_PROBES = WeakTensorKeyDictionary()


def _probe(bank: KNN, penalty: float) -> nn.Linear:
    """Fitted once for a bank, which copies of a model share."""
    version, known = bank.rows._version, _PROBES.get(bank.rows)
    if known is None or known[:2] != (version, penalty):
        probe = linear_probe(bank.rows, bank.labels, bank.num_classes, penalty).requires_grad_(False)
        _PROBES[bank.rows] = known = version, penalty, probe
    layer: nn.Linear = known[2]
    return layer
