"""All facts of a report as one plain value, from which every format is written. Imports no torch."""

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.writing import finite
from ..records.run_folder import RunFolder
from .comparison import compared, study
from .evaluated import Plain, attack_rows, class_rows, confusion, curve, examples, strongest, waterfall
from .provenance import Base, again, how_evaluated, provenance
from .subjects import Subject, is_study, subjects
from .training import analyses, training
from .verdict import verdict

FORMAT = 1


def facts(targets: Sequence[Path], base: Base = lambda name: None) -> tuple[Plain, list[Subject]]:
    """Gather the facts of a report.

    Args:
        targets: A run folder, several folders or files of evaluations, or the folder of a study.
        base: Gives the recipe of a name as plain values, for the differences of a run from it.

    Returns:
        The facts as values that JSON can hold, and the models that they are of.

    Raises:
        UserError: If a target holds nothing to report, or a study is given together with something else.
    """
    if any(map(is_study, targets)):
        if len(targets) > 1:
            raise UserError("the report of a study is of the study alone: name its folder only")
        return finite(_of_study(targets[0])), []
    found = subjects(targets)
    head = _head([each.name for each in found])
    return finite({**head, **_of_model(found[0], base), "compare": compared(found)}), found


def _head(names: Sequence[str]) -> Plain:
    return {
        "format": FORMAT,
        "kind": "run" if len(names) == 1 else "comparison",
        "title": " · ".join(names),
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "sparring": version("sparring"),
    }


def _of_study(folder: Path) -> Plain:
    held = study(folder)
    return {**_head([held["title"]]), "kind": "study", "study": held, "target": str(folder), **dict.fromkeys(_PANELS)}


_PANELS = (
    *("verdict", "attacks", "waterfall", "curve", "examples", "classes", "confusion", "audit"),
    *("training", "analyses", "compare", "provenance"),
)


def _of_model(subject: Subject, base: Base) -> Plain:
    run = subject.run
    audit = None if run is None else run.audit()
    how: Mapping[str, Any] = how_evaluated(subject).get("how") or {}
    return {
        "target": str(subject.path),
        "verdict": verdict(subject, audit, dict(how)),
        **_of_evaluation(subject),
        "audit": audit,
        "training": _training(run),
        "analyses": None if run is None else analyses(run) or None,
        "study": None,
        "provenance": provenance(subject, base),
    }


def _of_evaluation(subject: Subject) -> Plain:
    result = subject.result
    if result is None:
        return dict.fromkeys(("attacks", "waterfall", "curve", "examples", "classes", "confusion"))
    name = strongest(result)
    return {
        "attacks": attack_rows(result),
        "waterfall": None if name is None else {"attack": name, "steps": waterfall(result, name)},
        "curve": curve(result),
        "examples": {**examples(result), "classes": list(result.classes), "again": again(subject)},
        "classes": {"attack": name, "rows": class_rows(result, name)} if name else None,
        "confusion": confusion(result, name) if name else None,
    }


def _training(run: RunFolder | None) -> Plain | None:
    return None if run is None else training(run)
