"""Writes the notebooks of the tutorials: a page of docs/tutorials with Python in it becomes notebooks/PAGE.ipynb.

    python tools/notebooks.py          # writes them
    python tools/notebooks.py check    # exits with 1 if one is not what its page says

Text becomes text, and a block of Python a cell; one with the name of a file writes that file. What a block printed is
left out: the reader's own run shows it.
"""

import json
import re
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = tuple(ROOT / "docs" / "tutorials" / f"{name}.md" for name in ("attack", "train", "evaluate", "method"))
FOLDER = ROOT / "notebooks"
INSTALL = """\
import importlib.util

if importlib.util.find_spec("sparring") is None:  # on Colab
    %pip install --quiet sparring"""
BLOCK = re.compile(r'^```(python|text)(?: title="(.+?)")?\n(.*?)^```\n', re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[([^]]+)\]\((?!https?:)[^)]+\)")


def cells(page: str) -> list[tuple[str, str]]:
    """The cells of a page, as (kind, source): the installation first, then text and code by turns."""
    found = [("code", INSTALL)]
    texts, *blocks = (BLOCK.split(page)[first::4] for first in range(4))  # text, language, file, block, text, ...
    for text, language, file, block in zip_longest(texts, *blocks, fillvalue=""):
        found.append(("markdown", LINK.sub(r"\1", text).strip()))
        if language == "python":
            found.append(("code", (f"%%writefile {file}\n" if file else "") + block.strip()))
    return [each for each in found if each[1]]


def notebook(page: Path) -> str:
    """The notebook of a page, without outputs."""
    return (
        json.dumps(
            {
                "cells": [cell(number, *each) for number, each in enumerate(cells(page.read_text(encoding="utf-8")))],
                "metadata": {
                    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                    "language_info": {"name": "python"},
                },
                "nbformat": 4,
                "nbformat_minor": 5,
            },
            ensure_ascii=False,
            indent=1,
        )
        + "\n"
    )


def cell(number: int, kind: str, source: str) -> dict[str, Any]:
    """A cell in the format of notebooks."""
    only_code = {"execution_count": None, "outputs": []} if kind == "code" else {}
    lines = source.splitlines(keepends=True)
    return {"cell_type": kind, **only_code, "id": f"cell-{number}", "metadata": {}, "source": lines}


def main(args: list[str]) -> int:
    """Writes or checks all notebooks."""
    wanted = {FOLDER / f"{page.stem}.ipynb": notebook(page) for page in PAGES}
    if args != ["check"]:
        FOLDER.mkdir(exist_ok=True)
        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [
        path.name for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    print(*(f"{name} is not what its page says: run python tools/notebooks.py" for name in stale), sep="\n")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
