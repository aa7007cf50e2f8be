"""How robust a model really is."""

from .accuracy import evaluate
from .adversaries import Adversary, EachTarget, Through, WhiteBox, check_name, perturb, threat_of
from .audit_context import Budget
from .auto_attack import AutoAttack, InTurn, autoattack
from .gradient_masking import audit
from .minimum_norm import Nearest
from .neighbours import ByProbe, OnFeatures, OnGuides, OnVotes, WorstOnNeighbours
from .runner import Cascade, News

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
