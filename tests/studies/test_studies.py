"""Studies: what they write, that nothing finished is done again, that an interrupted one goes on."""

import csv
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import commanded, ended

from sparring import PGD, AcceleratedCopy, CrossEntropy, Linf, Method, UserError, WhiteBox
from sparring.attacks import FGSM
from sparring.cli import run as shell
from sparring.data import DifficultySubset, Digits, Subset
from sparring.records import RunFolder
from sparring.records.outcomes import Cells
from sparring.records.statistics import Claim
from sparring.report.studies import plot_study
from sparring.studies import entries, find, work, writing
from sparring.studies.running import run_study
from sparring.studies.study import Arm, JointMeasurement, Measurement, Study
from sparring.studies.writing import precision_of
from sparring.training import ExampleHistory

pytestmark = pytest.mark.slow

SCALES = ("smoke", "cpu", "gpu")


def small(tiny, **changed):
    """Two trainings, two seeds: seconds."""
    one = replace(tiny, epochs=1)
    other = replace(one, method=Method(FGSM(Linf(0.1)), CrossEntropy()))
    given = {
        "name": "small",
        "title": "PGD and FGSM",
        "source": "https://arxiv.org/abs/1706.06083",
        "baseline": "PGD-2",
        "arms": (Arm("PGD-2", one), Arm("FGSM", other)),
        "claims": (
            Claim("PGD is better.", "PGD-2 less FGSM, worst", lambda c: c("PGD-2", "worst") - c("FGSM", "worst")),
        ),
        "seeds": 2,
        **changed,
    }
    return Study(**given)


