"""Seeds that are added until claims are decided: to which trainings, how far, within a budget, and by several at once.

The trainings are copies of one run whose results are drawn by arm and seed.
"""

import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest

from sparring import RunFolder, UserError, fit
from sparring.cli import run as shell
from sparring.records.estimates import Mean
from sparring.records.outcomes import Outcomes
from sparring.records.statistics import Claim, judge
from sparring.runs.load import evaluate_run
from sparring.studies import running, work
from sparring.studies.findings import _open, aggregate
from sparring.studies.jobs import Plan, leases_of
from sparring.studies.running import run_study
from sparring.studies.study import RUN, Arm, JointMeasurement, Study

pytestmark = pytest.mark.slow

RATES = {"good": 0.9, "bad": 0.3, "as bad": 0.3}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A finished run, and its recipe."""
    import conftest

    recipe = replace(conftest.tiny.__wrapped__(), epochs=1)
    run = fit(recipe, tmp_path_factory.mktemp("template") / "run")
    evaluate_run(run, recipe)
    return run, recipe


@pytest.fixture
def trained(template, monkeypatch):
    """Replace training by copying, and list the trainings that were done."""
    done = []

    def copy(job, plain, measurements, outdated, device):
        done.append(job.name)
        # made elsewhere, and moved in one step: others look at the folder meanwhile
        run = RunFolder(shutil.copytree(template[0].path, job.path.parents[1] / "being copied" / job.path.name))
        run.begin(plain)
        rng = np.random.default_rng([job.seed, *job.arm.encode()])
        for which in ("best", "last"):
            flags = run.read_flags(which)
            robust = rng.random(len(flags.label)) < RATES[job.arm]
            run.write_flags(which, replace(flags, robust=dict.fromkeys(flags.robust, robust)))
        job.path.parent.mkdir(exist_ok=True)
        shutil.rmtree(job.path, ignore_errors=True)  # what clearing a run leaves is its lock
        run.path.rename(job.path)
        return "copied"

    monkeypatch.setattr(work, "_trained", copy)
    monkeypatch.setattr(running, "write", lambda findings, *args: done.append("tables"))
    return done


def more(arm, other, **how):
    return Claim(f"{arm} beats {other}", "worst", lambda c: c(arm, "worst") - c(other, "worst"), **how)


@pytest.fixture
def study(template):
    return Study(
        name="three",
        title="Three",
        source="nowhere",
        baseline="good",
        arms=tuple(Arm(name, replace(template[1], lr=0.1 + number)) for number, name in enumerate(RATES)),
        claims=(more("good", "bad"), more("as bad", "bad")),
        seeds=3,
    )


class Alike(Outcomes):
    """Numbers of seeds that share the error of the test images."""

    def __init__(self, numbers, images):
        super().__init__({}, numbers)
        self.numbers, self.images = numbers, images

    def of(self, seeds):
        return Alike({cell: each[:seeds] for cell, each in self.numbers.items()}, self.images)

    def estimate(self, statistic, seeds=None, **how):
        return Mean(super().estimate(statistic, seeds).values, self.images**2)


def run(study, folder, **how):
    return run_study(study, folder, scale="smoke", workers=1, until_decided=True, **how)


def seeds_in(folder):
    """How many seeds each arm has."""
    names = [path.name.rpartition("-")[0] for path in (folder / "runs").iterdir()]
    return {name: names.count(name) for name in sorted(set(names))}


def test_seeds_are_added_to_the_arms_of_open_claims_up_to_the_most(study, trained, tmp_path):
    said = []
    found = run(study, tmp_path, log=said.append)
    assert found.looks == (3, 5, 8, 12, 18)
    assert seeds_in(tmp_path) == {"good": 3, "bad": 18, "as-bad": 18}
    assert [(verdict.outcome, verdict.seeds) for verdict in found.verdicts] == [("supported", 3), ("undecided", 18)]
    assert len(set(trained)) == len(trained) == 3 + 18 + 18 + 1, "none was done twice, and the tables once"
    assert "1 of 2 claims are open: 2 trainings get 5 seeds" in said
    assert Plan.read(tmp_path).arms[1]["seeds"] == 18, "--status knows them"


def test_without_the_option_one_is_told_that_there_are_more_seeds(study, trained, tmp_path):
    run(study, tmp_path)
    said = []
    run_study(study, tmp_path, scale="smoke", workers=1, log=said.append)
    assert said[0].endswith(
        "up to 18 seeds; the verdicts are on 3 seeds. If --until-decided added the others, give it again"
    )
    said.clear()
    run(study, tmp_path, log=said.append)
    assert not any("give it again" in line for line in said)


def test_overwriting_begins_the_added_seeds_anew_too(study, trained, tmp_path):
    run(study, tmp_path)
    done = len(trained)
    other = replace(study, arms=tuple(replace(arm, recipe=replace(arm.recipe, lr=1.0)) for arm in study.arms))
    found = run(other, tmp_path, overwrite=True)
    assert len(trained) == 2 * done, "every training anew"
    assert max(verdict.seeds for verdict in found.verdicts) == 18


def test_trainings_that_a_guard_stopped_early_have_tables_and_a_curve_up_to_the_first_end(template, study, tmp_path):
    runs = {}
    for arm in study.arms:
        for seed, epochs in enumerate((3, 2, 3)):
            run = RunFolder(shutil.copytree(template[0].path, tmp_path / f"{arm.folder}-{seed}"))
            (run.path / "metrics.jsonl").unlink()
            for epoch in range(1, epochs + 1):
                held_out = {"clean": 0.5, "robust": epoch / 10 + seed}
                run.add_metrics({"step": 5 * epoch, "epoch": epoch, "best": True, "held_out": held_out})
            runs[arm.name, seed] = run
    found = aggregate(study, runs)
    passes, curve = found.curves["good"]
    assert curve == pytest.approx([1.1, 1.2]) and len(passes) == 2
    assert found.rows[0].passes == pytest.approx(passes[0] * (3 + 2 + 3) / 3)


def test_pictures_are_drawn_of_the_seeds_that_all_arms_have(study, trained, tmp_path):
    drawn = []
    run(replace(study, draw=lambda runs, folder: drawn.append(sorted(runs))), tmp_path)
    assert seeds_in(tmp_path) == {"good": 3, "bad": 18, "as-bad": 18}
    assert drawn == [sorted((arm, seed) for arm in RATES for seed in range(3))]


def test_nothing_is_added_when_all_claims_are_decided(study, trained, tmp_path):
    run(replace(study, claims=study.claims[:1]), tmp_path)
    assert seeds_in(tmp_path) == {"good": 3, "bad": 3, "as-bad": 3}


def test_no_seeds_are_added_for_a_claim_that_the_setting_cannot_decide(study, trained, tmp_path):
    run(replace(study, claims=(more("as bad", "bad", untestable="they are the same"),)), tmp_path)
    assert seeds_in(tmp_path) == {"good": 3, "bad": 3, "as-bad": 3}


def test_no_seeds_are_added_for_a_margin_that_the_test_images_exceed():
    rng = np.random.default_rng(0)
    flags = {
        (arm, "last", "worst"): np.repeat(rng.random((1, 100)) < 0.5, 6, axis=0) ^ (rng.random((6, 100)) < 0.02)
        for arm in ("a", "b")
    }
    claim, wide = more("a", "b", within=0.01), more("a", "b", within=0.5)
    for one, opened in ((claim, False), (wide, False), (replace(claim, within=None), True)):
        [verdict] = judge([one], Outcomes(flags))
        assert _open(one, verdict) is opened
    # whose images alone exceed the margin at the strict level of an early look, and not at that of the last
    near = Alike({("a", RUN, "x"): np.resize([1e-5, -1e-5, 0.0], 18)}, 0.01 / 2.45)
    claim_of_it = Claim("it is 0", "x", lambda c: c("a", "x", RUN), within=0.01)
    for seeds in (3, 5, 8, 12):
        [verdict] = judge([claim_of_it], near.of(seeds), (3, 5, 8, 12, 18))
        assert verdict.outcome == "undecided" and _open(claim_of_it, verdict)
    [verdict] = judge([claim_of_it], near.of(18), (3, 5, 8, 12, 18))
    assert verdict.outcome == "supported"
    [single] = judge([claim], Outcomes({cell: each[:1] for cell, each in flags.items()}))
    assert _open(claim, single), "one seed says nothing of the images' part alone"


def test_a_command_whose_time_is_over_begins_nothing_and_the_next_goes_on(study, trained, tmp_path):
    with pytest.raises(UserError, match="the time is over, and 9 trainings are not done: give the command again"):
        run(study, tmp_path, hours=1e-9)
    assert trained == []
    run_study(study, tmp_path, scale="smoke", workers=1)
    said = []
    cut = run(study, tmp_path, hours=1e-9, log=said.append)
    assert seeds_in(tmp_path) == {"good": 3, "bad": 3, "as-bad": 3}
    assert said[-1].startswith("the time is over, and 4 trainings are not done")
    assert cut.verdicts[1].seeds == 3
    rest = run(study, tmp_path)
    assert rest.verdicts == run(study, tmp_path.parent / "at-once").verdicts


def test_commands_that_add_seeds_at_once_share_them_and_agree(study, trained, tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(run(study, tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and found[0].verdicts == found[1].verdicts == found[2].verdicts
    copies = [name for name in trained if name != "tables"]
    assert len(set(copies)) == len(copies) == 39, "each training was done by one of them"
    assert leases_of(tmp_path).last("bad-17").state == "done"


def test_numbers_of_analyses_need_all_arms_and_a_joint_analysis_the_seeds_of_all(study, trained, tmp_path):
    def drawn(runs):
        arms = sorted({arm for arm, _ in runs})
        rng = np.random.default_rng(0)
        return {(arm, "number"): rng.normal(size=18)[: max(seed for _, seed in runs) + 1] for arm in arms}

    def join(runs, path, device, how):
        path.write_text(json.dumps({"how": dict(how), "arms": sorted(runs)}))

    claim = Claim("a number", "it", lambda c: c("bad", "number", "run"), unit="(number)")
    found = run(replace(study, claims=(claim,), numbers=drawn, joint=JointMeasurement(join, {})), tmp_path)
    count = seeds_in(tmp_path)["good"]
    assert count > 3 and seeds_in(tmp_path) == {"good": count, "bad": count, "as-bad": count}
    assert len(list(tmp_path.glob("together-*.json"))) == count
    assert found.verdicts[0].seeds == count


def test_an_arm_whose_recipe_names_the_run_of_another_needs_that_too(study):
    tuned = Arm("good tuned", replace(study.arms[0].recipe, init_from="good-{seed}"), after=True)
    both = replace(study, arms=(*study.arms, tuned))
    assert both.needed({("good tuned", "last", "worst")}) == {"good tuned", "good"}
    assert both.needed({("bad", "last", "worst"), ("bad", "run", "collapsed")}) == {"bad"}
    assert both.needed({("bad", "run", "tau")}) == {"good", "bad", "as bad", "good tuned"}


def test_a_budget_and_looks_that_make_no_sense_are_refused(study, tmp_path, capsys):
    with pytest.raises(UserError, match="hours = 0 is no budget: give a number above 0"):
        run(study, tmp_path, hours=0)
    with pytest.raises(UserError, match="from 1 seeds on, which must be 2 to 18: set --seeds"):
        run(replace(study, seeds=1), tmp_path)
    assert shell(["study", "tricks", "--scale", "smoke", "--out", str(tmp_path), "--until-decided"]) == 2
    assert "from 1 seeds on" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_seeds_of_the_shell_are_the_most_that_any_arm_has(monkeypatch, tmp_path):
    asked = []

    def stop(study, folder, **options):
        asked.append({study.seeds_of(arm) for arm in study.arms})
        raise UserError("far enough")

    monkeypatch.setattr(running, "run_study", stop)
    for seeds in ("2", "20"):
        assert shell(["study", "moat", "--scale", "cpu", "--seeds", seeds, "--out", str(tmp_path)]) == 2
    assert asked == [{2}, {3, 20}]
