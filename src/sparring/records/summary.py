"""Summary of an evaluation beyond the accuracy under each attack, from its facts about examples. Needs no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .calibration import calibration
from .results import Accuracy, EvaluationResult

SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Shares of eps at which the curve of robust accuracy is given."""
_EPS = re.compile(r"\w+\(eps=([\d.e+-]+)\)")


@dataclass(frozen=True, slots=True)
class Summary:
    """A union of norms, a curve over eps, accuracy under corruptions, and calibration, as far as they are known.

    Args:
        union: The share of examples that are robust under all adversaries together; None if these are of one norm.
        united: The names of these adversaries.
        curve: Robust accuracy by eps, from smallest distances.
        corrupted: Accuracy on corrupted images, by corruption, with all severities together.
        severities: Accuracy on corrupted images by severity, with all corruptions together.
        calibration: Expected calibration error, negative log-likelihood and Brier score on clean images.
    """

    union: Accuracy | None = None
    united: tuple[str, ...] = ()
    curve: Mapping[float, Accuracy] = field(default_factory=dict)
    corrupted: Mapping[str, float] = field(default_factory=dict)
    severities: Mapping[int, float] = field(default_factory=dict)
    calibration: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, found: EvaluationResult) -> "Summary":
        """Compute the summary of a result."""
        united = _of_several_norms(found)
        facts = found.calibration
        return cls(
            found.union(united) if united else None,
            united,
            _curve(found),
            _means(found, lambda name: name.rpartition("-")[0]),
            {int(severity): mean for severity, mean in _means(found, lambda name: name.rpartition("-")[2]).items()},
            calibration(facts, found.robust["clean"]) if facts else {},
        )

    def mean_corrupted(self) -> float | None:
        """The mean accuracy over corruptions and severities; None without corrupted images."""
        return float(np.mean(list(self.corrupted.values()))) if self.corrupted else None

    def rows(self) -> dict[str, str]:
        """The rows of a table."""
        rows = {} if self.union is None else {f"union of {', '.join(self.united)}": str(self.union)}
        rows |= {f"eps {eps:.4g}, by smallest distances": str(accuracy) for eps, accuracy in self.curve.items()}
        mean = self.mean_corrupted()
        if mean is not None:
            rows["corruptions, mean"] = _percent(mean)
            rows |= {f"  {name}": _percent(value) for name, value in self.corrupted.items()}
            rows |= {f"  severity {severity}": _percent(value) for severity, value in self.severities.items()}
        return rows | {_CALIBRATION[name]: f"{value:.4f}" for name, value in self.calibration.items()}

    def plain(self) -> dict[str, Any]:
        """The summary as values that JSON can hold; what is not known is left out."""
        plain: dict[str, Any] = {}
        if self.union is not None:
            plain["union"] = {**self.union.plain(), "of": list(self.united)}
        if self.curve:
            plain["curve"] = [{"eps": eps, **accuracy.plain()} for eps, accuracy in self.curve.items()]
        if self.corrupted:
            by_severity = {str(severity): value for severity, value in self.severities.items()}
            parts = {"by corruption": dict(self.corrupted), "by severity": by_severity}
            plain["corruptions"] = {"mean": self.mean_corrupted(), **parts}
        if self.calibration:
            plain["calibration"] = dict(self.calibration)
        return plain


_CALIBRATION = {
    "ece": "calibration error (ECE)",
    "nll": "negative log-likelihood, nats",
    "brier": "Brier score",
}


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _of_several_norms(found: EvaluationResult) -> tuple[str, ...]:
    """Return the names of the adversaries with a threat, if their threats are of more than one kind."""
    kinds = {name: text.partition("(")[0] for name, text in found.about.items() if name in found.robust}
    known = {name: kind for name, kind in kinds.items() if kind != "None"}
    return tuple(known) if len(set(known.values())) > 1 else ()


def _curve(found: EvaluationResult) -> dict[float, Accuracy]:
    """Return robust accuracies at shares of the eps of the threat in which smallest distances were measured."""
    threats = [text for name, text in found.about.items() if name not in found.robust]
    eps = _EPS.fullmatch(threats[0]) if threats else None
    if found.distance is None or eps is None:
        return {}
    return {share * float(eps[1]): found.robust_at(share * float(eps[1])) for share in SHARES}


def _means(found: EvaluationResult, key: Any) -> dict[str, float]:
    """Return the mean accuracy on corrupted images of those that have the same key."""
    groups: dict[str, list[float]] = {}
    for name, right in found.corrupted.items():
        groups.setdefault(key(name), []).append(float(right.mean()))
    return {name: float(np.mean(values)) for name, values in groups.items()}