@pytest.fixture(autouse=True)
def sketched(monkeypatch):
    """The figure of a study is an empty file; `done` draws one of two arms, the smoke scale of tricks one of many."""
    monkeypatch.setattr(writing, "plot_study", lambda *args: args[-1].touch())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study, to be copied."""
    import conftest

    folder = tmp_path_factory.mktemp("study")
    said = []
    run_study(small(conftest.tiny.__wrapped__()), folder, scale="smoke", workers=1, log=said.append)
    return folder, said


def test_a_study_leaves_tables_a_figure_verdicts_and_every_example(done):
    folder, said = done
    assert {p.name for p in folder.iterdir()} == {
        "leases",
        "examples.npz",
        "figure.png",
        "figure.svg",
        "plan.json",
        "report.html",
        "runs",
        "study.json",
        "table.csv",
        "table.md",
    }
    assert {p.name for p in (folder / "runs").iterdir()} == {"pgd-2-0", "pgd-2-1", "fgsm-0", "fgsm-1"}
    with np.load(folder / "examples.npz") as held:
        examples = {name: held[name] for name in held.files}
    assert examples["PGD-2/last/pgd-3"].shape == (2, 40)
    worst = examples["PGD-2/last/clean"] & examples["PGD-2/last/pgd-3"]
    assert np.array_equal(examples["PGD-2/last/worst"], worst)
    plain = json.loads((folder / "study.json").read_text())
    value = plain["arms"]["PGD-2"]["accuracy"]["last"]["worst"]
    assert value["value"] == pytest.approx(worst.mean())
    assert value["low"] <= value["value"] <= value["high"]
    assert plain["arms"]["PGD-2"]["passes_a_step"] == 3
    assert plain["arms"]["FGSM"]["passes_a_step"] == 2
    assert plain["arms"]["PGD-2"]["difference"]["last"]["worst"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    [verdict] = plain["verdicts"]
    assert (verdict["seeds"], verdict["level"]) == (2, pytest.approx(0.95))
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert len(rows) == 2 * 2 * 3  # trainings x weights x (clean, pgd-3, worst)
    text = (folder / "table.md").read_text()
    assert "| PGD-2 | 3.00 |" in text
    assert "PGD is better." in text
    assert "<svg" in (folder / "figure.svg").read_text()
    assert said[0] == "PGD and FGSM: 4 trainings, 0 of them done; 1 at a time"
    assert len(said) == 5


def test_a_study_records_what_its_attacks_computed_in(done):
    folder, _ = done
    found = json.loads((folder / "study.json").read_text())["precision"]
    run = RunFolder(folder / "runs" / "pgd-2-0")
    said = AcceleratedCopy().describe(torch.device("cpu"))
    assert found == {"training": [run.backend()["precision"]], "evaluation": [said]}
    assert found["training"][0] in ("fp32", "bf16")
    line = f"Precision of attacks: in training {found['training'][0]}; in evaluation {said} (in L2"
    assert line in (folder / "table.md").read_text()


def test_runs_that_computed_otherwise_are_told_apart(done, tmp_path):
    shutil.copytree(done[0] / "runs" / "fgsm-0", tmp_path / "other")
    other = RunFolder(tmp_path / "other")
    other.set_backend({"precision": "tf32", "compile": "off"})
    other.write_evaluation({name: each for name, each in other.evaluation().items() if name != "how"})
    one = RunFolder(done[0] / "runs" / "fgsm-0")
    found = precision_of([one, other])
    assert found["training"] == [one.backend()["precision"], "tf32"]
    assert found["evaluation"][1] == "not recorded"


def test_what_is_finished_is_not_done_again(done, tiny, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(done[0], folder)
    before = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*.safetensors")}
    table, said = (folder / "table.csv").read_bytes(), []
    run_study(small(tiny), folder, scale="smoke", workers=1, log=said.append)
    assert said == ["PGD and FGSM: 4 trainings, 4 of them done; 1 at a time"]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (folder / "table.csv").read_bytes() == table


def test_an_interrupted_study_does_what_is_missing_with_the_same_result(done, tiny, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(done[0], folder)
    shutil.rmtree(folder / "runs" / "fgsm-1")  # not begun
    for path in (folder / "runs" / "pgd-2-0").glob("evaluation*"):  # trained, not evaluated
        path.unlink()
    said = []
    run_study(small(tiny), folder, scale="smoke", workers=2, log=said.append)
    assert said[0] == "PGD and FGSM: 4 trainings, 2 of them done; 2 at a time"
    assert (folder / "table.csv").read_bytes() == (done[0] / "table.csv").read_bytes()


def test_a_training_of_another_recipe_is_not_taken_for_one_of_the_study(done, tiny, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(done[0], folder)
    changed = small(replace(tiny, batch_size=128))
    with pytest.raises(UserError, match=r"another recipe \(batch_size: 256 -> 128\): --overwrite"):
        run_study(changed, folder, scale="smoke", workers=1)
    run_study(changed, folder, scale="smoke", workers=1, overwrite=True)
    assert RunFolder(folder / "runs" / "fgsm-0").recipe()["batch_size"] == 128


def test_the_folder_of_another_study_is_not_written_over(done, tiny, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(done[0], folder)
    before = {name: (folder / name).read_bytes() for name in ("plan.json", "table.md")}
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is the folder of the study small: choose another for mine with --out"):
            run_study(small(tiny, name="mine"), folder, scale="smoke", workers=1, overwrite=overwrite)
    assert {name: (folder / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (("PGD-2", "wrost"), r"'wrost', by which 'PGD-2' is not evaluated: did you mean worst\?"),
        (("PGD-2", "margin: pgd-33", "best"), r"'margin: pgd-33', by which .*: did you mean pgd-3\?"),
        (("PGD2", "worst"), r"'PGD2', no arm of the study: did you mean PGD-2\?"),
        (("FGSM", "worst", "lats"), r"'lats' weights: did you mean last\?"),
    ],
)
def test_a_claim_about_what_is_not_measured_is_refused_before_the_trainings(cell, message, tiny):
    claim = Claim("It is so.", "it", lambda c: c("FGSM", "clean") - c(*cell))
    with pytest.raises(UserError, match=f"'It is so.' is about {message}"):
        small(tiny, claims=(claim,))


def test_a_training_that_fails_is_named_when_the_others_are_done(tiny, tmp_path):
    broken = small(tiny, arms=(Arm("PGD-2", tiny), Arm("broken", replace(tiny, lr=1e12))), claims=())
    with pytest.raises(UserError, match=r"2 of 4 trainings failed, the others are done. The first: broken, seed"):
        run_study(broken, tmp_path / "s", scale="smoke", workers=1)
    assert RunFolder(tmp_path / "s" / "runs" / "pgd-2-1").evaluated()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_study_that_is_stopped_keeps_what_it_has(tmp_path, workers):
    folder, said = tmp_path / "s", tmp_path / "said"
    study = f"{Path(__file__).with_name('shared_study.py')}:endless"
    arguments = ["study", study, "--scale", "smoke", "--workers", str(workers), "--out", str(folder)]
    process = commanded(arguments, said, tmp_path)
    while process.is_alive():
        begun = [path for path in folder.glob("runs/*/metrics.jsonl") if path.stat().st_size]
        if len(begun) == workers:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 130, said.read_text()
    assert said.read_text().splitlines()[-1].startswith("sparring: stopped; what is trained is kept. Go on with:")
    assert "Traceback" not in said.read_text()
    assert len(list(folder.glob("runs/*/checkpoints/step-*"))) >= workers
    assert not (folder / "table.md").exists()


def test_what_is_set_apart_is_shown_where_it_was_done_and_does_not_count(tiny, tmp_path):
    """An attack at a larger eps, on one of the two trainings."""
    far = WhiteBox(PGD(Linf(0.5), steps=3, patience=0))
    more = replace(tiny.evaluation, adversaries={**tiny.evaluation.adversaries, "far": far})
    arms = (Arm("PGD-2", replace(tiny, epochs=1)), Arm("other", replace(tiny, epochs=1, evaluation=more)))
    with pytest.raises(UserError, match="different adversaries, none of them apart"):
        small(tiny, arms=arms)
    claim = Claim("It is far.", "less", lambda cells: cells("other", "worst") - cells("other", "far"))
    found = run_study(small(tiny, arms=arms, claims=(claim,), apart=("far",)), tmp_path, scale="smoke", workers=1)
    first, other = found.rows
    assert ("last", "far") in other.accuracy and ("last", "far") not in first.accuracy
    assert ("last", "far") not in other.difference
    pgd = found.flags["other", "last", "pgd-3"] & found.flags["other", "last", "clean"]
    assert np.array_equal(found.flags["other", "last", "worst"], pgd)
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [(row["arm"], row["difference"]) for row in rows if row["adversary"] == "far"] == [("other", "")] * 2
    text = (tmp_path / "table.md").read_text()
    assert "is robust to every attack but far." in text
    assert json.loads((tmp_path / "study.json").read_text())["arms"]["other"]["by_seed"]["last"]["far"]


def test_arms_may_have_test_images_of_their_own(tiny, tmp_path):
    few = replace(tiny, epochs=1, evaluation=replace(tiny.evaluation, examples=20))
    arms = (Arm("PGD-2", replace(tiny, epochs=1)), Arm("few", few))
    alone = Claim("It learns.", "above 0", lambda cells: cells("few", "clean"))
    run_study(small(tiny, arms=arms, claims=(alone,)), tmp_path / "each", scale="smoke", workers=1)
    text, plain = ((tmp_path / "each" / name).read_text() for name in ("table.md", "study.json"))
    assert "2 seeds, 20 or 40 test images" in text
    held = json.loads(plain)["arms"]
    assert [(arm["seeds"], arm["examples"]) for arm in held.values()] == [(2, 40), (2, 20)]
    assert held["PGD-2"]["difference"]["last"] and not held["few"]["difference"]["last"]
    both = Claim("It learns more.", "less", lambda cells: cells("few", "clean") - cells("PGD-2", "clean"))
    with pytest.raises(UserError, match=r"the same test images everywhere, not \[20, 40\]"):
        run_study(small(tiny, arms=arms, claims=(both,)), tmp_path / "each", scale="smoke", workers=1)


def look(run, device, how):
    """An analysis that counts how often it was done."""
    path = run.analysis("steps", "json")
    before = json.loads(path.read_text())["done"] if path.exists() else 0
    path.write_text(json.dumps({"steps": run.status()["step"], "done": before + 1, "how": how}))


def numbers(runs):
    facts = {key: json.loads(run.analysis("steps", "json").read_text()) for key, run in runs.items()}
    arms = sorted({arm for arm, _ in runs})
    found = {(arm, "steps"): np.array([facts[arm, seed]["steps"] + seed for seed in (0, 1)]) for arm in arms}
    return {**found, ("all of them", "done"): np.array([sum(fact["done"] for fact in facts.values())] * 2)}


def test_analyses_of_every_run_give_numbers_for_tables_and_claims(tiny, tmp_path):
    claim = Claim(
        "FGSM takes longer.", "steps", lambda c: c("FGSM", "steps", "run") - c("PGD-2", "steps", "run"), unit="(steps)"
    )
    study = small(tiny, claims=(claim,), measurements=(Measurement("steps", look, {"often": 1}),), numbers=numbers)
    found = run_study(study, tmp_path, scale="smoke", workers=1)
    steps = RunFolder(tmp_path / "runs" / "fgsm-0").status()["step"]
    assert found.numbers["FGSM", "steps"].tolist() == [steps, steps + 1]
    assert found.estimates["FGSM", "steps"][0] == steps + 0.5
    assert found.numbers["all of them", "done"].tolist() == [4, 4]
    text = (tmp_path / "table.md").read_text()
    assert "| training | steps |" in text
    assert "|  | all of them |" in text
    assert "| done | 4 [4, 4] |" in text
    assert "| +0 [+0, +0] (steps) | 2 | unknown | **undecided**: it is the same for all seeds" in text
    plain = json.loads((tmp_path / "study.json").read_text())
    assert plain["numbers"]["FGSM"]["steps"]["by_seed"] == [steps, steps + 1]
    # what was done in this way is not done again; what somebody did in another way is
    again = run_study(study, tmp_path, scale="smoke", workers=1)
    assert again.numbers["all of them", "done"].tolist() == [4, 4]
    look(RunFolder(tmp_path / "runs" / "fgsm-1"), "cpu", {"often": 2})
    said = []
    last = run_study(study, tmp_path, scale="smoke", workers=1, log=said.append)
    assert last.numbers["all of them", "done"].tolist() == [6, 6]
    assert [line for line in said if "FGSM, seed 1" in line] == [line for line in said if line.startswith("1/1 ")]


def look_at_all(runs, path, device, how):
    """Of the runs of a seed: how often it was subject at them."""
    before = json.loads(path.with_suffix(".count").read_text()) if path.with_suffix(".count").exists() else 0
    path.with_suffix(".count").write_text(json.dumps(before + 1))
    steps = {arm: run.status()["step"] for arm, run in runs.items()}
    path.write_text(json.dumps({"steps": steps, "times": before + 1, "how": how}))


@pytest.mark.parametrize("workers", [1, 2])
def test_all_runs_of_a_seed_are_looked_at_together_when_they_are_there(tiny, tmp_path, workers):
    study = small(tiny, claims=(), joint=JointMeasurement(look_at_all, {"often": 1}))
    said = []
    run_study(study, tmp_path, scale="smoke", workers=workers, log=said.append)
    numbers, order = zip(*(line.split(":")[0].split(" ", 1) for line in said[1:]), strict=True)
    assert numbers == tuple(f"{number}/6" for number in range(1, 7))
    for seed in (0, 1):
        ends = [order.index(f"{what}, seed {seed}") for what in ("PGD-2", "FGSM", "together")]
        assert max(ends) == ends[-1], "with two workers in any other order"
    found = [json.loads((tmp_path / f"together-{seed}.json").read_text()) for seed in (0, 1)]
    assert [set(each["steps"]) for each in found] == [{"PGD-2", "FGSM"}] * 2
    run_study(study, tmp_path, scale="smoke", workers=workers, log=said.append)
    shutil.rmtree(tmp_path / "runs" / "fgsm-1")  # its seed is subject at again, the other not
    run_study(study, tmp_path, scale="smoke", workers=workers, log=said.append)
    assert [json.loads((tmp_path / f"together-{seed}.json").read_text())["times"] for seed in (0, 1)] == [1, 2]
    other = small(tiny, claims=(), joint=JointMeasurement(look_at_all, {"often": 2}))
    run_study(other, tmp_path, scale="smoke", workers=workers, log=said.append)
    assert [json.loads((tmp_path / f"together-{seed}.json").read_text())["times"] for seed in (0, 1)] == [2, 3]


def test_what_needs_all_runs_is_not_tried_where_one_failed(tiny, tmp_path):
    arms = (Arm("PGD-2", replace(tiny, epochs=1)), Arm("broken", replace(tiny, lr=1e12)))
    study = small(tiny, arms=arms, claims=(), joint=JointMeasurement(look_at_all, {}))
    with pytest.raises(UserError, match="2 of 6 trainings failed"):
        run_study(study, tmp_path, scale="smoke", workers=1)
    assert not list(tmp_path.glob("together-*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_arms_that_need_others_come_after_them_whatever_they_cost(tiny, tmp_path, workers):
    reference = replace(
        tiny, data=Subset(Digits(), 200, 40), batch_size=32, epochs=1, example_history=ExampleHistory(FGSM(Linf(0.1)))
    )
    chosen = replace(
        reference, example_history=None, epochs=2, alterations=(DifficultySubset(0.5, "easy", ("reference-{seed}",)),)
    )
    arms = (Arm("Chosen", chosen, after=True), Arm("Reference", reference))
    said = []
    study = small(tiny, arms=arms, claims=(), baseline="Reference")
    run_study(study, tmp_path, scale="smoke", workers=workers, log=said.append)
    ended = [line.split(":")[0].partition(" ")[2] for line in said[1:5]]
    for seed in (0, 1):
        assert ended.index(f"Reference, seed {seed}") < ended.index(f"Chosen, seed {seed}")
        hard = RunFolder(tmp_path / "runs" / f"reference-{seed}").read_memory().difficulty
        rows = RunFolder(tmp_path / "runs" / f"chosen-{seed}").training()["rows"]
        kept = np.isin(np.arange(len(hard)), rows)
        assert kept.sum() == 90
        assert hard[kept].max() <= hard[~kept].min()


def test_a_failure_before_does_not_keep_what_comes_after_from_trying(tiny, tmp_path):
    few = replace(tiny, epochs=1)
    lost = replace(few, alterations=(DifficultySubset(0.5, "easy", ("nowhere",)),))
    arms = (Arm("broken", replace(tiny, lr=1e12)), Arm("lost", lost, after=True), Arm("PGD-2", few, after=True))
    said = []
    with pytest.raises(UserError, match="4 of 6 trainings failed"):
        run_study(small(tiny, arms=arms, claims=()), tmp_path, scale="smoke", workers=1, log=said.append)
    assert any("there is no run 'nowhere'" in line for line in said)
    assert RunFolder(tmp_path / "runs" / "pgd-2-1").evaluated()


def test_a_study_that_makes_no_sense_is_refused(tiny):
    one = Arm("a", tiny)
    with pytest.raises(UserError, match="share a folder"):
        small(tiny, arms=(one, Arm("A", tiny)), baseline="a")
    with pytest.raises(UserError, match="'b' is none of the arms"):
        small(tiny, arms=(one,), baseline="b")
    with pytest.raises(UserError, match="at least one seed, not 0"):
        small(tiny, seeds=0)
    with pytest.raises(UserError, match="'far' is set apart, but no arm is evaluated by it"):
        small(tiny, apart=("far",))
    with pytest.raises(UserError, match="workers = 0 is not at least 1"):
        run_study(small(tiny), "nowhere", scale="smoke", workers=0)


@cache
def made(name, scale):
    return find(name)(scale)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", sorted(entries()))
def test_every_study_can_be_made_at_every_scale(name, scale):
    study = made(name, scale)
    assert study.name == name
    assert study.seeds >= (1 if scale == "smoke" else 3)
    assert {*study.apart} <= {*study.arms[0].recipe.evaluation.adversaries}
    for arm in study.arms:
        assert arm.recipe.plain()["$"] == "Recipe"


class Measured(dict):
    """Every accuracy that the arms of a study are evaluated for, and any number of a run."""

    def __missing__(self, cell):
        assert cell[1] == "run", f"nothing measures {cell}"
        return np.zeros(1)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", sorted(entries()))
def test_every_claim_is_about_what_its_study_measures(name, scale):
    study = made(name, scale)
    unders = {arm.name: ("clean", "worst", *arm.recipe.evaluation.adversaries) for arm in study.arms}
    cells = {(arm, w, under): np.ones(1) for arm, names in unders.items() for w in ("best", "last") for under in names}
    images = {arm.name: arm.recipe.data.test for arm in study.arms}
    for claim in study.claims:
        used = Cells(Measured(cells))
        assert np.shape(claim.statistic(used)) == (1,)
        assert used.asked and study.needed(used.asked)
        assert len({images[arm] for arm, which, _ in used.asked if which != "run"}) <= 1, "images are paired"


def test_an_unknown_study_or_scale_is_refused():
    with pytest.raises(UserError, match="no study 'trick': did you mean tricks"):
        find("trick")
    with pytest.raises(UserError, match="no scale 'huge': smoke, cpu, gpu"):
        find("tricks")("huge")


def kind(recipe):
    """A recipe on disk without the name of an activation and, outside of data and model, without numbers but zeros."""
    model = {name: part for name, part in recipe["model"].items() if name != "activation"}
    rest = {name: part for name, part in recipe.items() if name not in ("data", "model")}
    return json.dumps([recipe["data"], model, shape(rest)])


def shape(plain):
    if isinstance(plain, dict):
        return {name: shape(part) for name, part in plain.items()}
    if isinstance(plain, list):
        return [shape(part) for part in plain]
    return plain if isinstance(plain, str) else bool(plain)


@pytest.fixture
def one_of_each_kind(monkeypatch):
    """Of the arms that differ in numbers alone, train the first: the runs of the others are copies of its run."""
    train, known = work._trained, {}

    def trained(job, plain, *rest):
        first = known.setdefault(kind(plain), job.path)
        if first == job.path:
            return train(job, plain, *rest)
        shutil.copytree(first, job.path)
        RunFolder(job.path).begin(plain)
        return f"copied from {first.name}"

    monkeypatch.setattr(work, "_trained", trained)


@pytest.mark.parametrize("name", sorted(entries()))
def test_the_smoke_scale_of_a_study_runs_from_the_shell(name, one_of_each_kind, monkeypatch, tmp_path, capsys):
    if name == "tricks":
        monkeypatch.setattr(writing, "plot_study", plot_study)
    assert shell(["study", name, "--scale", "smoke", "--out", str(tmp_path / "s"), "--workers", "1", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["study"] == name
    assert {verdict["outcome"] for verdict in plain["verdicts"]} == {"not testable here"}  # one seed decides nothing
