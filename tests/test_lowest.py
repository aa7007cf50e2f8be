"""The lower bounds of pyproject.toml are what `make test-lowest` installs, and every requirement has one."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import sparring

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins():
    done = subprocess.run([sys.executable, ROOT / "tools" / "lowest.py"], capture_output=True, text=True, check=True)
    return dict(line.split("==") for line in done.stdout.split())


def test_every_requirement_is_pinned_to_its_lower_bound():
    found = pins()
    extras = {
        name: extra for name, extra in PROJECT["optional-dependencies"].items() if name not in ("docs", "release")
    }
    given = [*PROJECT["dependencies"], *(each for extra in extras.values() for each in extra)]
    wanted = [re.split(r"\W*>=\W*", each) for each in given if not each.startswith("sparring[")]
    assert found == dict(wanted)
    assert len(found) > 15


def test_names_that_are_modules_too_give_the_function():
    """lazy-loader before 0.6 gave the module `sparring.evaluate`."""
    from sparring import evaluate

    assert callable(evaluate)
    assert callable(sparring.evaluate)


def test_the_fast_tests_of_make_are_there():
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    names = re.search(r"^FAST +:= (.+)$", text, re.MULTILINE)[1].split()
    assert len(names) > 15
    assert not [name for name in names if not (ROOT / "tests" / f"{name}.py").exists()]
