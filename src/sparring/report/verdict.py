"""Verdict of a report: how robust the model is, and the limits of that number. Imports no torch."""

from collections import Counter
from typing import Any

from ..records.results import Accuracy, EvaluationResult
from .evaluated import Plain, accuracy, adversaries, by_threat, stages, strongest, waterfall, withstands
from .subjects import Subject
from .wording import attack_name, percent, threat_meaning, threat_name, with_interval

_ADAPTIVE = "AutoAttack"


def verdict(subject: Subject, audit: Plain | None, how: Plain) -> Plain | None:
    """The verdict on a model; None if it was not evaluated."""
    result = subject.result
    if result is None:
        return None
    table = result.table()
    threats = [_under(result, text, names) for text, names in by_threat(result).items()]
    return {
        "clean": accuracy(table["clean"]),
        "robust": min(threats, key=lambda each: each["accuracy"]["accuracy"], default=None),
        "threats": threats,
        "sentence": _sentence(result, threats, audit),
        "answer": _answer(result, audit),
        "weights": subject.weights,
        "facts": _facts(subject, result, how, audit),
        "audit": None if audit is None else dict(Counter(check["verdict"] for check in audit["checks"])),
        "notes": list(result.notes),
        "silent": _silent(subject, result, audit),
    }


def _under(result: EvaluationResult, text: str, names: list[str]) -> Plain:
    """The accuracy under the strongest adversary of a threat and, if it was run, the search for smallest distances."""
    table = result.table()
    name = min(reversed(names), key=lambda each: table[each].correct)
    found = _withstood(result, name)
    return {
        "threat": threat_name(text) if text else "no bound",
        "attack": name,
        "described": _described(result, name),
        "accuracy": accuracy(found),
        "text": with_interval(found),
    }


def _withstood(result: EvaluationResult, name: str) -> Accuracy:
    robust = withstands(result, name)
    return Accuracy(int(robust.sum()), len(robust))


def _sentence(result: EvaluationResult, threats: list[Plain], audit: Plain | None) -> str:
    parts = [f"{each['threat']}: {each['text']} under {each['described']}" for each in threats]
    parts = parts or [f"clean: {with_interval(result.table()['clean'])}"]
    parts.append(f"{len(result.label):,} images")
    return f"{', '.join(parts)}; {audit_words(audit, result)}"


def _answer(result: EvaluationResult, audit: Plain | None) -> str:
    """Say whether the model is robust, and which attack breaks it."""
    name, table = strongest(result), result.table()
    right, guess = table["clean"], f"it does no better than a guess among {len(result.classes)} classes"
    if _by_chance(right, result):
        return f"Even without an attack {guess}: its robustness means nothing."
    if name is None:
        return "Nothing attacked it, so nothing is known of its robustness."
    attack, threat = _described(result, name), threat_name(result.about.get(name, ""))
    within = f"within {threat} " if threat else ""
    left = _withstood(result, name)
    broken = right.correct - left.correct
    of = f"of the {right.correct:,} images that are right without an attack"
    if not broken:
        said = f"Robust as far as {attack} can tell: {within}it breaks none {of}."
    else:
        most = max(waterfall(result, name)[1:], key=lambda step: int(step["lost"]))
        by = f", {most['lost']:,} of them by {most['name']}" if len(stages(result, name)) > 1 else ""
        how = f"Not robust: {within}{guess}, as " if _by_chance(left, result) else f"Robust in part: {within}"
        said = f"{how}{attack} breaks {broken:,} {of} ({percent(broken / right.correct, 0)}){by}."
    return said if audit is None or audit["passed"] else f"{said} Do not rely on it: the audit failed."


def _by_chance(accuracy: Accuracy, result: EvaluationResult) -> bool:
    return accuracy.interval[0] <= 1 / len(result.classes)


def _described(result: EvaluationResult, name: str) -> str:
    attack = attack_name(name, result.settings.get(f"adversary {name}", ""))
    more = int(withstands(result, name).sum()) < int(result.robust[name].sum())
    return f"{attack} with the search for smallest distances" if more else attack


def audit_words(audit: Plain | None, result: EvaluationResult) -> str:
    """The outcome of an audit in a few words, with its threat where the evaluation has another."""
    if audit is None:
        return "not audited"
    counts = Counter(check["verdict"] for check in audit["checks"])
    words = {"pass": "pass", "warn": "warning", "fail": "failed", "skip": "skipped"}
    told = [
        f"{counts[key]} {word}{'s' * (key == 'warn' and counts[key] > 1)}" for key, word in words.items() if counts[key]
    ]
    threat = audit.get("threat")
    within = f" within {threat_name(threat)}" if threat and threat not in result.about.values() else ""
    return f"audit{within} {', '.join(told)}"


_WEIGHTS = {"best": "best", "last": "last epoch", "weights": "the file of weights", "model": "a model of your own"}


def _facts(subject: Subject, result: EvaluationResult, how: Plain, audit: Plain | None) -> list[tuple[str, str]]:
    """Name and value of what a reader has to know of the number."""
    examples = _chosen(how, "evaluation", "examples")
    count = f"{len(result.label):,}"
    shard = "" if result.shard is None else f", part {result.shard} of the images"
    found = [
        *((threat_name(text), threat_meaning(text)) for text in by_threat(result)),
        ("weights", _WEIGHTS.get(subject.weights, subject.weights)),
        ("chosen as", str(how.get("selected", ""))),
        ("images", f"{count}{shard}"),
        (
            "split",
            f"test, {'the first ' + f'{examples:,}' if examples else 'all of it'}" if "evaluation" in how else "",
        ),
        ("attacks ran on", str(result.settings.get("search", ""))),
        ("verified in", "float32, on the model itself" if result.settings else ""),
        ("seed", str(result.settings.get("seed", ""))),
        ("audit", audit_words(audit, result).removeprefix("audit ")),
    ]
    return [(name, value) for name, value in found if value]


def _chosen(how: Plain, *path: str) -> Any:
    value: Any = how
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _silent(subject: Subject, result: EvaluationResult, audit: Plain | None) -> list[str]:
    """Return sentences on the limits of the number."""
    names, texts = adversaries(result), result.settings
    said = []
    if not names:
        return ["Nothing attacked the model: clean accuracy says nothing about robustness."]
    if not any(texts.get(f"adversary {name}", "").startswith(_ADAPTIVE) for name in names):
        said.append("No ensemble of attacks was run: AutoAttack may find adversarial examples where these did not.")
    if audit is None:
        said.append("Nothing looked for masked gradients, which make weak models look robust to gradient attacks.")
    elif not audit["passed"]:
        said.append("The audit found signs of masked gradients: the true robust accuracy may be far lower.")
    bounds = " and ".join(threat_name(text) for text in by_threat(result) if text)
    if bounds:
        said.append(
            f"Nothing is said of perturbations outside {bounds}: other norms, larger ones, blur, noise, rotations."
        )
    said.append("Each number is an upper bound: an attack that was made for this model may break more images.")
    said.append("The intervals are those of the images; another training of the same recipe gives another model.")
    if subject.run is not None and not subject.run.finished():
        said.append("The training is not finished: it is these weights that were attacked, not those of its end.")
    if subject.weights == "last":
        said.append("These are the last weights, not those of the best epoch.")
    return said
