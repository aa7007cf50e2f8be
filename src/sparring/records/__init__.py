"""The run folder, the results of evaluations, and their statistics. Needs no torch."""

from .certification import Certification, merge_certifications
from .merging import merge_evaluations
from .results import Accuracy, EvaluationResult, PairedComparison
from .run_folder import RunFolder
from .summary import Summary

__all__ = [
    "Accuracy",
    "Certification",
    "EvaluationResult",
    "PairedComparison",
    "RunFolder",
    "Summary",
    "merge_certifications",
    "merge_evaluations",
]
