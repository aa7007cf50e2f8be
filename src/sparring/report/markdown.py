"""A report as Markdown: the model card of a model, the table of a comparison or of a study. Imports no torch."""

import math
import re
from collections.abc import Iterable, Sequence

from ..records.results import Accuracy
from .evaluated import Plain
from .wording import percent, with_interval

_HEAD = """\
---
library_name: sparring
tags:
- adversarial-robustness
- image-classification
---
"""


def markdown(found: Plain) -> str:
    """Write the facts of a report as Markdown.

    Args:
        found: The facts, as `facts` gathers them.

    Returns:
        The text: a model card with the metadata that model hubs read, or the tables of a study.
    """
    parts = _study(found["study"]) if found["study"] else _card(found)
    return "\n\n".join(part for part in parts if part) + "\n"


def plainly(text: object) -> str:
    """A text from elsewhere as Markdown shows it, without any mark-up in it."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~$])", r"\\\1", line)


def code(text: object) -> str:
    """A text as code, fenced by more backticks than it holds."""
    line = " ".join(str(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def block(text: str, language: str = "") -> str:
    """Lines of code as a block, fenced by more backticks than they hold."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _interval(plain: Plain) -> str:
    return with_interval(Accuracy(plain["correct"], plain["examples"]))


# -- the model card


def _card(found: Plain) -> list[str]:
    verdict, provenance = found["verdict"], found["provenance"]
    return [
        f"{_HEAD}\n# {plainly(found['title'])}",
        plainly(f"{verdict['sentence']}. {verdict['answer']}") if verdict else "The model was not evaluated.",
        "## Evaluation",
        _attacks(found["attacks"]),
        _listed([f"{name}: {text}" for name, text in verdict["facts"]]) if verdict else "",
        _section("Notes", _listed(verdict["notes"]) if verdict else ""),
        _section("What this does not say", _listed(verdict["silent"]) if verdict else ""),
        _section("Comparison", _compared(found["compare"])),
        _section("Audit", _audit(found["audit"])),
        _section("Training", plainly(found["training"]["outcome"]) + "." if found["training"] else ""),
        _section("Provenance", "\n\n".join(_provenance(provenance))),
        _section("References", block("\n\n".join(provenance["bibtex"]), "bibtex")),
    ]


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _listed(texts: Iterable[str]) -> str:
    return "\n".join(f"- {plainly(text)}" for text in texts)


def _attacks(rows: Sequence[Plain] | None) -> str:
    if not rows:
        return "Nothing was evaluated."
    found = [[plainly(row["name"]), plainly(row.get("threat", "")), _interval(row["accuracy"])] for row in rows]
    return table(["attack", "threat", "accuracy, 95 % interval"], found)


def _audit(audit: Plain | None) -> str:
    if audit is None:
        return ""
    rows = [[plainly(each["name"]), each["verdict"], plainly(each["meaning"])] for each in audit["checks"]]
    return table(["check", "verdict", "found"], rows)


def _compared(compare: Plain | None) -> str:
    if compare is None:
        return ""
    head = ["model", *map(plainly, compare["attacks"])]
    rows = [[plainly(row["name"]), *(_interval(row[name]) for name in compare["attacks"])] for row in compare["rows"]]
    pairs = [
        [plainly(f"{pair['first']}, less {pair['second']}: {name}"), _points(each), f"{each['p']:.3g}"]
        for pair in compare["pairs"]
        for name, each in pair.get("by", {}).items()
    ]
    differing = [
        f"{plainly(name)} is another attack in one of the evaluations: its accuracies cannot be compared."
        for name in compare["differing"]
    ]
    unpaired = [
        f"{plainly(pair['first'])} and {plainly(pair['second'])} cannot be paired: {plainly(pair['reason'])}."
        for pair in compare["pairs"]
        if "reason" in pair
    ]
    paired = [table(["paired difference", "points", "p"], pairs)] if pairs else []
    return "\n\n".join([table(head, rows), *differing, *paired, *unpaired])


def _points(each: Plain) -> str:
    value, low, high = (
        100 * _known(each[key]) for key in ("value" if "value" in each else "difference", "low", "high")
    )
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _provenance(provenance: Plain) -> Iterable[str]:
    yield from (block(command, "sh") for command in provenance["commands"])
    if provenance["changed"]:
        yield f"Changed against the recipe {code(provenance['base'])}:"
        yield "\n".join(f"- {code(each)}" for each in provenance["changed"])
    for when in ("training", "evaluation"):
        if held := provenance[when]:
            yield f"{when.capitalize()}: " + plainly(", ".join(f"{key} {text}" for key, text in held.items()))
    yield "\n".join(f"- {plainly(name)}: {code(text)}" for name, text in provenance["hashes"].items())


# -- studies


def _study(study: Plain) -> list[str]:
    names = list(next(iter(study["arms"].values()))["accuracy"]["last"])
    ranked = sorted(study["arms"].items(), key=lambda each: -each[1]["accuracy"]["last"]["worst"]["value"])
    rows = [[plainly(arm), *(_estimate(each["accuracy"]["last"].get(name)) for name in names)] for arm, each in ranked]
    claims = [[plainly(each["claim"]), _found(each), each["outcome"]] for each in study["verdicts"]]
    return [
        f"# {plainly(study['title'])}",
        f"{len(rows)} trainings x {study['seeds']} seeds, {study['examples']} test images, the last weights.",
        table(["training", *map(plainly, names)], rows),
        "## Claims",
        table(["claim", "found", "verdict"], claims),
    ]


def _estimate(each: Plain | None) -> str:
    return "" if each is None else f"{percent(each['value'])} [{100 * each['low']:.1f}, {100 * each['high']:.1f}]"


def _found(each: Plain) -> str:
    if not each.get("unit"):
        return f"{_points(each)} points"
    value, low, high = (_known(each[key]) for key in ("value", "low", "high"))
    return f"{value:+.3g} [{low:+.3g}, {high:+.3g}] {plainly(each['unit'])}"


def _known(value: float | None) -> float:
    return math.nan if value is None else value
