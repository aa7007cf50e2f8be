"""Writes the results of a study: tables, verdicts, a figure, and the results of every example."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.writing import replacing, write_bytes, write_json
from ..records.run_folder import RunFolder
from ..records.statistics import Verdict
from ..report.studies import plot_study
from ..report.write import write_report
from .findings import Findings, Row
from .study import WEIGHTS, WORST, Study

Estimate = tuple[float, float, float]


def write(
    findings: Findings, folder: Path, scale: str, environment: dict[str, Any], precision: dict[str, list[str]]
) -> None:
    """Write `study.json`, `table.csv`, `table.md` with the verdicts, figures, `examples.npz` and `report.html`.

    `environment` describes where the trainings ran, from their run folders, and `precision` the precision of the
    attacks.
    """
    where = {"environment": environment, "precision": precision}
    write_json(folder / "study.json", {**_plain(findings, scale), **where})
    write_bytes(folder / "table.csv", _csv(findings).encode())
    footer = [f"Precision of attacks: {_in_words(precision)}.", "", f"Environment: {_environment(environment)}", ""]
    write_bytes(folder / "table.md", "\n".join([*_markdown(findings, scale), *footer]).encode())
    with replacing(folder / "examples.npz") as file:
        np.savez_compressed(file, **{"/".join(cell): flags for cell, flags in findings.flags.items()})  # type: ignore[arg-type]
    rows = [
        (row.arm, {name: row.accuracy["last", name] for name in findings.adversaries if ("last", name) in row.accuracy})
        for row in findings.rows
    ]
    for kind in ("svg", "png"):
        plot_study(rows, findings.curves, findings.study.title, folder / f"figure.{kind}")
    write_report([folder])


def precision_of(runs: Iterable[RunFolder]) -> dict[str, list[str]]:
    """Return the precision of attacks in training and in evaluation, as text: one entry each unless runs differ."""
    found: dict[str, dict[str, None]] = {"training": {}, "evaluation": {}}
    for run in runs:
        begun, evaluated = run.backend() or {}, run.evaluation().get("how") or {}
        found["training"][begun.get("precision", _NOT_RECORDED)] = None
        found["evaluation"][evaluated.get("search", _NOT_RECORDED)] = None
    return {when: list(words) for when, words in found.items()}


_NOT_RECORDED = "not recorded"


def _in_words(precision: dict[str, list[str]]) -> str:
    parts = "; ".join(f"in {when} {' or '.join(words)}" for when, words in precision.items())
    return f"{parts} (in L2, L1 and for minimum-norm attacks fp32). Adversarial examples are verified in fp32"


def _plain(findings: Findings, scale: str) -> dict[str, Any]:
    study = findings.study
    arms = {
        row.arm: {
            "passes_a_step": row.passes_a_step,
            "million_passes": row.passes,
            "seeds": findings.flags[row.arm, "last", WORST].shape[0],
            "examples": findings.flags[row.arm, "last", WORST].shape[1],
            "accuracy": _nested(row.accuracy),
            "difference": _nested(row.difference),
            "by_seed": {
                which: {
                    name: flags.mean(1).tolist()
                    for (arm, weights, name), flags in findings.flags.items()
                    if (arm, weights) == (row.arm, which)
                }
                for which in WEIGHTS
            },
        }
        for row in findings.rows
    }
    return {
        "study": study.name,
        "title": study.title,
        "source": study.source,
        "scale": scale,
        "seeds": study.seeds,
        **({"looks": list(findings.looks)} if findings.looks else {}),
        "examples": max(_examples(findings)),
        "baseline": study.baseline,
        "arms": arms,
        **({"numbers": _plain_numbers(findings)} if findings.numbers else {}),
        "verdicts": [verdict.plain() for verdict in findings.verdicts],
        "curves": {arm: {"passes": x.tolist(), "held_out": y.tolist()} for arm, (x, y) in findings.curves.items()},
    }


def _plain_numbers(findings: Findings) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for (owner, name), estimate in findings.estimates.items():
        found.setdefault(owner, {})[name] = {**_named(estimate), "by_seed": findings.numbers[owner, name].tolist()}
    return found


def _nested(estimates: Any) -> dict[str, dict[str, dict[str, float]]]:
    return {
        which: {name: _named(estimate) for (weights, name), estimate in estimates.items() if weights == which}
        for which in WEIGHTS
    }


def _named(estimate: Estimate) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), estimate, strict=True))


def _csv(findings: Findings) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *("arm", "passes_a_step", "million_passes", "weights", "adversary"),
            *("accuracy", "low", "high", "difference", "difference_low", "difference_high"),
        ]
    )
    for row in findings.rows:
        for (which, name), estimate in row.accuracy.items():
            less = row.difference.get((which, name))
            numbers = [*(f"{value:.5f}" for value in estimate), *(f"{v:.5f}" for v in less or ())]
            numbers += [""] * (6 - len(numbers))
            writer.writerow([row.arm, f"{row.passes_a_step:.4f}", f"{row.passes:.4f}", which, name, *numbers])
    return out.getvalue()


def _markdown(findings: Findings, scale: str) -> list[str]:
    study, names = findings.study, findings.adversaries
    head = [
        "training",
        "passes a step",
        "million passes",
        *names,
        f"worst, less that of {study.baseline}",
        "best epoch less last",
    ]
    ranked = sorted(findings.rows, key=lambda row: -row.accuracy["last", "worst"][0])
    return [
        f"# {study.title}",
        "",
        f"`sparring study {study.name} --scale {scale}`: {len(findings.rows)} trainings x {_seeds(study)} seeds, "
        f"{' or '.join(map(str, _examples(findings)))} test images, the last weights. Accuracy in per cent with 95 % "
        "intervals (Student's t over seeds, with the variance of the test images; paired for differences). "
        f"*worst* counts an image only if it is robust to every attack{_apart(study)}. A pass is forward and backward.",
        "",
        _row(head),
        _row(["---", *["---:"] * (len(head) - 1)]),
        *(_row(_cells(row, findings)) for row in ranked),
        "",
        *_numbers(findings),
        *claims_table(findings.verdicts),
        "",
        *(f"- {remark}" for remark in study.remarks),
        "",
    ]


def claims_table(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the claims with their verdicts as Markdown, with what the columns mean."""
    levels = sorted({round(100 * verdict.level, 2) for verdict in verdicts})
    head = ["claim", "number", "found", "seeds", "detectable", "verdict at this scale"]
    return [
        "## Claims",
        "",
        "*Found* is the mean over seeds (points of accuracy unless noted) with its interval, in which seeds are the "
        f"replications. Its confidence is {' or '.join(f'{level:g}' for level in levels)} %: the more, the more claims "
        "belong together or the more often they are looked at. *Detectable* is the smallest effect beyond the bound "
        "that would be supported in 80 % of such studies, if seeds differ as much as here; for a claim that something "
        "does not matter, the smallest margin; for a share of trainings, the smallest share.",
        "",
        _row(head),
        _row(["---", "---", "---:", "---:", "---:", "---"]),
        *(_row(_claim(verdict)) for verdict in verdicts),
    ]


