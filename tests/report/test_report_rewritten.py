"""An audit and an analysis write the report anew, as an evaluation does."""

import pytest
from conftest import toy_data, toy_net
from made import made_run

from sparring import Linf
from sparring.cli import run as shell
from sparring.cli.report import rewrite
from sparring.records.results import Finding


@pytest.fixture
def run(tmp_path):
    return made_run(tmp_path / "run")


def test_an_audit_is_in_the_report_at_once(run, monkeypatch):
    found = Finding("a new check", 1.0, "of a new meaning", "fail", "at most 0", "look again")
    monkeypatch.setattr("sparring.cli.audit._subject", lambda *given: (toy_net(), toy_data(4), Linf(0.1)))
    monkeypatch.setattr("sparring.evaluation.audit", lambda *given, **how: [found])
    assert shell(["audit", str(run.path), "--json"]) == 1
    assert "of a new meaning" in run.report.read_text() and "of a new meaning" in run.model_card.read_text()


def test_an_analysis_is_in_the_report_at_once(run, monkeypatch):
    def analysed(target, options):
        path = run.analysis("landscape", "json")
        path.write_text(path.read_text().replace("how much the loss bends", "of a new meaning"))
        return 0

    monkeypatch.setattr("sparring.cli.analyze.landscape.run", analysed)
    assert shell(["analyze", str(run.path), "landscape"]) == 0
    assert "of a new meaning" in run.report.read_text()


def test_a_folder_of_something_else_gets_no_report(tmp_path):
    (tmp_path / "analysis-landscape.json").write_text("{}")
    rewrite(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["analysis-landscape.json"]
