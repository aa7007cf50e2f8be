"""Evaluation of robust accuracy: adversaries, AutoAttack, kNN attacks and the audit for masked gradients."""

from .accuracy import evaluate
from .adversaries import Adversary, MultiTargeted, SurrogateGradient, WhiteBox, check_adversary_name, perturb, threat_of
from .audit_context import AuditBudget
from .auto_attack import AutoAttack, Ensemble
from .examples import rows_of_shard
from .gradient_masking import audit
from .minimum_norm import MinimumNorm
from .neighbours import FeatureAttack, KNNAttackSuite, KNNVoteAttack, PGDkNN, ProbeTransfer
from .runner import Cascade, EvaluationProgress
from .smoothing import Smoothed, certify
from .standard import autoattack
from .suite import full_suite
from .transfer import Transfer

__all__ = [
    "Adversary",
    "AuditBudget",
    "AutoAttack",
    "Cascade",
    "Ensemble",
    "EvaluationProgress",
    "FeatureAttack",
    "KNNAttackSuite",
    "KNNVoteAttack",
    "MinimumNorm",
    "MultiTargeted",
    "PGDkNN",
    "ProbeTransfer",
    "Smoothed",
    "SurrogateGradient",
    "Transfer",
    "WhiteBox",
    "audit",
    "autoattack",
    "certify",
    "check_adversary_name",
    "evaluate",
    "full_suite",
    "perturb",
    "rows_of_shard",
    "threat_of",
]
