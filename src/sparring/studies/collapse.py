"""Catastrophic overfitting as a number of a training: whether, and how early, robust accuracy collapses."""

import numpy as np

from ..records.results import Array

COLLAPSED, ONSET = "collapsed", "onset"
_SHARE = 0.5


def collapse(robust: Array, stopped_of: int | None = None) -> dict[str, float]:
    """Return whether a training collapsed, and when.

    Args:
        robust: Robust accuracy on held-out images after each epoch, under the attack that selects, `[E]`.
        stopped_of: Number of epochs of the training, if a guard stopped it for catastrophic overfitting; else None.

    Returns:
        `collapsed`: 1 if robust accuracy fell below half of its maximum so far or a guard stopped the training, else 0.
        `onset`: the share of the epochs before it first did, 1 if it never did.
    """
    if stopped_of is not None:
        return {COLLAPSED: 1.0, ONSET: len(robust) / stopped_of}
    fallen = np.flatnonzero(robust < _SHARE * np.maximum.accumulate(robust))
    return {COLLAPSED: float(len(fallen) > 0), ONSET: float(fallen[0] / len(robust)) if len(fallen) else 1.0}
