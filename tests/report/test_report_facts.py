"""The facts of a report against the records that they come from."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from made import AUDIT, OUTCOMES, STAGES, evaluation, made_run, made_study

from sparring import UserError
from sparring.records.run_folder import RunFolder, write_evaluated
from sparring.report.evaluated import attack_rows, class_rows, confusion, curve, examples, strongest, waterfall
from sparring.report.gather import facts
from sparring.report.markdown import markdown
from sparring.report.provenance import again
from sparring.report.subjects import subjects
from sparring.report.thresholds import thresholds
from sparring.report.wording import radius, threat_name


@pytest.fixture
def run(tmp_path):
    return made_run(tmp_path / "run")


@pytest.mark.slow
def test_a_report_is_written_without_torch(run):
    code = (
        "import sys; from pathlib import Path; from sparring.report.write import write_report; "
        "write_report([Path(sys.argv[1])]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run.path)], check=False).returncode == 0
    assert run.report.exists() and run.model_card.exists()


def test_the_waterfall_loses_every_example_that_is_not_robust():
    found = evaluation()
    steps = waterfall(found, "autoattack")
    assert [step["name"] for step in steps] == ["wrong without attack", *STAGES]
    assert sum(step["lost"] for step in steps) == len(found.label) - found.robust["autoattack"].sum()
    assert steps[-1]["left"] == found.robust["autoattack"].sum()


def test_a_stage_attacks_what_those_before_it_left():
    rows = {row["name"]: row for row in attack_rows(evaluation())}
    assert rows["autoattack/apgd-ce"]["attacked"] == rows["clean"]["accuracy"]["correct"]
    assert rows["autoattack/square"]["attacked"] == rows["autoattack/fab-t"]["accuracy"]["correct"]
    assert rows["autoattack"]["passes"] == 400 and rows["autoattack"]["seconds"] == 6


def test_passes_and_seconds_that_are_not_known_are_not_made_up():
    found = replace(evaluation(), passes={}, seconds={"autoattack/apgd-ce": 1.0})
    row = next(row for row in attack_rows(found) if row["name"] == "autoattack")
    assert row["passes"] is None and row["seconds"] is None


def test_the_curve_is_the_accuracy_at_each_eps():
    found = evaluation()
    drawn = curve(found)
    assert drawn["norm"] == "Linf" and drawn["eps"][0] == 0
    for eps, each in zip(drawn["eps"], drawn["accuracy"], strict=True):
        assert each["correct"] == (found.distance > np.float32(eps)).sum()
    assert {point["name"] for point in drawn["points"]} == {"pgd", "autoattack"}
    assert curve(replace(found, distance=None)) is None


def test_facts_about_every_example_are_those_of_the_result():
    found = evaluation()
    held = examples(found)
    columns = held["columns"]
    assert held["adversary"] == "autoattack" and {len(values) for values in columns.values()} == {len(found.label)}
    assert [held["fates"][fate] for fate in columns["fate"]] == found.broken_by("autoattack").tolist()
    assert np.allclose(columns["margin"], found.margin["autoattack"], rtol=1e-3)
    assert [value is None for value in columns["norm"]] == np.isnan(found.norm["autoattack"]).tolist()
    assert held["pictured"]["row"] == found.gallery.row.tolist()


def test_confusions_count_every_image_once():
    found = evaluation()
    counts = np.array(confusion(found, "autoattack")["counts"])
    assert counts.sum() == len(found.label)
    assert np.trace(counts) == found.robust["autoattack"].sum()
    for row in class_rows(found, "autoattack"):
        place = found.classes.index(row["name"])
        assert row["robust"]["correct"] == counts[place, place]


def test_of_many_classes_the_most_frequent_confusions_are_listed():
    found = evaluation(classes=tuple(f"class {k}" for k in range(30)), n=400)
    pairs = confusion(found, "autoattack")["pairs"]
    counts = [pair["count"] for pair in pairs]
    assert counts == sorted(counts, reverse=True) and all(pair["class"] != pair["predicted"] for pair in pairs)


def test_the_verdict_is_the_lowest_accuracy_of_each_threat(run):
    result = run.read_flags("best")
    assert strongest(result) == "autoattack"
    found, _ = facts([run.path])
    verdict = found["verdict"]
    assert verdict["robust"]["accuracy"]["accuracy"] == min(result.table()[n].value for n in ("pgd", "autoattack"))
    assert verdict["sentence"].startswith("Linf 8/255: ")
    assert verdict["sentence"].endswith("under AutoAttack standard, 200 images; audit 1 pass, 1 warning")
    other = replace(result, about={**result.about, "pgd": "L2(eps=0.5)"})
    run.write_flags("best", other)
    threats = facts([run.path])[0]["verdict"]["threats"]
    assert [each["threat"] for each in threats] == ["L2 0.5", "Linf 8/255"]


def test_smallest_distances_within_the_threat_count_in_the_verdict(run):
    result = run.read_flags("best")
    near = np.where(np.arange(200) % 2, np.float32(0.01), result.distance)
    run.write_flags("best", replace(result, distance=near))
    wanted = int((result.robust["autoattack"] & (near > 8 / 255)).sum())
    found, _ = facts([run.path])
    verdict = found["verdict"]
    assert verdict["robust"]["accuracy"]["correct"] == wanted < result.table()["autoattack"].correct
    described = "AutoAttack standard with the search for smallest distances"
    assert f"under {described}, 200 images" in verdict["sentence"]
    assert f"{described} breaks {int(result.robust['clean'].sum()) - wanted} of the" in verdict["answer"]
    assert thresholds(found, ["robust=0"])[0].found == pytest.approx(wanted / 2)
    run.write_flags("best", replace(result, distance=near, about=dict.fromkeys(result.about, "L2(eps=0.5)")))
    (other,) = facts([run.path])[0]["verdict"]["threats"]
    assert other["accuracy"]["correct"] == result.table()["autoattack"].correct, "distances in another norm"


@pytest.mark.parametrize(
    ("clean", "stages", "answer"),
    [
        (
            *(160, (100, 90)),
            "Robust in part: within Linf 8/255 AutoAttack standard breaks 70 of the 160 images that are right without "
            "an attack (44 %), 60 of them by apgd-ce.",
        ),
        (
            *(160, (160, 160)),
            "Robust as far as AutoAttack standard can tell: within Linf 8/255 it breaks none of the 160 images that "
            "are right without an attack.",
        ),
        (
            *(160, (120, 20)),
            "Not robust: within Linf 8/255 it does no better than a guess among 10 classes, as AutoAttack standard "
            "breaks 140 of the 160 images that are right without an attack (88 %), 100 of them by apgd-t.",
        ),
        (
            *(22, (22, 22)),
            "Even without an attack it does no better than a guess among 10 classes: its robustness means nothing.",
        ),
    ],
)
def test_the_verdict_answers_whether_the_model_is_robust_and_what_breaks_it(clean, stages, answer, run):
    names = ("clean", "autoattack/apgd-ce", "autoattack/apgd-t", "autoattack")
    robust = {name: np.arange(200) < n for name, n in zip(names, (clean, *stages, stages[-1]), strict=True)}
    without = {"distance": None, "margin": {}, "norm": {}, "predicted": {}}
    run.write_flags("best", replace(run.read_flags("best"), robust=robust, **without))
    assert facts([run.path])[0]["verdict"]["answer"] == answer
    run.write_audit({**AUDIT, "passed": False})
    distrust = facts([run.path])[0]["verdict"]["answer"].removeprefix(answer)
    assert distrust == (" Do not rely on it: the audit failed." if clean > 100 else "")


def test_the_verdict_says_what_it_does_not_say(run):
    run._audit.unlink()
    result = run.read_flags("best")
    weaker = {name: text for name, text in result.settings.items() if name != "adversary autoattack"}
    run.write_flags("best", replace(result, settings=weaker))
    silent = " ".join(facts([run.path])[0]["verdict"]["silent"])
    for words in ("AutoAttack may find", "masked gradients", "outside Linf 8/255", "upper bound"):
        assert words in silent
    run.write_audit({**AUDIT, "passed": False})
    assert "far lower" in " ".join(facts([run.path])[0]["verdict"]["silent"])
    assert "not finished" not in silent
    run.set_status({**run.status(), "finished": False})
    assert "The training is not finished" in " ".join(facts([run.path])[0]["verdict"]["silent"])


def test_a_run_that_was_not_evaluated_has_a_report_of_its_training(tmp_path):
    run = made_run(tmp_path / "run", which=())
    found, _ = facts([run.path])
    assert found["verdict"] is None and found["examples"] is None
    assert found["training"]["best_epoch"] == 2
    assert found["training"]["gap"] == pytest.approx(0.1)


def test_two_models_are_compared_in_pairs(tmp_path):
    runs = [made_run(tmp_path / name, which=("best",), harder=harder) for name, harder in (("a", 0), ("b", 0.015))]
    found, _ = facts([run.path for run in runs])
    results = [run.read_flags("best") for run in runs]
    wanted = results[0].paired(results[1], "autoattack").plain()
    assert found["compare"]["pairs"][0]["by"]["autoattack"] == wanted
    assert wanted["low"] > 0
    (said,) = found["compare"]["conclusions"]
    assert said.startswith("a is more robust than b, by ")
    assert " under AutoAttack standard (Linf 8/255). Without attack, a and b are not told apart: " in said
    assert found["compare"]["best"] == "a"


def test_the_better_model_is_named_whichever_comes_first(tmp_path):
    runs = [made_run(tmp_path / name, which=("best",), harder=harder) for name, harder in (("a", 0.015), ("b", 0))]
    found, _ = facts([run.path for run in runs])
    assert found["compare"]["conclusions"][0].startswith("b is more robust than a, by ")
    same, _ = facts([runs[0].path, runs[0].path])
    assert "not told apart" in same["compare"]["conclusions"][0]


def test_no_model_wins_under_attacks_whose_threats_differ(tmp_path):
    runs = [made_run(tmp_path / name, which=("best",), harder=harder) for name, harder in (("a", 0), ("b", 0.015))]
    result = runs[1].read_flags("best")
    weaker = {name: text.replace("0.031", "0.0031") for name, text in result.about.items()}
    assert weaker != result.about
    runs[1].write_flags("best", replace(result, about=weaker))
    found = facts([run.path for run in runs])[0]["compare"]
    assert found["main"] == "clean" and found["differing"] == ["pgd", "autoattack"]
    (said,) = found["conclusions"]
    assert "robust" not in said and said.endswith("They were not attacked alike by pgd and autoattack.")
    text = markdown(facts([run.path for run in runs])[0])
    assert "autoattack is another attack in one of the evaluations" in text


def test_no_model_wins_under_another_version_of_an_attack_either(tmp_path):
    runs = [made_run(tmp_path / name, which=("best",)) for name in ("a", "b")]
    result = runs[1].read_flags("best")
    text = result.settings["adversary autoattack"]
    runs[1].write_flags("best", replace(result, settings={**result.settings, "adversary autoattack": f"{text}, twice"}))
    assert facts([run.path for run in runs])[0]["compare"]["differing"] == ["autoattack"]


def test_the_record_of_other_weights_says_nothing_of_these(run):
    """A later evaluation of the last weights replaces the record, and not the results of the best weights."""
    held = run.evaluation()
    run.write_evaluation({key: each for key, each in held.items() if key != "best"})
    (model,) = subjects([run.path])
    assert again(model) is None
    found, _ = facts([run.path])
    assert found["provenance"]["evaluation"] == {} and len(found["provenance"]["commands"]) == 1


def test_an_audit_within_another_set_is_told_with_it(run):
    run.write_audit({**AUDIT, "threat": "Linf(eps=0.00392156862745098)"})
    verdict = facts([run.path])[0]["verdict"]
    assert verdict["sentence"].endswith("; audit within Linf 1/255 1 pass, 1 warning")
    (threat,) = {text for text in run.read_flags("best").about.values() if text.startswith("Linf")}
    run.write_audit({**AUDIT, "threat": threat})
    assert facts([run.path])[0]["verdict"]["sentence"].endswith("; audit 1 pass, 1 warning")


def test_curves_of_another_norm_are_not_drawn_beside(tmp_path):
    runs = [made_run(tmp_path / name, which=("best",)) for name in ("a", "b")]
    result = runs[1].read_flags("best")
    other = {name: text.replace("Linf", "L2") for name, text in result.settings.items()}
    runs[1].write_flags("best", replace(result, settings=other))
    assert list(facts([run.path for run in runs])[0]["compare"]["curves"]) == ["a"]


def test_evaluations_on_other_images_are_not_paired(tmp_path):
    runs = [made_run(tmp_path / name, which=("best",), n=n) for name, n in (("a", 100), ("b", 120))]
    pair = facts([run.path for run in runs])[0]["compare"]["pairs"][0]
    assert "same images" in pair["reason"] and "by" not in pair
    assert "a and b cannot be paired: " in markdown(facts([run.path for run in runs])[0])


def test_the_last_weights_that_are_the_best_are_not_compared_with_themselves(run):
    assert facts([run.path])[0]["compare"] is None
    last = run.read_flags("last")
    run.write_flags("last", replace(last, settings={**last.settings, "model": "another"}))
    assert [row["name"] for row in facts([run.path])[0]["compare"]["rows"]] == ["best", "last"]


def test_files_of_results_are_reported_without_a_run(tmp_path):
    write_evaluated(tmp_path / "evaluation-weights.npz", evaluation())
    found, (model,) = facts([tmp_path / "evaluation-weights.npz"])
    assert model.weights == "weights" and found["training"] is None and found["verdict"]["audit"] is None


@pytest.mark.parametrize("what", ["nothing", "file", "study and run"])
def test_what_holds_nothing_to_report_is_refused(what, tmp_path):
    targets = {
        "nothing": [tmp_path],
        "file": [tmp_path / "missing.npz"],
        "study and run": [made_study(tmp_path / "s")] * 2,
    }
    with pytest.raises(UserError, match=r"no run, no study|study alone"):
        facts(targets[what])


def test_an_example_is_evaluated_again_by_the_command_of_the_evaluation(run):
    (model,) = subjects([run.path])
    assert again(model) == (
        f"sparring evaluate {run.path} --autoattack standard --min-norm --weights best --only {{index}}"
    )
    held = run.evaluation()
    command = [*held["environment"]["command"], "--out=x", "--shard", "1/2", "--json", "--track", "wandb", "mlflow"]
    run.write_evaluation({**held, "environment": {**held["environment"], "command": [*command, "--seed", "3"]}})
    assert again(model) == (
        f"sparring evaluate {run.path} --autoattack standard --min-norm --seed 3 --weights best --only {{index}}"
    )
    run.write_evaluation({**held, "environment": {**held["environment"], "command": ["pytest"]}})
    assert again(model) is None


def test_the_recipe_is_compared_with_its_base(run):
    base = {"quickstart": {**run.recipe(), "epochs": 30}}
    found, _ = facts([run.path], base.get)
    assert found["provenance"]["changed"] == ["epochs: 30 -> 4"]
    assert facts([run.path])[0]["provenance"]["changed"] is None


def test_a_study_has_claims_with_the_effect_that_they_could_have_found(tmp_path):
    found, models = facts([made_study(tmp_path / "study")])
    assert not models and found["kind"] == "study" and found["title"] == "Tricks, examined again"
    verdicts = found["study"]["verdicts"]
    assert [each["outcome"] for each in verdicts] == [outcome for outcome, _, _ in OUTCOMES]
    assert {each["detectable"] for each in verdicts} == {0.125}, "that of the study, by its seeds"


def test_all_facts_are_json_of_finite_numbers(tmp_path):
    for target in (made_run(tmp_path / "run").path, made_study(tmp_path / "study")):
        found, _ = facts([target])
        assert json.loads(json.dumps(found, allow_nan=False)).keys() == found.keys()


@pytest.mark.parametrize(
    ("eps", "written"),
    [(8 / 255, "8/255"), (4 / 255, "4/255"), (0.031, "0.031"), (0.2, "0.2"), (0.5, "0.5"), (1.0, "1")],
)
def test_an_eps_is_written_as_the_field_writes_it(eps, written):
    assert radius(eps) == written
    assert threat_name(f"Linf(eps={eps})") == f"Linf {written}"


def test_the_folder_of_a_run_is_cleared_of_its_report(run):
    from sparring.report.write import write_report

    write_report([run.path])
    again = RunFolder(run.path)
    again.clear()
    assert [path.name for path in run.path.iterdir()] == []


def test_memorised_labels_are_counted_apart_from_true_ones(run):
    y, true = np.array([0, 1, 2, 3]), np.array([0, 1, 2, 9])
    run.settle_training({"rows": np.arange(4), "y": y, "true": true})
    for step, right in ((10, [1, 0, 0, 0]), (20, [1, 1, 0, 1])):
        flags = np.array(right, bool)
        losses = {"clean_loss": np.ones(4, np.float32), "adversarial_loss": np.ones(4, np.float32)}
        run.add_memory(step, step / 10, {**losses, "clean_right": flags, "adversarial_right": flags})
    found = facts([run.path])[0]["training"]["memorised"]
    assert found["examples"] == {"labels as they were": 3, "changed labels": 1}
    assert found["epochs"] == [1, 2]
    assert found["robust"] == {"labels as they were": [1 / 3, 2 / 3], "changed labels": [0, 1]}


def test_a_long_training_is_drawn_by_a_few_hundred_points(run):
    for step in range(50, 1500):
        run.add_metrics({"step": step, "epoch": step / 10, "lr": 0.1, "terms": {"ce": 1.0}})
    found = facts([run.path])[0]["training"]
    assert 200 < len(found["lr"]) <= 400 and len(found["terms"]["ce"]) == len(found["lr"]) - 1
