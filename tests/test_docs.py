"""What the documents show is run; what they cite is there."""

import re
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import toy_data, toy_net

from sparring.attacks import Square
from sparring.core.types import pixels
from sparring.recipes import entries

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
README = (ROOT / "README.md").read_text()
ROOMS = "|".join(path.parent.name for path in (ROOT / "src/sparring").glob("*/__init__.py"))


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_every_example_runs_and_is_short(path, tmp_path, monkeypatch, capsys):
    """The first as a process of its own; of the others, AutoAttack's last attack takes 100 queries instead of 5,000."""
    assert len(path.read_text().splitlines()) < 75
    if path == EXAMPLES[0]:
        done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sparring.evaluation.auto_attack.Square", partial(Square, queries=100))
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("number", range(len(blocks(README, "python"))))
def test_every_python_block_of_the_readme_runs_on_any_model(number, tmp_path, monkeypatch):
    """`model`, `x`, `y`, `batches` are the reader's own; no block needs more than 12 lines."""
    monkeypatch.chdir(tmp_path)
    code = blocks(README, "python")[number]
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("#")]) <= 12
    data = toy_data(24)
    x, y = pixels(data.x), data.y
    batches = [(x[i : i + 8], y[i : i + 8], torch.arange(i, i + 8)) for i in (0, 8, 16)]
    names = {"model": toy_net(), "x": x, "y": y, "batches": batches, "device": "cpu"}
    names["loader"] = [(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)]
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_to_a_file_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_recipe_and_file_that_is_named_exists(page):
    text = page.read_text()
    for name in re.findall(r"sparring (?:train|show) ([a-z]\w+)\b(?!\.py)", text):
        assert name in entries(), name
    for name in re.findall(rf"`((?:{ROOMS})/\w+\.py)`", text):
        assert (ROOT / "src" / "sparring" / name).exists(), name


def test_the_documents_show_trades_as_it_is():
    shown = blocks((ROOT / "docs" / "adding-a-method.md").read_text(), "python")
    assert (ROOT / "src/sparring/objectives/trades.py").read_text() in shown


def test_the_public_names_are_all_there_and_typed():
    import sparring

    for name in sparring.__all__:
        assert getattr(sparring, name) is not None
    assert (ROOT / "src" / "sparring" / "py.typed").exists()


def test_no_figure_is_missing_from_the_documents():
    assert not [page.name for page in PAGES if "@@" in blocks_out(page.read_text())]


def blocks_out(text):
    """The text without its diffs, whose headers have @@."""
    return re.sub(r"```diff\n.*?```", "", text, flags=re.DOTALL)
