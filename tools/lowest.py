"""Prints every lower bound of pyproject.toml as a pin, a line each, for `make test-lowest`; those of tools aside."""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOOLS = ("docs", "release")  # extras that build the site and the packages, in environments of their own
BOUND = re.compile(r"([\w-]+) >= ([\w.]+)")


def pins(project: dict[str, Any]) -> Iterator[str]:
    """`name==bound` for each requirement of the package and of its extras; an extra that names another adds nothing.

    Raises `ValueError` for one without a lower bound: there would be no lowest version to test.
    """
    extras = [extra for name, extra in project["optional-dependencies"].items() if name not in TOOLS]
    for requirement in (*project["dependencies"], *(each for extra in extras for each in extra)):
        if requirement.startswith(f"{project['name']}["):
            continue
        found = BOUND.fullmatch(requirement)
        if found is None:
            raise ValueError(f"{requirement!r} has no lower bound: write it as 'name >= version'")
        yield f"{found[1]}=={found[2]}"


if __name__ == "__main__":
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    sys.stdout.write("\n".join(pins(tomllib.loads(pyproject.read_text())["project"])) + "\n")
