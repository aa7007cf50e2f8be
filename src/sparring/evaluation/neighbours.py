"""Attacks on the features of a model, on its kNN head, and on a linear probe of the same features.

Weak attacks on nearest neighbours have misled this literature before: report the worst case of several.
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
    """An adversary that drives the features away from those of the clean image, without labels in the loss.

    The model is a `Classifier` with any head. Labels only decide whether an example counts as fooled.

    Args:
        attack: The attack.
        maximizes: The loss that the attack maximises: the squared `distance` to the clean features, their `cosine`
            distance, or `contrast`, InfoNCE among the images of the batch. The contrast depends on the other images in
            the batch; for a single image, it is the cosine.
        temperature: Temperature of the contrast.

    Raises:
        UserError: For another loss.
    """

    attack: Attack
    maximizes: Literal["distance", "cosine", "contrast"] = "distance"
    temperature: float = 0.2

    def __post_init__(self) -> None:
        need_one_of("maximizes", self.maximizes, ("distance", "cosine", "contrast"))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        def loss(lens: ForwardCache) -> PerExampleLoss:
            with torch.no_grad():
                clean = lens.features(x)
            if self.maximizes == "contrast" and len(x) > 1:
                return FeatureContrast(lens.features, clean, torch.arange(len(x), device=x.device), self.temperature)
            return FeatureDistance(lens.features, clean, self.maximizes != "distance")

        return _climbed(model, x, y, rng, self.attack, loss)


@dataclass(frozen=True, slots=True)
class KNNVoteAttack:
    """An adversary that maximises the cross-entropy of soft votes of the whole bank of a kNN head.

    Args:
        attack: The attack.
        softness: Temperature of the soft votes in this attack (0.02 to 0.1), in place of that of the head.
    """

    attack: Attack
    softness: float = 0.05

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        bank = require_knn_head(model)

        def loss(lens: ForwardCache) -> PerExampleLoss:
            return CE(lambda z: bank.soft(lens.features(z), self.softness), y)

        return _climbed(model, x, y, rng, self.attack, loss)


@dataclass(frozen=True, slots=True)
class PGDkNN:
    """PGD-kNN, an adversary that moves from neighbours of the own class to those of the nearest other class.

    The attack maximises `models.guided.GuideLoss`. The model has a kNN head.

    Args:
        attack: The attack.
        guides: Number of examples of the bank that guide it: half of the own class, half of the other one.

    References:
        Definition: https://arxiv.org/abs/1903.08333.
        Released variant: https://arxiv.org/abs/1911.06470.
    """

    attack: Attack
    guides: int = 300

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        bank = require_knn_head(model)
        with eval_mode(model), frozen(model):
            return self.attack(GuideLoss(ForwardCache(model).features, bank, y, self.guides), x, rng)


@dataclass(frozen=True, slots=True)
class ProbeTransfer:
    """An adversary that attacks a linear probe of the features and transfers the points to the kNN head.

    The probe is fitted to the bank of the kNN head, on normalised features; the loss is its cross-entropy.

    Args:
        attack: The attack.
        penalty: Coefficient of the L2 penalty on the weights W of the probe, `penalty` / 2 x |W|².
    """

    attack: Attack
    penalty: float = PENALTY

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        probe = _probe(require_knn_head(model), self.penalty)

        def loss(lens: ForwardCache) -> PerExampleLoss:
            return CE(lambda z: probe(F.normalize(lens.features(z), dim=1)), y)

        return _climbed(model, x, y, rng, self.attack, loss)


@dataclass(frozen=True, slots=True)
class KNNAttackSuite:
    """Several attacks on a kNN head in turn, each on the examples that are robust under all before it.

    An example that is robust at the end is robust under all of them. The attacks are APGD on the cross-entropy of the
    logits, PGD on the soft votes at each `softness`, PGD-kNN on guides, PGD on a linear probe, PGD on the distance and
    on the cosine of the features, and targeted APGD.

    Args:
        threat: The set that adversarial examples must lie in.
        steps: Steps of each attack.
        restarts: Number of runs of PGD on soft votes.
        softness: Temperatures of the soft votes, one attack for each.

    Raises:
        UserError: If `threat` is no threat.
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
    """Attack a loss of the features. The model's logits, from the same forward pass, show which examples are fooled."""
    with eval_mode(model), frozen(model):
        lens = ForwardCache(model)
        return attack(WithPredictions(loss(lens), lens.logits, y), x, rng)


_PROBES = WeakTensorKeyDictionary()


def _probe(bank: KNN, penalty: float) -> nn.Linear:
    """The linear probe of a bank. It is fitted once for each bank, which the copies of a model share."""
    version, known = bank.rows._version, _PROBES.get(bank.rows)
    if known is None or known[:2] != (version, penalty):
        probe = linear_probe(bank.rows, bank.labels, bank.num_classes, penalty).requires_grad_(False)
        _PROBES[bank.rows] = known = version, penalty, probe
    layer: nn.Linear = known[2]
    return layer
