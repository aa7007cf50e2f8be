"""Every public name has a place in the API reference, and every page of docs one in the navigation."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import yaml

import sparring

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import docstrings  # noqa: E402
import documentation  # noqa: E402

PAGES = dict(documentation.reference())
PLACES = set(re.findall(r"^::: (\S+)$", "\n".join(PAGES.values()), re.MULTILINE))
ANCHORS = set(re.findall(r"\{#(\S+)\}", PAGES["index.md"]))


def thing(name):
    """What a dotted name stands for."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


@pytest.mark.parametrize("package", docstrings.PACKAGES)
def test_every_public_name_of_a_package_has_a_place(package):
    """The package is asked as it runs, the reference is written from its source."""
    known = {id(thing(name)) for name in PLACES}
    missing = [name for name, each in docstrings.public(package) if id(each) not in known]
    assert missing == []


def test_every_top_level_name_has_an_anchor_that_leads_to_its_place():
    rooms = {name for name in sparring.__all__ if documentation.is_room(name) and thing(f"sparring.{name}").__doc__}
    assert {f"sparring.{name}" for name in sparring.__all__} - ANCHORS <= {f"sparring.{name}" for name in rooms}
    for name, place in re.findall(r"^\| \[`(\w+)`\]\[(\S+?)\]", PAGES["index.md"], re.MULTILINE):
        assert place in PLACES
        assert thing(place) is getattr(sparring, name)


def test_every_name_that_the_documents_import_has_a_place():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.py")]
    known = {id(thing(name)) for name in PLACES}
    for page in pages:
        for module, names in re.findall(r"^from (sparring[\w.]*) import ([\w, ]+)$", page.read_text(), re.MULTILINE):
            for name in names.split(", "):
                found = getattr(importlib.import_module(module), name)
                recipe = module.startswith("sparring.recipes.")  # `sparring list` has these
                assert id(found) in known or recipe, f"{page.name}: {module}.{name}"


def test_no_thing_has_two_places():
    places = re.findall(r"^::: (\S+)$", "\n".join(PAGES.values()), re.MULTILINE)
    assert len(places) == len(PLACES) == len({documentation.defined(name) for name in places})


def leaves(nav):
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    return [page for value in values for page in leaves(value)]


def test_every_page_is_in_the_navigation_once(tmp_path):
    documentation.lay_out(tmp_path / "laid")
    laid = {str(path.relative_to(tmp_path / "laid")) for path in (tmp_path / "laid").rglob("*.md")}
    listed = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(listed) == len(set(listed))
    assert set(listed) == {page for page in laid if not page.startswith("results/")}


def test_a_site_without_an_anchor_or_with_a_foreign_script_is_refused(tmp_path):
    names = documentation.surface().values()
    anchors = "".join(f'<h2 id="{name}">' for name in [*names, *(f"sparring.{n}" for n in documentation.top_level())])
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "search_index.js").write_text("sparring.attacks.PGD")
    (tmp_path / "page.html").write_text(anchors)
    assert list(documentation.faults(tmp_path)) == []
    broken = anchors.replace('id="sparring.fit"', "") + '<script src="https://elsewhere/x.js">'
    (tmp_path / "page.html").write_text(broken)
    assert list(documentation.faults(tmp_path)) == [
        "sparring.fit has no anchor",
        "page.html loads https://elsewhere/x.js, which is not there without a network",
    ]
