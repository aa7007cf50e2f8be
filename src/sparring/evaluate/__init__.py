"""How robust a model really is."""

from .accuracy import Cascade, News, evaluate
from .adversary import Adversary, EachTarget, WhiteBox, perturb, threat_of
from .ensembles import AutoAttack, autoattack
from .masking import Budget, audit
from .nearest import Nearest

__all__ = [
    "Adversary",
    "AutoAttack",
    "Budget",
    "Cascade",
    "EachTarget",
    "Nearest",
    "News",
    "WhiteBox",
    "audit",
    "autoattack",
    "evaluate",
    "perturb",
    "threat_of",
]
