"""How robust a model really is."""

from .accuracy import evaluate
from .adversary import Adversary, EachTarget, Through, WhiteBox, check_name, perturb, threat_of
from .case import Budget
from .ensembles import AutoAttack, InTurn, autoattack
from .masking import audit
from .nearest import Nearest
from .representation import ByProbe, OnFeatures, OnGuides, OnVotes, WorstOnNeighbours
from .stages import Cascade, News

__all__ = [
    "Adversary",
    "AutoAttack",
    "Budget",
    "ByProbe",
    "Cascade",
    "EachTarget",
    "InTurn",
    "Nearest",
    "News",
    "OnFeatures",
    "OnGuides",
    "OnVotes",
    "Through",
    "WhiteBox",
    "WorstOnNeighbours",
    "audit",
    "autoattack",
    "check_name",
    "evaluate",
    "perturb",
    "threat_of",
]
