"""A study with a time: what headline claims need is trained first, what is done is told, and the next command goes on.

Trainings are copies of one run (see test_until_decided.py), each of which takes a minute by the clock of the test.
"""

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_until_decided import RATES, study, template, trained  # noqa: F401 - fixtures

from sparring import UserError
from sparring.cli import run as shell
from sparring.records.outcomes import Outcomes
from sparring.records.statistics import Claim
from sparring.studies import entries, find, running, sharing, work
from sparring.studies.running import run_study
from sparring.studies.study import RUN

pytestmark = pytest.mark.slow


@pytest.fixture
def minutes(trained, monkeypatch):  # noqa: F811
    """The trainings that were done; each takes a minute."""
    start = time.time()
    clock = SimpleNamespace(time=lambda: start + 60 * len(trained), sleep=time.sleep)
    for module in (running, sharing):
        monkeypatch.setattr(module, "time", clock)
    return trained


@pytest.fixture
def headed(study):  # noqa: F811
    """A study whose second claim is the headline of the paper."""
    first, second = study.claims
    return replace(study, claims=(first, replace(second, headline="the paper says so")), baseline="bad")


def run(study, folder, **how):  # noqa: F811
    return run_study(study, folder, scale="smoke", workers=1, **how)


def test_what_the_headline_claim_needs_is_done_first_and_told_and_the_next_command_goes_on(headed, minutes, tmp_path):
    said = []
    found = run(headed, tmp_path, hours=6.5 / 60, log=said.append)
    assert minutes == [*(f"{arm}-{seed}" for arm in ("bad", "as-bad") for seed in range(3)), "good-0", "tables"]
    assert said[-1] == (
        "the time is over, and 2 trainings are not done: give the command again. "
        "The verdicts are on 1 of 2 claims, for which all trainings are done"
    )
    assert found.study.remarks[-1] in f"{said[-1]}." and [row.arm for row in found.rows] == ["bad", "as bad"]
    minutes.clear()
    rest = run(headed, tmp_path)
    assert minutes == ["good-1", "good-2", "tables"]
    assert len(rest.verdicts) == 2 and rest.verdicts[1] == found.verdicts[0], "what was told stays true"


def test_a_time_that_is_too_short_for_any_claim_is_an_error_that_says_how_to_go_on(headed, minutes, tmp_path):
    with pytest.raises(UserError, match="the time is over, and 4 trainings are not done: give the command again"):
        run(headed, tmp_path, hours=4.5 / 60)
    assert len(minutes) == 5


def test_looks_at_added_seeds_begin_only_when_all_trainings_are_done(headed, minutes, tmp_path):
    found = run(headed, tmp_path, hours=6.5 / 60, until_decided=True)
    assert found.looks == (3, 5, 8, 12, 18) and len(minutes) == 8
    assert [verdict.seeds for verdict in found.verdicts] == [3]


# -- the parts of a study


def test_a_part_has_the_claims_that_need_nothing_else(headed):
    assert [claim.sentence for claim in headed.part({"bad", "as bad"}).claims] == ["as bad beats bad"]
    assert headed.part({"good", "as bad"}) is None, "it has no baseline"
    assert headed.part({"bad"}) is None, "it has no claim"
    family = tuple(replace(claim, family="both") for claim in headed.claims)
    assert replace(headed, claims=family).part({"bad", "as bad"}) is None, "its verdict depends on the other claim"
    analysed = Claim("a number", "it", lambda c: c("bad", "tau", RUN), unit="(number)")
    collapsed = Claim("a fall", "it", lambda c: c("bad", "collapsed", RUN), most=True)
    both = replace(headed, claims=(analysed, collapsed)).part(set(RATES))
    assert both.claims == (collapsed,), "numbers of analyses are computed from all runs, and perhaps are not there yet"