def _claim(verdict: Verdict) -> list[str]:
    outcome = f"**{verdict.outcome}**{f': {verdict.reason}' if verdict.reason else ''}"
    return [verdict.claim, verdict.rule, verdict.found(), str(verdict.seeds), verdict.power(), outcome]


def _numbers(findings: Findings) -> list[str]:
    """Return tables of numbers that are not accuracies on the test images: for trainings, and for groups of them."""
    estimates = findings.estimates
    arms = [row.arm for row in findings.rows]
    groups = [name for name in dict.fromkeys(owner for owner, _ in estimates) if name not in arms]
    names = list(dict.fromkeys(name for owner, name in estimates if owner in arms))
    rows = list(dict.fromkeys(name for owner, name in estimates if owner in groups))
    own = _table("training", names, {arm: [estimates.get((arm, name)) for name in names] for arm in arms})
    shared = _table("", groups, {name: [estimates.get((group, name)) for group in groups] for name in rows})
    if not names:
        return []
    head = [
        "## Other numbers",
        "",
        "Means over the seeds with 95 % intervals (Student's t). Accuracies and shares are between 0 and 1.",
        "",
    ]
    return [*head, *own, "", *([*shared, ""] if groups else [])]


def _table(corner: str, columns: list[str], rows: dict[str, list[Estimate | None]]) -> list[str]:
    lines = [_row([name, *map(_number, cells)]) for name, cells in rows.items() if any(cells)]
    return [_row([corner, *columns]), _row(["---", *["---:"] * len(columns)]), *lines]


def _number(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate[0]):
        return ""
    value, low, high = estimate
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _seeds(study: Study) -> str:
    """Return the number of seeds of an arm, or the smallest and the largest."""
    counts = sorted({study.seeds_of(arm) for arm in study.arms})
    return " to ".join(str(count) for count in (counts if len(counts) == 1 else (counts[0], counts[-1])))


def _examples(findings: Findings) -> list[int]:
    """Return the numbers of test images of the arms, each once."""
    return sorted({flags.shape[1] for flags in findings.flags.values()})


def _apart(study: Study) -> str:
    return f" but {', '.join(study.apart)}" if study.apart else ""


def _cells(row: Row, findings: Findings) -> list[str]:
    gap = _gap(row)
    return [
        row.arm,
        f"{row.passes_a_step:.2f}",
        f"{row.passes:.2f}",
        *(_percent(row.accuracy.get(("last", name))) for name in findings.adversaries),
        "" if row.arm == findings.study.baseline else _points(row.difference.get(("last", "worst"))),
        gap,
    ]


def _gap(row: Row) -> str:
    return f"{100 * (row.accuracy['best', 'worst'][0] - row.accuracy['last', 'worst'][0]):+.1f}"


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    value, low, high = (100 * number for number in estimate)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _points(estimate: Estimate | None) -> str:
    if estimate is None:  # of other test images than the baseline
        return ""
    value, low, high = (100 * number for number in estimate)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _environment(environment: dict[str, Any]) -> str:
    wanted = {key: environment[key] for key in ("started", "commit", "platform", "device", "threads")}
    return ", ".join(f"{key} {value}" for key, value in {**wanted, **environment["versions"]}.items())
