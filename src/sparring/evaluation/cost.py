"""Largest number of passes that an adversary takes through the model, for the estimate of the time left."""

from collections.abc import Callable, Iterable
from typing import Any

from ..attacks import (
    APGD,
    CWL2,
    DDN,
    FAB,
    MSD,
    NFGSM,
    PGD,
    Benign,
    CoarseToFine,
    HopSkipJump,
    MultiGrad,
    ParametrizedSearch,
    RandomEps,
    Restarts,
    Split,
    Square,
    Worst,
    ZeroGrad,
)
from ..attacks.losses import Margin
from .adversaries import MultiTargeted, SurrogateGradient, WhiteBox
from .minimum_norm import MinimumNorm
from .neighbours import FeatureAttack, KNNVoteAttack, PGDkNN, ProbeTransfer
from .transfer import Transfer

BACKWARD = 1.8
"""A backward pass to the input, in forward passes: measured with convolutional nets on the CPU."""


def passes(adversary: object, num_classes: int) -> float | None:
    """Passes for one example, in forward passes.

    None for an adversary or attack that is not of this package and has no attribute `passes`.
    """
    if isinstance(adversary, SurrogateGradient):
        return passes(adversary.adversary, num_classes)
    if isinstance(adversary, MultiTargeted):
        return _times(min(adversary.targets, num_classes - 1), _attack(adversary.attack, boundaries=1))
    if isinstance(adversary, ProbeTransfer | FeatureAttack | PGDkNN | KNNVoteAttack):
        return _attack(adversary.attack, boundaries=1)
    if isinstance(adversary, Transfer):
        return _attack(adversary.attack, boundaries=1)
    if isinstance(adversary, WhiteBox):
        boundaries = num_classes - 1 if adversary.loss is Margin else 1
        return _times(adversary.draws, _attack(adversary.attack, boundaries))
    if isinstance(adversary, MinimumNorm):
        return _total(_attack(attack, num_classes - 1) for attack in adversary.attacks)
    return _stated(adversary)


_STEP = 1 + BACKWARD

_COSTS: dict[type, Callable[[Any, int], float | None]] = {
    Benign: lambda attack, boundaries: 1.0,  # the pass that counts
    NFGSM: lambda attack, boundaries: _STEP,
    ZeroGrad: lambda attack, boundaries: _STEP,
    MultiGrad: lambda attack, boundaries: attack.points * _STEP,
    PGD: lambda attack, boundaries: attack.steps * _STEP,
    APGD: lambda attack, boundaries: attack.steps * _STEP,
    ParametrizedSearch: lambda attack, boundaries: attack.steps * _STEP,
    DDN: lambda attack, boundaries: attack.steps * _STEP,
    CWL2: lambda attack, boundaries: attack.searches * attack.steps * _STEP,
    FAB: lambda attack, boundaries: attack.steps * (2 + boundaries * BACKWARD),
    Square: lambda attack, boundaries: attack.queries,
    MSD: lambda attack, boundaries: attack.steps * (_STEP + len(attack.threat.parts)),
    HopSkipJump: lambda attack, boundaries: attack.queries,
    RandomEps: lambda attack, boundaries: _attack(attack.attack, boundaries),
    Restarts: lambda attack, boundaries: _times(attack.times, _attack(attack.attack, boundaries)),
    CoarseToFine: lambda attack, boundaries: _times(attack.times, _attack(attack.attack, boundaries)),
    Worst: lambda attack, boundaries: _total(_attack(part, boundaries) for part in attack.parts),
    Split: lambda attack, boundaries: _total(_times(share, _attack(part, boundaries)) for share, part in attack.parts),
}


def _attack(attack: object, boundaries: int) -> float | None:
    """Passes of an attack that differentiates towards `boundaries` classes where it needs each."""
    cost = _COSTS.get(type(attack))
    return _stated(attack) if cost is None else cost(attack, boundaries)


def _stated(attack: object) -> float | None:
    stated = getattr(attack, "passes", None)
    return float(stated) if isinstance(stated, int | float) else None


def _times(factor: float, cost: float | None) -> float | None:
    return None if cost is None else factor * cost


def _total(costs: Iterable[float | None]) -> float | None:
    known = list(costs)
    return None if None in known else sum(cost for cost in known if cost is not None)