def test_an_adversary_that_only_other_arms_have_does_not_stand_in_the_way_of_a_part(headed):
    evaluation = headed.arms[0].recipe.evaluation
    more = {**evaluation.adversaries, "wide": next(iter(evaluation.adversaries.values()))}
    recipe = replace(headed.arms[0].recipe, evaluation=replace(evaluation, adversaries=more))
    first = replace(headed.arms[0], recipe=recipe)
    both = replace(headed, arms=(first, *headed.arms[1:]), apart=("wide",))
    assert both.part({"bad", "as bad"}).apart == () and both.part(set(RATES)).apart == ("wide",)


@pytest.mark.parametrize("name", entries())
def test_what_a_claim_uses_is_known_before_there_are_results(name):
    studied = find(name)("smoke")
    known = {arm.name for arm in studied.arms}
    for claim in studied.claims:
        cells = studied.asked(claim)
        assert cells and studied.needed(cells) & known
        made_up = Outcomes({}, dict.fromkeys(cells, np.array([0.5])))
        if not claim.sentence.startswith("Stopping the attack early loses less"):  # looks for the name of an attack
            assert made_up.asked(claim.statistic) == cells
    ranks = studied.ranks()
    assert set(ranks) == known
    assert min(ranks.values()) == 0, "some arm decides the first headline claim, or there is none"


def test_a_training_waits_for_those_of_its_seed_that_its_recipe_names(tmp_path):
    selfsup = replace(find("selfsup")("smoke"), seeds=2)
    works = work.trainings(selfsup, selfsup.plan("smoke").trainings(tmp_path), ())
    after = {each.name: set(each.after) for each in works}
    assert after["amdim-sat-1"] == {"amdim-1"} and after["amdim-1"] == set()
    names = [each.name for each in works]
    first = {"supervised-0", "supervised-1", "amdim-0", "amdim-1"}
    assert set(names[:4]) == first, "the first headline claim is about these"
    assert names.index("amdim-sat-0") < names.index("simclr-0"), "the next one needs no arm that is not a headline's"


def test_an_arm_whose_name_ends_that_of_another_does_not_wait_for_itself(study):  # noqa: F811
    good, bad, _ = study.arms
    teacher = replace(bad, name=f"Teacher, {good.name}")
    student = replace(good, recipe=replace(good.recipe, init_from=f"{teacher.folder}-{{seed}}"), after=True)
    named = replace(study, arms=(student, teacher), claims=()).named
    assert named(student) == (teacher,) and named(teacher) == ()
    beside = replace(student, recipe=replace(good.recipe, init_from=f"../others/{bad.folder}-{{seed}}"))
    assert replace(study, arms=(beside, bad), claims=()).named(beside) == (bad,), "a path, too"


def test_a_training_that_names_none_waits_for_all_others(tmp_path):
    memorization = find("memorization")("smoke")
    works = work.trainings(memorization, memorization.plan("smoke").trainings(tmp_path), ())
    after = {each.name: set(each.after) for each in works}
    assert after["the-easy-80-0"] == {"pgd-at-0"}
    assert len(after["the-random-80-0"]) == len(memorization.arms) - 3


# -- the command


@pytest.mark.parametrize(("budget", "hours"), [("8", 8), ("8h", 8), ("10m", 1 / 6), ("1.5h", 1.5), (".5", 0.5)])
def test_a_budget_has_a_unit(budget, hours, monkeypatch, tmp_path):
    given = {}

    def asked(study, folder, **how):  # noqa: F811
        given.update(how)
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "run_study", asked)
    assert shell(["study", "tricks", "--scale", "smoke", "--out", str(tmp_path), "--budget", budget]) == 130
    assert given["hours"] == pytest.approx(hours)


def test_a_budget_without_sense_is_refused(capsys, tmp_path):
    assert shell(["study", "tricks", "--scale", "smoke", "--out", str(tmp_path / "none"), "--budget", "10s"]) == 2
    assert "--budget 10s is no time: write hours as 8 or 8h, minutes as 10m" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
