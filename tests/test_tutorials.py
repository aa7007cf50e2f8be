"""The notebooks are those of the tutorials, hold no outputs, and run from the first cell to the last."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import notebooks  # noqa: E402

BOOKS = sorted(notebooks.FOLDER.glob("*.ipynb"))
pytestmark = pytest.mark.slow


def test_there_is_a_notebook_for_each_of_four_tutorials():
    assert [book.stem for book in BOOKS] == sorted(page.stem for page in notebooks.PAGES)
    assert len(BOOKS) == 4


def test_the_notebooks_are_what_the_pages_say(tmp_path, monkeypatch, capsys):
    assert notebooks.main(["check"]) == 0, capsys.readouterr().out
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    assert notebooks.main(["check"]) == 1, "none is there"


@pytest.mark.parametrize("book", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_holds_no_output_and_installs_first(book):
    held = json.loads(book.read_text())
    nbformat.validate(held)
    code = [cell for cell in held["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert held["cells"][0] is not None and "%pip install --quiet sparring" in "".join(held["cells"][0]["source"])


def test_cells_follow_the_page_and_leave_out_what_was_printed():
    page = "# A\n\nSee [b](b.md), [c](https://c).\n\n```python\nx = 1\n```\n\n```text\n1\n```\n\n"
    page += '```python title="f.py"\ny = 2\n```\n\n```sh\nls\n```\n'
    assert notebooks.cells(page)[1:] == [
        ("markdown", "# A\n\nSee b, [c](https://c)."),
        ("code", "x = 1"),
        ("code", "%%writefile f.py\ny = 2"),
        ("markdown", "```sh\nls\n```"),
    ]


def test_every_notebook_runs_and_warns_of_nothing(tmp_path):
    """In one kernel, which forgets all names in between: starting four would take most of the time."""
    whole = nbformat.v4.new_notebook()
    for book in BOOKS:
        whole.cells += [nbformat.v4.new_code_cell("%reset -f"), *nbformat.read(book, as_version=4).cells]
    NotebookClient(whole, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in whole.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    for told in ("half of the images", "loss after an epoch", "fail  gradient flow", "half-and-half less pgd-at"):
        assert told in printed


def test_the_study_of_the_tutorial_is_one(tmp_path):
    page = (ROOT / "docs" / "tutorials" / "study.md").read_text()
    path = tmp_path / "mystudies.py"
    path.write_text(re.search(r'^```python title="mystudies.py"\n(.*?)^```$', page, re.DOTALL | re.MULTILINE)[1])
    spec = importlib.util.spec_from_file_location("mystudies", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert [arm.name for arm in made.study("smoke").arms] == ["standard", "adversarial"]
