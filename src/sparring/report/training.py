"""The panels on a training: curves, the best epoch, events of the guard, memorised labels. Imports no torch."""

from typing import Any

import numpy as np

from ..records.clearing import ANALYSES
from ..records.run_folder import RunFolder
from .evaluated import Plain

MOST_POINTS = 400
"""Number of points of a curve; of a longer one, every so many are shown."""


def training(run: RunFolder) -> Plain | None:
    """Return the course of a training; None if there are no metrics."""
    rows = run.metrics()
    if not rows:
        return None
    steps = _thinned([row for row in rows if "terms" in row])
    epochs = [row for row in rows if "held_out" in row]
    best = next((row for row in reversed(epochs) if row.get("best")), None)
    return {
        "finished": run.finished(),
        "outcome": run.outcome() if run.finished() else "the training is not finished",
        "terms": _terms(steps),
        "lr": [[row["epoch"], row["lr"]] for row in steps if "lr" in row],
        "held_out": [{"epoch": row["epoch"], **_held_out(row)} for row in epochs],
        "best_epoch": None if best is None else best["epoch"],
        "gap": None if best is None else best["held_out"]["robust"] - epochs[-1]["held_out"]["robust"],
        "guard": run.guard(),
        "memorised": _memorised(run),
    }


def _thinned(rows: list[Plain]) -> list[Plain]:
    every = -(-len(rows) // MOST_POINTS) if rows else 1
    return rows[::every]


def _terms(rows: list[Plain]) -> dict[str, list[list[float]]]:
    names = dict.fromkeys(name for row in rows for name in row["terms"])
    return {name: [[row["epoch"], row["terms"][name]] for row in rows if name in row["terms"]] for name in names}


def _held_out(row: Plain) -> dict[str, float]:
    return {name: row["held_out"][name] for name in ("clean", "robust")}


def _memorised(run: RunFolder) -> Plain | None:
    """The share of training examples that the net has right, by epoch: of true and of changed labels."""
    if not run.remembers():
        return None
    memory = run.read_memory()
    changed = memory.y != memory.true
    groups = {"labels as they were": ~changed, "changed labels": changed}
    return {
        "epochs": memory.epochs.tolist(),
        "examples": {name: int(which.sum()) for name, which in groups.items() if which.any()},
        "clean": _shares(memory.clean_right, groups),
        "robust": _shares(memory.adversarial_right, groups),
    }


def _shares(right: Any, groups: Plain) -> dict[str, list[float]]:
    return {name: np.mean(right[:, which], axis=1).tolist() for name, which in groups.items() if which.any()}


# -- analyses


def analyses(run: RunFolder) -> list[Plain]:
    """The analyses of a run: their numbers with intervals."""
    return [
        {"kind": kind, "numbers": _estimates(run.read_analysis(kind))}
        for kind in ANALYSES
        if run.analysis(kind, "json").exists()
    ]


def _estimates(value: Any, path: tuple[str, ...] = (), meaning: str = "") -> list[Plain]:
    """All estimates inside a value, objects with `value`, `low` and `high`, with the names that lead to them."""
    if not isinstance(value, dict):
        return []
    meaning = str(value.get("meaning", meaning))
    if {"value", "low", "high"} <= value.keys():
        return [{"name": ": ".join(path), **{key: value[key] for key in ("value", "low", "high")}, "meaning": meaning}]
    if {"accuracy", "low", "high"} <= value.keys():
        number = {"value": value["accuracy"], "low": value["low"], "high": value["high"]}
        return [{"name": ": ".join(path), **number, "meaning": meaning}]
    return [found for key, part in value.items() for found in _estimates(part, (*path, key), meaning)]
