"""The run folder, the results of evaluations, and their statistics. Needs no torch."""

from .merging import merge_evaluations
from .results import Accuracy, EvaluationResult, PairedComparison
from .run_folder import RunFolder

__all__ = [
    "Accuracy",
    "EvaluationResult",
    "PairedComparison",
    "RunFolder",
    "merge_evaluations",
]
