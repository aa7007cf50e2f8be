"""The largest number of passes that an adversary takes through the model, for the estimate of the time left."""

from collections.abc import Iterable

from ..attacks import APGD, DDN, FAB, PGD, Restarts, Split, Square, Worst
from ..attacks.losses import Margin
from .adversaries import MultiTargeted, SurrogateGradient, WhiteBox
from .minimum_norm import MinimumNorm
from .neighbours import FeatureAttack, KNNVoteAttack, PGDkNN, ProbeTransfer

BACKWARD = 1.8
"""The cost of a backward pass to the input, in forward passes, as measured with convolutional nets on the CPU."""


def passes(adversary: object, num_classes: int) -> float | None:
    """Cost of an adversary for one example, in forward passes.

    None for an adversary or attack that is not of this package and has no attribute `passes`.
    """
    if isinstance(adversary, SurrogateGradient):
        return passes(adversary.adversary, num_classes)
    if isinstance(adversary, MultiTargeted):
        return _times(min(adversary.targets, num_classes - 1), _attack(adversary.attack, boundaries=1))
    if isinstance(adversary, ProbeTransfer | FeatureAttack | PGDkNN | KNNVoteAttack):
        return _attack(adversary.attack, boundaries=1)
    if isinstance(adversary, WhiteBox):
        boundaries = num_classes - 1 if adversary.loss is Margin else 1
        return _times(adversary.draws, _attack(adversary.attack, boundaries))
    if isinstance(adversary, MinimumNorm):
        return _total(_attack(attack, num_classes - 1) for attack in adversary.attacks)
    return _stated(adversary)


def _attack(attack: object, boundaries: int) -> float | None:
    """Cost of an attack for one example; FAB takes a backward pass for each of the `boundaries`."""
    if isinstance(attack, PGD | APGD | DDN):
        return attack.steps * (1 + BACKWARD)
    if isinstance(attack, FAB):
        return attack.steps * (2 + boundaries * BACKWARD)
    if isinstance(attack, Square):
        return attack.queries
    if isinstance(attack, Restarts):
        return _times(attack.times, _attack(attack.attack, boundaries))
    if isinstance(attack, Worst):
        return _total(_attack(part, boundaries) for part in attack.parts)
    if isinstance(attack, Split):
        return _total(_times(share, _attack(part, boundaries)) for share, part in attack.parts)
    return _stated(attack)


def _stated(attack: object) -> float | None:
    stated = getattr(attack, "passes", None)
    return float(stated) if isinstance(stated, int | float) else None


def _times(factor: float, cost: float | None) -> float | None:
    return None if cost is None else factor * cost


def _total(costs: Iterable[float | None]) -> float | None:
    known = list(costs)
    return None if None in known else sum(cost for cost in known if cost is not None)
