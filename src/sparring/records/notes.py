"""Notes that count the examples of a result. Needs no torch."""

import numpy as np

from .results import EvaluationResult

LOST_UNDER = "{} examples count as broken because the model gives NaN or infinite logits under {}"


def counted_notes(found: EvaluationResult) -> list[str]:
    """Return the notes that follow from the results of the examples alone.

    Args:
        found: The result.

    Returns:
        Notes on logits that are not finite, and on attacks that only Square improves on.
    """
    return [*lost_notes(found), *square_notes(found)]


def lost_notes(found: EvaluationResult) -> list[str]:
    """Return notes on examples for which the model gives NaN or infinite logits.

    Args:
        found: The result; a margin is -inf where the logits are not finite.

    Returns:
        A note for the clean images and for each adversary, where there are such examples.
    """
    notes = []
    for name, margin in found.margin.items():
        lost = np.isneginf(margin) & ~found.robust[name]
        if name == "clean" and lost.any():
            what = f"{int(lost.sum())} of {len(lost)} clean images give NaN or infinite logits"
            notes.append(f"{what}: they count as wrong")
        lost &= found.robust["clean"]
        if lost.any():
            notes.append(LOST_UNDER.format(int(lost.sum()), name))
    return notes


def square_notes(found: EvaluationResult) -> list[str]:
    """Return notes on AutoAttack's own sign of masked gradients: Square reduces the accuracy by more than 0.2 points.

    Args:
        found: The result.

    Returns:
        A note for each cascade in which Square finds so many.
    """
    notes = []
    for name in (name for name in found.robust if "/" not in name):
        stages = [stage.removeprefix(f"{name}/") for stage in found.robust if stage.startswith(f"{name}/")]
        broken = int((found.broken_by(name) == "square").sum()) if "square" in stages[1:] else 0
        if broken >= 2 and broken > 0.002 * len(found.label):
            notes.append(
                f"Square, which needs no gradients, breaks {broken} examples that the attacks before it did not: "
                "gradients may be masked; run sparring audit"
            )
    return notes
