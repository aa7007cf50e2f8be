"""The page of a report: one HTML file that needs nothing else. Imports no torch."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .evaluated import Plain
from .pictures import picture, sheets
from .subjects import Subject
from .wording import percent


def page(found: Plain, models: Sequence[Subject]) -> str:
    """Write the page of the facts.

    Args:
        found: The facts, as `facts` gathers them.
        models: The models that they are of; the pictures are those of the first.

    Returns:
        The HTML text.
    """
    result = models[0].result if models else None
    gallery = None if result is None else result.gallery
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=found,
            facts=for_script(found),
            sheets=for_script(None if gallery is None else sheets(gallery)),
            figures=_figures(found, models),
            style=Markup(_asset("report.css")),
            script=Markup(_asset("report.js")),
            command=_commands(found),
        )
    )


def _figures(found: Plain, models: Sequence[Subject]) -> dict[str, str | None]:
    """The figures of the analyses of a run by kind."""
    run = models[0].run if models else None
    kinds = [each["kind"] for each in found["analyses"] or ()]
    return {} if run is None else {kind: picture(run.analysis(kind, "png")) for kind in kinds}


def for_script(value: Any) -> Markup:
    """JSON that can stand in a script element: no letter of it can end the element or begin a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _commands(found: Plain) -> dict[str, str]:
    """The commands that would fill panels without data: of a model that was not trained here, on its name and data."""
    folder = shlex.quote(found["target"])
    target, options, out = folder, "", ""
    commands = [shlex.split(command) for command in (found.get("provenance") or {}).get("commands", ())]
    if commands and all(words[1:2] == ["evaluate"] for words in commands) and ":" in "".join(commands[-1][2:3]):
        words = commands[-1]
        target, out = shlex.quote(words[2]), f" --out {folder}"
        given = [(flag, words[words.index(flag) + 1]) for flag in ("--data", "--threat") if flag in words[:-1]]
        options = "".join(f" {flag} {shlex.quote(value)}" for flag, value in given)
    return {
        "evaluate": f"sparring evaluate {target}{options} --autoattack standard{out}",
        "min_norm": f"sparring evaluate {target}{options} --autoattack standard --min-norm{out}",
        "audit": f"sparring audit {target}{options}",
        "analyze": f"sparring analyze {target} landscape{options}",
        "compare": f"sparring report {folder} runs/other",
    }


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sparring.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "duration": duration, "points": points}
    return environment


def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def number(value: float | None) -> str:
    """A number with three significant digits and its thousands apart."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def points(value: float | None) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """A time in the unit that suits it."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
