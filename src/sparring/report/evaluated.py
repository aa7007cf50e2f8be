"""The panels of one evaluation: attacks, the curve over eps, examples, classes. Imports no torch."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..records.results import Accuracy, Array, EvaluationResult
from .wording import attack_name, eps_of, rounded, threat_name

Plain = dict[str, Any]
CURVE_POINTS = 81
LARGEST_MATRIX = 20
"""Number of classes up to which a confusion matrix is shown whole; of more, the most frequent confusions are."""
CONFUSIONS = 15


def accuracy(each: Accuracy) -> Plain:
    """An accuracy as a report holds it."""
    return {**each.plain(), "correct": each.correct}


def adversaries(result: EvaluationResult) -> list[str]:
    """Names of the adversaries, without their stages and without clean images."""
    return [name for name in result.robust if "/" not in name and name != "clean"]


def stages(result: EvaluationResult, name: str) -> list[str]:
    """Names of the stages of an adversary; its own name if it has one stage."""
    return [each for each in result.robust if each.startswith(f"{name}/")] or [name]


def strongest(result: EvaluationResult) -> str | None:
    """The adversary that leaves the fewest examples, the last of those alike; None if there was none."""
    found = adversaries(result)
    return min(reversed(found), key=lambda name: int(result.robust[name].sum()), default=None)


def withstands(result: EvaluationResult, name: str) -> Array:
    """Return `[N]`, which examples are robust under an adversary, and have no smaller distance than its eps."""
    robust, text = result.robust[name], result.about.get(name, "")
    eps, norm = eps_of(text), distance_norm(result)
    if result.distance is None or eps is None or not norm or not text.startswith(f"{norm}("):
        return robust
    return robust & (result.distance > np.float32(eps))


def attack_rows(result: EvaluationResult) -> list[Plain]:
    """One row for clean images, for each adversary and for each of its stages: accuracy, passes and seconds."""
    rows = [{"name": "clean", "label": "clean images", "stage": False, "threat": "", "accuracy": _of(result, "clean")}]
    for name in adversaries(result):
        parts = stages(result, name)
        rows.append(_row(result, name, parts, stage=False))
        rows += [_row(result, part, [part], stage=True, of=name) for part in parts if part != name]
    return rows


def _row(result: EvaluationResult, name: str, parts: list[str], *, stage: bool, of: str = "") -> Plain:
    passes, seconds = ([group[part] for part in parts if part in group] for group in (result.passes, result.seconds))
    owner = of or name
    return {
        "name": name,
        "label": name.rpartition("/")[2] if stage else attack_name(name, result.settings.get(f"adversary {name}", "")),
        "stage": stage,
        "threat": threat_name(result.about.get(owner, "")),
        "accuracy": _of(result, name),
        "attacked": _before(result, owner, parts[0]),
        "passes": sum(passes) if len(passes) == len(parts) else None,
        "seconds": sum(seconds) if len(seconds) == len(parts) else None,
    }


def _of(result: EvaluationResult, name: str) -> Plain:
    return accuracy(result.table()[name])


def _before(result: EvaluationResult, name: str, stage: str) -> int:
    """Number of examples that a stage attacked: those that were robust before it."""
    chain = ["clean", *stages(result, name)]
    return int(result.robust[chain[chain.index(stage) - 1]].sum())


def waterfall(result: EvaluationResult, name: str) -> list[Plain]:
    """Return the number of examples lost at each step, from all of them to those that are robust under an adversary."""
    left, steps = len(result.label), []
    for step in ("clean", *stages(result, name)):
        robust = int(result.robust[step].sum())
        label = "wrong without attack" if step == "clean" else step.rpartition("/")[2]
        steps.append({"name": label, "lost": left - robust, "left": robust})
        left = robust
    return steps


def curve(result: EvaluationResult) -> Plain | None:
    """Accuracy against eps, from the smallest distances found; None if none were searched."""
    if result.distance is None:
        return None
    norm = distance_norm(result)
    points: list[Plain] = [
        {"name": name, "eps": eps, "accuracy": _of(result, name)}
        for name in adversaries(result)
        if (eps := eps_of(text := result.about.get(name, ""))) is not None and text.startswith(norm)
    ]
    finite = result.distance[np.isfinite(result.distance)]
    reach = max(
        [1e-3, *(1.5 * point["eps"] for point in points), float(np.quantile(finite, 0.99)) if len(finite) else 0]
    )
    grid = [float(f"{eps:.4g}") for eps in np.linspace(0, reach, CURVE_POINTS)]
    found = [accuracy(result.robust_at(eps)) for eps in grid]
    return {"norm": norm, "eps": grid, "accuracy": found, "points": points, "median": result.median_distance()}


def distance_norm(result: EvaluationResult) -> str:
    """The norm in which the smallest distances were searched, "" if the result does not say."""
    texts = [text for text in result.settings.values() if text.startswith("MinimumNorm(")]
    found = re.search(r"\b(\w+)\(eps=", texts[0]) if texts else None
    return "" if found is None else found[1]


def examples(result: EvaluationResult) -> Plain:
    """Facts about every example, column by column, under the adversary of the gallery, else under the strongest."""
    name = result.gallery.adversary if result.gallery is not None else strongest(result) or "clean"
    fates = ["", *dict.fromkeys(["clean", *(each.rpartition("/")[2] for each in stages(result, name))])]
    broken = result.broken_by(name) if name != "clean" else np.where(result.robust["clean"], "", "clean")
    index = np.arange(len(result.label)) if result.index is None else result.index
    columns = {
        "index": index.tolist(),
        "label": result.label.tolist(),
        "fate": [fates.index(each) for each in broken],
        "clean": _whole(result.predicted.get("clean")),
        "predicted": _whole(result.predicted.get(name)),
        "clean_margin": _numbers(result.margin.get("clean")),
        "margin": _numbers(result.margin.get(name)),
        "norm": _numbers(result.norm.get(name)),
        "distance": _numbers(result.distance),
    }
    there = {key: values for key, values in columns.items() if values is not None}
    return {"adversary": name, "fates": fates, "columns": there, "pictured": _pictured(result)}


def _pictured(result: EvaluationResult) -> Plain | None:
    if result.gallery is None:
        return None
    shown = result.gallery
    return {
        "row": shown.row.tolist(),
        "clean_confidence": _numbers(shown.clean_confidence),
        "confidence": _numbers(shown.adversarial_confidence),
    }


def _whole(values: Array | None) -> list[int] | None:
    return None if values is None else values.tolist()


def _numbers(values: Array | None) -> list[float | None] | None:
    return None if values is None else [rounded(float(each)) for each in values]


def class_rows(result: EvaluationResult, name: str) -> list[Plain]:
    """Clean and robust accuracy of each class that has examples, the least robust first."""
    clean = result.by_class("clean")
    return [
        {"name": each, "clean": accuracy(clean[each]), "robust": accuracy(found)}
        for each, found in result.by_class(name).items()
    ]


def confusion(result: EvaluationResult, name: str) -> Plain | None:
    """Return the confusion matrix under an adversary, or, of many classes, the most frequent confusions."""
    predicted = result.predicted.get(name)
    if predicted is None:
        return None
    classes = result.classes
    if len(classes) <= LARGEST_MATRIX:
        counts = np.zeros((len(classes), len(classes) + 1), dtype=int)
        np.add.at(counts, (result.label, np.where(predicted < 0, len(classes), predicted)), 1)
        return {"counts": counts[:, :-1].tolist(), "none": counts[:, -1].tolist()}
    return {"pairs": list(_confused(result.label, predicted, classes))}


def _confused(label: Array, predicted: Array, classes: tuple[str, ...]) -> Iterator[Plain]:
    wrong = (predicted != label) & (predicted >= 0)
    pairs, counts = np.unique(np.stack([label[wrong], predicted[wrong]]), axis=1, return_counts=True)
    for place in np.argsort(-counts, kind="stable")[:CONFUSIONS]:
        true, taken = pairs[:, place]
        yield {"class": classes[true], "predicted": classes[taken], "count": int(counts[place])}


def by_threat(result: EvaluationResult) -> Mapping[str, list[str]]:
    """The adversaries by the text of their threat, "" for those that nothing bounds."""
    found: dict[str, list[str]] = {}
    for name in adversaries(result):
        found.setdefault(result.about.get(name, ""), []).append(name)
    return found
