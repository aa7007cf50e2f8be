"""Checks the docstrings of public names: a summary, and the sections that the signature asks for.

    python tools/docstrings.py [PACKAGE ..]

Public are the names in `__all__` of the packages below; of modules without it, what they define; and single names of
other modules.
A docstring has one sentence first, then, in Google's style and
as far as there is something to say, `Args` (the parameters, in order), `Returns` or `Yields`, `Raises`, `References`.
Prints each fault and exits with 1 if there are any.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

PACKAGES = (
    *("acceleration", "analysis", "attacks", "data", "evaluation", "models", "objectives", "recipes", "records"),
    *("studies", "training", "core.errors", "core.modes", "core.rng", "core.schedules", "core.serialization"),
    *("core.types", "records.results", "runs.doctor", "runs.fit", "runs.load", "runs.recipe", "testing"),
    *("training.hooks", "bench"),
)
NAMES = (
    *(
        "attacks.gradients.value_and_grad",
        "core.foreign.trust",
        "core.teachers.Teacher",
        "data.looks.CentralSquare",
        "data.looks.RandomWindow",
    ),
    *("records.statistics.Claim", "runs.own.fit", "runs.own.recipe_for", "runs.trackers.Tracker"),
    *("studies.running.run_study", "studies.study.Arm", "studies.study.JointMeasurement", "studies.study.Measurement"),
    "studies.study.Study",
)
SECTIONS = ("Args", "Returns", "Yields", "Raises", "References", "Example")


def public(package: str) -> Iterator[tuple[str, Any]]:
    """The classes and functions that a package exports, or that a module defines."""
    module = importlib.import_module(f"sparring.{package}")
    for name in getattr(module, "__all__", vars(module)):
        thing = getattr(module, name)
        ours = hasattr(module, "__all__") or getattr(thing, "__module__", "") == module.__name__
        if ours and not name.startswith("_") and (inspect.isclass(thing) or inspect.isfunction(thing)):
            yield f"{thing.__module__}.{name}", thing


def named(name: str) -> tuple[str, Any]:
    """A public thing of a module whose other names are not public."""
    module, _, last = name.rpartition(".")
    return f"sparring.{name}", getattr(importlib.import_module(f"sparring.{module}"), last)


def sections(doc: str) -> dict[str, str]:
    """The text of each section of a clean docstring, and of what comes before the first, under ""."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):[ ]*$", doc, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def documented(args: str) -> list[str]:
    """The names that an `Args` section describes, in order."""
    return re.findall(r"^ {4}\*{0,2}(\w+)(?: \([^)]*\))?:", args, flags=re.MULTILINE)


def parameters(thing: Any) -> list[str]:
    """The parameters of a function, or of what makes an object of a class."""
    made = inspect.isclass(thing) and inspect.isfunction(thing.__init__)
    if inspect.isclass(thing) and (not made or getattr(thing, "_is_protocol", False)):
        return []
    return [name for name in inspect.signature(thing).parameters if not name.startswith("_")]


def faults(thing: Any) -> Iterator[str]:
    """What is wrong with one docstring."""
    doc = inspect.getdoc(thing) if thing.__doc__ else None
    if not doc:
        yield "has no docstring"
        return
    found = sections(doc)
    summary = found[""].split("\n\n")[0]
    if not summary.rstrip().endswith("."):
        yield "does not begin with a sentence"
    if len(summary.splitlines()) > 1:
        yield "begins with more than one line"
    wanted, args = parameters(thing), documented(found.get("Args", ""))
    if wanted != args:
        yield f"has Args {args}, and the parameters are {wanted}"
    if inspect.isfunction(thing):
        hint = inspect.signature(thing).return_annotation
        if hint not in (None, "None", inspect.Signature.empty) and not {"Returns", "Yields"} & found.keys():
            yield "has no Returns"


def main(packages: list[str]) -> int:
    """Prints the faults of all packages, or of some; how many there are decides the exit status."""
    seen, count = set(), 0
    single = [] if packages else [named(name) for name in NAMES]
    for name, thing in [*(each for package in packages or PACKAGES for each in public(package)), *single]:
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        for fault in faults(thing):
            count += 1
            print(f"{name} {fault}")
    print(f"{len(seen)} public names, {count} faults")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
