"""The verdicts of studies that ran before the rule of today are those of that rule on the stored numbers."""

import importlib.util
import json
from pathlib import Path

import pytest

from sparring.records.statistics import judge

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STORED = [path for path in sorted((ROOT / "results").glob("*/study.json")) if "earlier_verdicts" in path.read_text()]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("rejudge", ROOT / "tools" / "rejudge.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_stored_verdicts_are_those_of_the_rule(path, tool):
    plain = json.loads(path.read_text())
    study = tool.studied(plain)
    verdicts = judge(study.claims, tool.Stored(plain))
    assert [verdict.claim for verdict in verdicts] == [each["claim"] for each in plain["verdicts"]]
    for verdict, stored in zip(verdicts, plain["verdicts"], strict=True):
        assert (verdict.outcome, verdict.reason) == (stored["outcome"], stored["reason"])
        assert (verdict.low, verdict.high) == pytest.approx((stored["low"], stored["high"]), rel=1e-4, abs=1e-6)
    both = (ROOT / "results" / "verdicts.md").read_text()
    for verdict in verdicts:
        assert f"| {verdict.found()} | {verdict.power()} | {verdict.outcome} |" in both
    assert len(tool.origins(study)) == len(study.claims)
    assert set(tool.origins(study)) == set(range(len(plain["earlier_verdicts"])))


def test_the_variance_by_images_is_found_from_an_earlier_interval(tool):
    """An interval by Satterthwaite's degrees of freedom, made from known variances."""
    from scipy.stats import t

    values = tool.np.array([0.70, 0.71, 0.72])
    between, images = values.var(ddof=1) / 3, 0.02**2
    half = t.isf(0.025, 2 * ((between + images) / between) ** 2) * (between + images) ** 0.5
    interval = {"value": 0.71, "low": 0.71 - half, "high": 0.71 + half}
    assert tool._images(interval, values) == pytest.approx(images, rel=0.01)
    assert tool._images(interval, values * 0 + 0.71) == pytest.approx((half / 1.96) ** 2, rel=0.01)
