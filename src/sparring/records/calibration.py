"""Calibration of a model on clean images, from facts about each. Needs no torch."""

from collections.abc import Mapping

import numpy as np

from .results import Array

BINS = 15
"""Number of bins of the expected calibration error."""


def expected_calibration_error(confidence: Array, right: Array, bins: int = BINS) -> float:
    """Return the expected calibration error: the mean distance of confidence and accuracy in bins of equal mass.

    Args:
        confidence: Probability of the predicted class of each example, `[N]`.
        right: Bools `[N]`, whether the prediction is right.
        bins: Number of bins; each has as many examples as the others, or one more.

    Returns:
        The error, from 0 to 1.

    References:
        Bins of equal mass: https://arxiv.org/abs/1904.01685.
    """
    order = np.argsort(confidence, kind="stable")
    gap = confidence[order].astype(np.float64) - right[order]
    return float(sum(abs(part.sum()) for part in np.array_split(gap, min(bins, len(gap)))) / len(gap))


def calibration(facts: Mapping[str, Array], right: Array) -> dict[str, float]:
    """Return what says how far the probabilities of a model can be believed.

    Args:
        facts: `confidence`, `nll` and `brier` of each example, `[N]`.
        right: Bools `[N]`, whether the prediction is right.

    Returns:
        The expected calibration error (`ece`), the mean negative log-likelihood in nats (`nll`), and the mean Brier
        score (`brier`), from 0 to 2.

    References:
        Brier score: https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2.
    """
    means = {name: float(facts[name].astype(np.float64).mean()) for name in ("nll", "brier")}
    return {"ece": expected_calibration_error(facts["confidence"], right), **means}
