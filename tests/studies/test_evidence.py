"""The page of all claims is what its tool writes from the stored results, headlines first."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from sparring.records.statistics import DECIDED

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("evidence", ROOT / "tools" / "evidence.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(text, heading):
    """The cells of the table below a heading."""
    lines = text.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]


def test_the_pages_are_what_the_tool_writes_from_the_results(tool):
    pages = tool.written(ROOT / "results", ROOT / "docs")
    assert len(pages) > 6
    for path, text in pages.items():
        assert path.read_text() == text, f"{path.name} is stale: python tools/evidence.py results docs"


def test_every_paper_has_headlines_and_each_is_a_claim_that_was_judged(tool):
    for each in tool.stored(ROOT / "results", ROOT / "docs"):
        if each.page is not None:
            assert 1 <= len(set(each.headlines.values())) <= 3, each.study.name
            assert set(each.headlines) <= {verdict.claim for verdict in each.verdicts}


def test_verdicts_follow_from_their_intervals_by_the_claims_of_today(tool):
    for each in tool.stored(ROOT / "results", ROOT / "docs"):
        claims = {claim.sentence: claim for claim in each.study.claims}
        for verdict in each.verdicts:
            claim = claims[verdict.claim]
            assert (verdict.rule, claim.untestable) == (claim.rule, verdict.reason if claim.untestable else "")
            if verdict.outcome in DECIDED or not verdict.reason:
                assert verdict.outcome == claim.outcome(verdict.low, verdict.high), verdict.claim


@pytest.fixture
def results(tmp_path):
    """The results of two studies, the second with fewer claims, a reason and a claim that is not the study's."""
    for name in ("moat-cpu", "tricks-cpu"):
        shutil.copytree(ROOT / "results" / name, tmp_path / "results" / name)
    path = tmp_path / "results" / "tricks-cpu" / "study.json"
    plain = json.loads(path.read_text())
    first, second = plain["verdicts"][:2]
    first |= {"outcome": "supported", "seeds": 10}
    second |= {"claim": "Another | claim.", "outcome": "not testable here", "reason": "of no reason"}
    path.write_text(json.dumps({**plain, "verdicts": [first, second], "scale": "gpu", "looks": [3, 5]}))
    (tmp_path / "docs").mkdir()
    shutil.copytree(ROOT / "docs" / "papers", tmp_path / "docs" / "papers")
    return tmp_path


def test_headlines_come_first_with_what_the_abstract_says(tool, results):
    pages = tool.written(results / "results", results / "docs")
    page = pages[results / "docs" / "evidence.md"]
    [tricks] = [row for row in rows(page, "The headline claims of the abstracts") if "tricks" in row[0]]
    assert tricks[0] == "[tricks](papers/tricks.md)" and "7 points" in tricks[1]
    assert tricks[2] == "Too little weight decay costs robustness." and tricks[-3:] == ["10", "gpu", "**supported**"]
    others = rows(page, "All other claims")
    assert ["Another \\", "claim."] in [row[1:3] for row in others]
    assert "**not testable here**: of no reason" in page
    assert results / "docs" / "papers" / "tricks.md" not in pages, "the table of that page is of another scale"


def test_claims_that_were_not_measured_count_as_undecided(tool, results):
    page = tool.written(results / "results", results / "docs")[results / "docs" / "evidence.md"]
    _, tricks = rows(page, "How many claims are decided")
    assert tricks[1:5] == ["1 of 1", "1 of 22", "1", "0"]  # 21 claims, and the one that is not the study's
    assert tricks[5:] == [
        "`sparring study tricks --scale gpu --until-decided`",
        "[tricks-cpu](../results/tricks-cpu/table.md)",
    ]
