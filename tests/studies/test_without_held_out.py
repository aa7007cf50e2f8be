"""A study whose trainings hold no images out has no curves, and tells nothing of collapse."""

from dataclasses import replace

import pytest

from sparring import FGSM, CrossEntropy, Linf, Method
from sparring.core.errors import UserError
from sparring.records.statistics import Claim
from sparring.studies.collapse import COLLAPSED
from sparring.studies.running import run_study
from sparring.studies.study import RUN, Arm, Study

pytestmark = pytest.mark.slow


def study(tiny, statistic):
    one = replace(tiny, epochs=1, held_out=0)
    other = replace(one, method=Method(FGSM(Linf(0.1)), CrossEntropy()))
    return Study(
        name="unselected",
        title="PGD and FGSM",
        source="https://arxiv.org/abs/1706.06083",
        baseline="PGD-2",
        arms=(Arm("PGD-2", one), Arm("FGSM", other)),
        claims=(Claim("PGD is better.", "PGD-2 less FGSM", statistic),),
        seeds=1,
    )


def test_without_held_out_images_a_study_has_tables_and_no_curves(tiny, tmp_path):
    found = run_study(
        study(tiny, lambda c: c("PGD-2", "worst") - c("FGSM", "worst")), tmp_path, scale="smoke", workers=1
    )
    assert found.curves == {}
    assert all(row.passes > 0 for row in found.rows)
    page = (tmp_path / "report.html").read_text()
    assert "curves" not in page.split("<main")[0]
    assert 'id="curves"' not in page
    assert 'id="arms"' in page
    assert (tmp_path / "figure.svg").stat().st_size > 1000


def test_without_held_out_images_a_collapse_is_not_called_absent(tiny, tmp_path):
    with pytest.raises(UserError, match=f"'{COLLAPSED}' of 'FGSM' .* was not measured"):
        run_study(study(tiny, lambda c: 1 - c("FGSM", COLLAPSED, RUN)), tmp_path, scale="smoke", workers=1)
