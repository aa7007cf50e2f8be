"""How many passes through the model an adversary takes at most: what the time left is reckoned from."""

from ..attacks import APGD, DDN, FAB, PGD, Restarts, Split, Square, Worst
from ..attacks.losses import Margin
from .adversaries import MultiTargeted, SurrogateGradient, WhiteBox
from .minimum_norm import MinimumNorm
from .neighbours import FeatureAttack, KNNVoteAttack, PGDkNN, ProbeTransfer

BACKWARD = 1.8  # in forward passes: what a convolutional net takes on the CPU, from output to input


def passes(adversary: object, num_classes: int) -> float:
    """For one example, in forward passes; 1 for what is not known here."""
    if isinstance(adversary, SurrogateGradient):
        return passes(adversary.adversary, num_classes)
    if isinstance(adversary, MultiTargeted):
        return min(adversary.targets, num_classes - 1) * _attack(adversary.attack, boundaries=1)
    if isinstance(adversary, ProbeTransfer | FeatureAttack | PGDkNN | KNNVoteAttack):
        return _attack(adversary.attack, boundaries=1)
    if isinstance(adversary, WhiteBox):
        boundaries = num_classes - 1 if adversary.loss is Margin else 1
        return adversary.draws * _attack(adversary.attack, boundaries)
    if isinstance(adversary, MinimumNorm):
        return sum(_attack(attack, num_classes - 1) for attack in adversary.attacks)
    return 1.0


def _attack(attack: object, boundaries: int) -> float:
    if isinstance(attack, PGD | APGD | DDN):
        return attack.steps * (1 + BACKWARD)
    if isinstance(attack, FAB):
        return attack.steps * (2 + boundaries * BACKWARD)
    if isinstance(attack, Square):
        return attack.queries
    if isinstance(attack, Restarts):
        return attack.times * _attack(attack.attack, boundaries)
    if isinstance(attack, Worst):
        return sum(_attack(part, boundaries) for part in attack.parts)
    if isinstance(attack, Split):
        return sum(share * _attack(part, boundaries) for share, part in attack.parts)
    return 1 + BACKWARD
