"""Run folders that are evaluated in shards, in Python and on the command line."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers import same_results

from sparring import (
    Linf,
    RunFolder,
    UserError,
    evaluate_run,
    fit,
)
from sparring.cli import run as shell
from sparring.evaluation import MinimumNorm
from sparring.records import EvaluationResult
from sparring.records.run_folder import read_evaluated

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    import conftest

    recipe = conftest.tiny.__wrapped__()
    attack = {**recipe.evaluation.adversaries, "nearest": MinimumNorm.of(Linf(0.1), steps=2)}
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, adversaries=attack))
    return recipe, fit(recipe, tmp_path_factory.mktemp("trained") / "run", progress=False)


@pytest.fixture
def folders(trained, tmp_path):
    """Two copies of a run: one to evaluate as it is, one in shards."""
    import shutil

    recipe, run = trained
    return recipe, *(RunFolder(shutil.copytree(run.path, tmp_path / name)) for name in ("whole", "parts"))


def files(run):
    return {path.name for path in run.path.iterdir() if path.name != ".lock"}


def test_merged_shards_leave_the_files_of_one_evaluation(folders):
    recipe, whole, parts = folders
    found = evaluate_run(whole, recipe)
    for number in (3, 1, 2):
        of_shard = evaluate_run(parts, recipe, shard=(number, 3))
        assert len(of_shard["best"].label) in (13, 14)
        assert not parts.evaluated() and not list(parts.path.glob("*.state"))
    assert {f"evaluation-{which}-shard-{n}-of-3.npz" for which in ("best", "last") for n in (1, 2, 3)} <= files(parts)
    merged = evaluate_run(parts, recipe, merge=True)
    for which in ("best", "last"):
        same_results(merged[which], found[which])
        same_results(parts.read_flags(which), whole.read_flags(which))
    assert parts.evaluation().keys() == whole.evaluation().keys()
    assert parts.evaluation()["how"] == whole.evaluation()["how"]
    assert parts.evaluation()["best"] == whole.evaluation()["best"]
    assert files(parts) == files(whole)


def test_a_shard_works_beside_others_and_beside_a_training_that_has_the_folder(folders):
    recipe, _, run = folders
    with run.locked():
        assert len(evaluate_run(run, recipe, shard=(1, 40), which=("best",))["best"].label) == 1
        with pytest.raises(UserError, match="is in use: another process works there"):
            evaluate_run(run, recipe, merge=True)


def test_shards_are_deleted_with_the_run_that_they_are_of(folders):
    recipe, _, run = folders
    evaluate_run(run, recipe, shard=(1, 2), which=("best",))
    run.state("best-shard-2-of-2").mkdir()
    (run.state("best-shard-2-of-2") / "about.json").touch()
    run.clear()
    assert files(run) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: replace(r, evaluation=replace(r.evaluation, examples=39)), r"evaluation\.examples: 40 -> 39"),
        (
            lambda r: replace(r, seed=7),
            r"of another evaluation \(seed: 0 -> 7\): give --merge the flags that",
        ),
    ],
)
def test_shards_of_another_evaluation_are_not_merged(folders, change, message):
    recipe, _, run = folders
    for number in (1, 2):
        evaluate_run(run, recipe, shard=(number, 2), which=("best",))
    with pytest.raises(UserError, match=message):
        evaluate_run(run, change(recipe), merge=True, which=("best",))
    assert len(run.shards("best")) == 2
    with pytest.raises(UserError, match="holds no results of shards of last: evaluate all shards before"):
        evaluate_run(run, recipe, merge=True)


@pytest.mark.parametrize("harm", [{"shard": np.zeros(2, int)}, {"examples/label": np.zeros(99, int)}])
def test_a_damaged_shard_gets_a_sentence(folders, harm):
    recipe, _, run = folders
    evaluate_run(run, recipe, shard=(1, 2), which=("best",))
    (path,) = run.shards("best")
    with np.load(path) as held:
        np.savez(path, **{**held, **harm})
    with pytest.raises(UserError, match=r"shard-1-of-2\.npz cannot be read .*: evaluate again"):
        read_evaluated(path)


def test_a_file_of_results_with_pictures_is_read_as_it_was_written(folders):
    recipe, _, run = folders
    found = evaluate_run(run, recipe, shard=(2, 2), which=("best",))["best"]
    (again,) = run.read_shards("best")
    same_results(replace(again, settings=found.settings), found)
    assert isinstance(again, EvaluationResult) and again.shard == found.shard == (2, 2, 40)


def test_the_command_line_evaluates_shards_and_merges_them(folders, capsys):
    _, whole, parts = folders
    few = ["--weights", "best", "--attack", "fgsm", "--eps", "0.05"]
    assert shell(["evaluate", str(whole.path), *few, "--json"]) == 0
    wanted = json.loads(capsys.readouterr().out)
    assert shell(["evaluate", str(parts.path), *few, "--shard", "2/2"]) == 0
    assert "1 of 2 shards are done: evaluate the others, then give --merge" in capsys.readouterr().out
    assert shell(["evaluate", str(parts.path), *few, "--merge"]) == 2
    assert "results of the shards 1/2 are missing: evaluate these" in capsys.readouterr().err
    assert shell(["evaluate", str(parts.path), *few, "--shard", "1/2"]) == 0
    assert "2 of 2 shards are done: give --merge instead of --shard" in capsys.readouterr().out
    assert shell(["evaluate", str(parts.path), *few, "--merge", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == wanted
    assert set(wanted["best"]) >= {"clean", "fgsm"}


def test_weights_alone_and_models_of_ones_own_are_evaluated_in_shards(trained, tmp_path, capsys):
    _, run = trained
    model = ["--model", "small_cnn:width=4", "--data", "digits", "--examples", "12"]
    for target, name, more in ((str(run.weights("best")), "weights", []), (str(run.weights("last")), "model", model)):
        few = [target, "--attack", "fgsm", "--eps", "0.05", "--out", str(tmp_path / name), *more, "--json"]
        for rest in (["--shard", "1/2"], ["--shard", "2/2"], ["--merge"]):
            assert shell(["evaluate", *few, *rest]) == 0
        merged = json.loads(capsys.readouterr().out.split("\n}\n{")[-1].join(("{", "")))[name]
        assert merged["clean"]["examples"] == (12 if more else 40)
        assert {path.name for path in (tmp_path / name).glob("*.npz")} == {f"evaluation-{name}.npz"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--shard", "3"], "--shard 3: write the number of the shard and the number of all, as 2/8"),
        (["--shard", "9/8"], "the number of a shard = 9 is no whole number from 1 to 8"),
        (["--shard", "1/2", "--merge"], "--merge makes one result of all shards: give it without --shard"),
        (["--shard", "1/2", "--track", "tensorboard"], "a tracker shows the results on all examples"),
    ],
)
def test_a_shard_that_is_not_clear_gets_a_sentence(folders, args, message, capsys):
    _, _, run = folders
    assert shell(["evaluate", str(run.path), *args]) == 2
    assert message in capsys.readouterr().err


def test_shards_of_weights_alone_need_a_folder(trained, capsys):
    _, run = trained
    assert shell(["evaluate", str(run.weights("best")), "--shard", "1/2"]) == 2
    assert "the results of shards are put together in a folder: name one with --out" in capsys.readouterr().err
