"""The panel that compares: several evaluations on the same images, or the arms of a study. Imports no torch."""

import shlex
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ..core.errors import UserError
from ..core.reading import read_json
from ..records.results import EvaluationResult
from .evaluated import Plain, accuracy, adversaries, curve
from .provenance import environment
from .subjects import STUDY, Subject
from .wording import attack_name, threat_name


class Estimate(TypedDict):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


class _Judged(TypedDict):
    claim: str
    rule: str
    value: float
    low: float
    high: float
    outcome: str
    unit: NotRequired[str | None]
    seeds: NotRequired[int]
    detectable: NotRequired[float | None]
    reason: NotRequired[str]


class _Arm(TypedDict):
    passes_a_step: float
    million_passes: float
    accuracy: dict[str, dict[str, Estimate]]
    difference: dict[str, dict[str, Estimate]]


class _Curve(TypedDict):
    passes: list[float]
    held_out: list[float]


class _Study(TypedDict):
    study: str
    source: str
    scale: str
    seeds: int
    examples: int
    baseline: str
    arms: dict[str, _Arm]
    verdicts: list[_Judged]
    curves: dict[str, _Curve]
    title: NotRequired[str]


def compared(found: Sequence[Subject]) -> Plain | None:
    """Compare the evaluations that count of several subjects, or the weights of one; None if there is only one.

    `main` is the strongest attack that all have with the same threat, `best` the model with the highest accuracy under
    it, and `conclusions` say which differences are real.
    """
    named = _named(found)
    if len(named) < 2:
        return None
    common = [name for name in adversaries(named[0][1]) if all(name in each.robust for _, each in named)]
    rows: list[Plain] = [
        {"name": name, **{under: accuracy(each.table()[under]) for under in ("clean", *common)}} for name, each in named
    ]
    pairs = [_pair(a, b, ["clean", *common]) for a, b in combinations(named, 2)]
    differing = _differing(named, common)
    alike = [name for name in reversed(common) if name not in differing]
    main = min(alike, key=lambda name: sum(row[name]["correct"] for row in rows), default="clean")
    curves = {name: curve(each) for name, each in named if each.distance is not None}
    norm = next((found["norm"] for found in curves.values() if found), None)
    return {
        "attacks": ["clean", *common],
        "main": main,
        "best": max(rows, key=lambda row: row[main]["accuracy"])["name"],
        "rows": rows,
        "pairs": pairs,
        "under": _under(named, main),
        "conclusions": [_conclusion(pair, main, _under(named, main), differing) for pair in pairs],
        "curves": {name: found for name, found in curves.items() if found and found["norm"] == norm},
        "differing": differing,
    }


def _named(found: Sequence[Subject]) -> list[tuple[str, EvaluationResult]]:
    if len(found) == 1:
        alike: dict[str, tuple[str, EvaluationResult]] = {}
        for name, each in found[0].evaluations.items():
            alike.setdefault(each.settings.get("model", name), (name, each))  # the last weights may be the best
        return list(alike.values())
    return [(each.name, each.result) for each in found if each.result is not None]


def _pair(a: tuple[str, EvaluationResult], b: tuple[str, EvaluationResult], names: Sequence[str]) -> Plain:
    """The paired differences of two evaluations; without them, the reason why their images cannot be paired."""
    try:
        return {"first": a[0], "second": b[0], "by": {name: a[1].paired(b[1], name).plain() for name in names}}
    except UserError as error:
        return {"first": a[0], "second": b[0], "reason": str(error)}


def _under(named: Sequence[tuple[str, EvaluationResult]], main: str) -> str:
    """An attack that all have, with its threat if that is the same for all."""
    threats = {threat_name(each.about.get(main, "")) for _, each in named}
    threat = f" ({threats.pop()})" if len(threats) == 1 and threats != {""} else ""
    return f"{attack_name(main, named[0][1].settings.get(f'adversary {main}', ''))}{threat}"


def _conclusion(pair: Plain, main: str, under: str, differing: Sequence[str]) -> str:
    """Which of two models is better under the strongest attack that both have, and without attack."""
    first, second = pair["first"], pair["second"]
    if "reason" in pair:
        return f"{first} and {second} cannot be paired: {pair['reason']}."
    accurate = _told_apart(first, second, pair["by"]["clean"], "accurate")
    if main == "clean":
        others = f" They were not attacked alike by {' and '.join(map(str, differing))}." if differing else ""
        return f"{accurate}.{others}"
    return f"{_told_apart(first, second, pair['by'][main], 'robust')} under {under}. Without attack, {accurate}."


def _told_apart(first: str, second: str, found: Plain, word: str) -> str:
    low, high = 100 * found["low"], 100 * found["high"]
    if low <= 0 <= high:
        return f"{first} and {second} are not told apart: their difference is between {low:+.1f} and {high:+.1f} points"
    better, worse = (first, second) if low > 0 else (second, first)
    low, high = sorted(map(abs, (low, high)))
    return f"{better} is more {word} than {worse}, by {low:.1f} to {high:.1f} points"


def _differing(named: Sequence[tuple[str, EvaluationResult]], names: Sequence[str]) -> list[str]:
    """The attacks that are called alike and differ, in their threat or otherwise."""
    return [name for name in names if any(each.differs(named[0][1], name) for _, each in named)]


# -- studies


def study(folder: Path) -> Plain:
    """The results of a study, from its `study.json`."""
    held: Any = read_json(folder / STUDY, "repeat the study", _Study)
    command = (held.get("environment") or {}).get("command") or []
    seeds = _of_arms(held, "seeds")
    return {
        **{key: held.get(key) for key in ("study", "source", "scale", "baseline", "numbers")},
        "seeds": " to ".join(dict.fromkeys((seeds[0], seeds[-1]))),
        "examples": " or ".join(_of_arms(held, "examples")),
        "title": held.get("title") or held["study"],
        "arms": {name: _arm(each) for name, each in held["arms"].items()},
        "verdicts": [
            {"unit": None, "seeds": None, "detectable": None, "reason": "", **each} for each in held["verdicts"]
        ],
        "curves": held["curves"],
        "environment": environment(held.get("environment") or {}),
        "command": shlex.join(["sparring", *map(str, command[1:])]) if command[1:2] == ["study"] else None,
        "precision": held.get("precision"),
    }


def _of_arms(held: Plain, name: str) -> list[str]:
    """Return the values that arms have of a number, each once, the smallest first."""
    return [f"{count:,}" for count in sorted({arm.get(name, held[name]) for arm in held["arms"].values()})]


def _arm(arm: Plain) -> Plain:
    return {key: arm[key] for key in ("passes_a_step", "million_passes", "accuracy", "difference")}
