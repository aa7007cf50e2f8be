"""The command `sparring report`."""

import json
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import UseAppendAction

from ..core.errors import UserError
from .common import read, say

_REPORT = """\
usage: sparring report RUN | STUDY | EVALUATION.. [--open] [--format html|json|markdown|junit] [--out FILE]
                       [--fail-under NAME=PERCENT]

Writes a report that a browser opens without a network: verdict, attacks, curve over eps, examples, classes, audit,
training, analyses, comparison and provenance, as far as they were measured. RUN is a run folder, STUDY the folder of a
study, and several EVALUATIONs are compared: run folders, folders that sparring evaluate wrote with --out, or .npz files
of per-example results. The page goes to report.html in the folder, with model-card.md beside it; of several
evaluations to the present folder. Exit status: 0, or 1 if an accuracy is lower than --fail-under says.

  sparring report runs/quickstart --open
  sparring report runs/fashion_pgd runs/fashion_trades --out comparison.html
  sparring report runs/quickstart --format junit --out report.xml --fail-under robust=45"""


@dataclass(frozen=True, kw_only=True)
class _Options:
    format: Literal["html", "json", "markdown", "junit"] = "html"
    """html writes a page and a model card; the others are printed, or written to --out."""
    out: str | None = None
    """File to write."""
    open: bool = False
    """Open the page in a browser."""
    fail_under: UseAppendAction[tuple[str, ...]] = ()
    """Exit with status 1 if an accuracy is below a percentage, as robust=45, clean=80 or autoattack=45."""


def report(args: list[str]) -> int:
    targets, rest = _targets(args)
    if not targets and {"-h", "--help"} & set(rest):
        say(_REPORT)
        return 0
    options = read(_Options, rest, "sparring report TARGET", _REPORT)
    if not targets:
        raise UserError(f"nothing to report is named: name a run folder, for example\n{_REPORT}")
    return _reported([Path(target) for target in targets], options)


def _targets(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The targets, which come first, and the options."""
    first = next((i for i, arg in enumerate(args) if arg.startswith("-")), len(args))
    return list(args[:first]), list(args[first:])


def _reported(targets: list[Path], options: _Options) -> int:
    from ..report.gather import facts
    from ..report.thresholds import thresholds

    if options.open and options.format != "html":
        raise UserError(f"--open opens a page, not {options.format}: leave out --format")
    if options.fail_under and len(targets) > 1:
        raise UserError("--fail-under bounds the accuracies of one target: name one alone")
    found, _ = facts(targets, _base_recipe)
    bounds = thresholds(found, options.fail_under)
    if options.format == "html":
        _page(targets, options)
    else:
        _printed(_text(options.format, found, bounds), options.out)
    for bound in bounds:
        if not bound.reached:
            say(f"FAILED: {bound}", sys.stderr)
    return 0 if all(bound.reached for bound in bounds) else 1


def _page(targets: list[Path], options: _Options) -> None:
    from ..report.write import write_report

    path = write_report(targets, Path(options.out) if options.out else None, _base_recipe)
    say(f"report: {path}")
    if options.open and not webbrowser.open(path.resolve().as_uri()):
        say("no browser could be started: open the file yourself", sys.stderr)


def rewrite(folder: Path) -> None:
    """Write the report of a run or of an evaluation anew, after its records have changed; of another folder nothing."""
    from ..report.subjects import is_model
    from ..report.write import write_report

    if is_model(folder):
        write_report([folder], base=_base_recipe)


def _base_recipe(name: str) -> dict[str, Any] | None:
    """Return a recipe of this package as plain values; None if there is none of this name."""
    from ..recipes import entries, find

    return json.loads(json.dumps(find(name)().plain())) if name in entries() else None


def _text(kind: str, found: Mapping[str, Any], bounds: Sequence[Any]) -> str:
    from ..report.markdown import markdown
    from ..report.thresholds import junit

    if kind == "json":
        return json.dumps(found, indent=2, allow_nan=False) + "\n"
    return junit(dict(found), bounds) if kind == "junit" else markdown(dict(found))


def _printed(text: str, out: str | None) -> None:
    from ..core.writing import write_bytes

    if out is None:
        say(text.removesuffix("\n"))
    else:
        write_bytes(Path(out), text.encode())
