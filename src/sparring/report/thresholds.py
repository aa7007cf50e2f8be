"""Bounds that accuracies must reach, and a report as JUnit XML for continuous integration. Imports no torch."""

import re
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from ..core.errors import UserError, nearest
from .evaluated import Plain

ROBUST = "robust"
"""Stands for the accuracy of the verdict: the lowest under any attack."""


class Threshold(NamedTuple):
    """An accuracy that has to be at least `percent`, and what it is."""

    name: str
    percent: float
    found: float

    @property
    def reached(self) -> bool:
        """Return True if the accuracy is at least the bound."""
        return self.found >= self.percent

    def __str__(self) -> str:
        return f"{self.name} accuracy is {self.found:.2f} %, at least {self.percent:g} % is wanted"


def thresholds(found: Plain, wanted: Sequence[str]) -> list[Threshold]:
    """Compare accuracies with bounds such as `robust=45` or `clean=80`, in per cent.

    Args:
        found: The facts of the report of a model.
        wanted: A name and a bound each; the name is `robust`, `clean` or that of an attack.

    Returns:
        The bounds, with what was found.

    Raises:
        UserError: If a bound cannot be read, its accuracy was not measured, or the report has no verdict.
    """
    known = _accuracies(found)
    return [_threshold(text, known) for text in wanted]


def _accuracies(found: Plain) -> dict[str, float]:
    """The accuracies by name, in per cent."""
    rows = {row["name"]: _percent(row["accuracy"]) for row in found["attacks"] or ()}
    verdict = found["verdict"]
    return {ROBUST: _percent(verdict["robust"]["accuracy"]), **rows} if verdict and verdict["robust"] else rows


def _percent(accuracy: Plain) -> float:
    """An accuracy in per cent, rounded once: 29 of 100 are 29 %, which 100 x 0.29 is not."""
    return float(100 * accuracy["correct"] / accuracy["examples"])


def _threshold(text: str, known: dict[str, float]) -> Threshold:
    parts = re.fullmatch(r"(.+)=([\d.]+) ?%?", text)
    percent = float(parts[2]) if parts and parts[2].count(".") < 2 and parts[2] != "." else -1.0
    if parts is None or not 0 <= percent <= 100:
        raise UserError(f"--fail-under {text}: write the name of an accuracy and a percentage, as robust=45")
    if 0 < percent < 1 and "%" not in text:
        raise UserError(
            f"--fail-under {text}: write a percentage, {parts[1]}={100 * percent:g}, or {text}% if you mean it"
        )
    if parts[1] not in known:
        why = nearest(parts[1], known) if known else "the report has no evaluation: run sparring evaluate first"
        raise UserError(f"--fail-under {text}: no accuracy is called {parts[1]!r}: {why}")
    return Threshold(parts[1], percent, known[parts[1]])


def junit(found: Plain, bounds: Sequence[Threshold]) -> str:
    """Write a report as JUnit XML: a test for each bound, each check of the audit and each claim of a study.

    Args:
        found: The facts of the report.
        bounds: The bounds that were asked for.

    Returns:
        The XML text. A bound that is missed and a check that fails are failures; a warning is output of its test.
    """
    suite = ElementTree.Element("testsuite", name=_legal(found["title"]))
    for row in found["attacks"] or ():
        low, high = (100 * row["accuracy"][end] for end in ("low", "high"))
        told = f"{100 * row['accuracy']['accuracy']:.2f} % [{low:.1f}, {high:.1f}]"
        _case(suite, "accuracy", row["name"], output=told)
    for bound in bounds:
        _case(suite, "fail-under", bound.name, failure="" if bound.reached else str(bound), output=str(bound))
    for check in (found["audit"] or {}).get("checks", ()):
        told = f"{check['verdict']}: {check['meaning']}. {check['advice']}"
        failed, skipped = (told if check["verdict"] == kind else "" for kind in ("fail", "skip"))
        _case(suite, "audit", check["name"], failure=failed, skipped=skipped, output=told)
    for each in (found["study"] or {}).get("verdicts", ()):
        _case(suite, "claim", each["claim"], output=each["outcome"])
    for kind, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
        suite.set(kind, str(len(list(suite.iter(tag)))))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _case(
    suite: ElementTree.Element, kind: str, name: str, failure: str = "", skipped: str = "", output: str = ""
) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=kind, name=_legal(name))
    for tag, message in (("failure", failure), ("skipped", skipped)):
        if message:
            ElementTree.SubElement(case, tag, message=_legal(message))
    if output:
        ElementTree.SubElement(case, "system-out").text = _legal(output)


def _legal(text: str) -> str:
    """A text without the characters that XML cannot hold."""
    return re.sub(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", text)
