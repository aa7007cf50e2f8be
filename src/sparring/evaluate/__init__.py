"""How robust a model really is."""

from .accuracy import evaluate
from .adversary import Adversary, EachTarget, Through, WhiteBox, perturb, threat_of
from .case import Budget
from .ensembles import AutoAttack, InTurn, autoattack
from .masking import audit
from .nearest import Nearest
from .stages import Cascade, News

__all__ = [
    "Adversary",
    "AutoAttack",
    "Budget",
    "Cascade",
    "EachTarget",
    "InTurn",
    "Nearest",
    "News",
    "Through",
    "WhiteBox",
    "audit",
    "autoattack",
    "evaluate",
    "perturb",
    "threat_of",
]
