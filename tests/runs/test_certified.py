"""Certification of runs: its files, its parts, and the command."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sparring import Benign, Method, RunFolder, UserError, fit
from sparring.cli import run as shell
from sparring.cli.models import filled_in
from sparring.objectives import GaussianNoise
from sparring.records.certification import Certification
from sparring.records.certification_files import CertificationFiles
from sparring.records.results import Shard
from sparring.runs.certified import Certifying, certify_run
from sparring.runs.recipe import Evaluation

HOW = Certifying(sigma=0.2, samples=40, examples=30)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was trained with noise."""
    import conftest

    recipe = replace(
        conftest.tiny.__wrapped__(),
        epochs=2,
        method=Method(Benign(), GaussianNoise(0.2)),
        selection=Benign(),
        held_out=0.0,
        evaluation=Evaluation({}),
    )
    return fit(recipe, tmp_path_factory.mktemp("certified") / "run"), recipe


@pytest.mark.slow
def test_a_run_is_certified_and_its_files_can_be_read_and_cleared(trained, drawn):
    run, recipe = trained
    found = certify_run(run, recipe, HOW)
    files = CertificationFiles(run)
    assert found["best"] is found["last"], "the same weights are certified once"
    assert (files.read("last").votes == found["last"].votes).all()
    assert json.loads(files.tables.read_text())["best"] == found["best"].plain()
    assert files.curve.read_bytes()[1:4] == b"PNG"
    assert {files.tables, files.curve, files.votes("best"), files.votes("last")} <= set(run.clearable())
    with pytest.raises(UserError, match="holds a certification of 30 images, and this one is of 20: --overwrite it"):
        certify_run(run, recipe, replace(HOW, examples=20))
    files.votes("best").write_bytes(b"no file of votes")
    with pytest.raises(UserError, match=r"certification-best\.npz"):
        files.read("best")


@pytest.mark.slow
def test_shards_of_the_command_become_what_one_command_gives(trained, capsys):
    run, _ = trained
    given = ["evaluate", str(run.path), "--certify", "0.2", "--certify-samples", "40", "--evaluation.examples", "30"]
    given = [*given, "--weights", "last", "--overwrite", "--json"]
    assert shell(given) == 0
    whole = json.loads(capsys.readouterr().out)
    for part in ("1/2", "2/2"):
        assert shell([*given, "--shard", part]) == 0
    capsys.readouterr()
    assert shell([*given, "--merge"]) == 0
    assert json.loads(capsys.readouterr().out) == whole
    assert whole["last"]["images"] == 30
    assert not list(run.path.glob("*shard*")) and not list(run.path.glob("*.state"))
    shown = [argument for argument in given if argument != "--json"]
    assert shell(shown) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "abstained" in text and "Gaussian noise of sigma 0.2, 40 samples, alpha 0.001" in text


def test_a_file_of_weights_is_certified_and_nothing_is_written(trained, capsys):
    run, _ = trained
    weights = RunFolder(run.path).weights("last")
    command = ["evaluate", str(weights), "--certify", "0.2", "--certify-samples", "20", "--evaluation.examples", "5"]
    assert shell([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"]["samples"] == 20


def test_a_certification_takes_no_attack(trained, capsys):
    run, _ = trained
    assert shell(["evaluate", str(run.path), "--certify", "0.2", "--attack", "pgd"]) == 2
    assert "--certify runs no attack, and --attack belongs to attacks" in " ".join(capsys.readouterr().err.split())
    for more in (["--only", "3"], ["--track", "tensorboard"]):
        assert shell(["evaluate", str(run.path), "--certify", "0.2", *more]) == 2
        assert f"leave out {more[0]}" in " ".join(capsys.readouterr().err.split())
    assert "--threat" not in filled_in("robustbench:cifar10/Linf/Standard", ["--certify", "0.25"])
    assert "--threat" in filled_in("robustbench:cifar10/Linf/Standard", [])


def test_shards_are_counted_by_how_many_there_are(tmp_path):
    files = CertificationFiles(RunFolder(tmp_path))
    numbers = np.arange(2)
    found = Certification(numbers, numbers, 10, 0.2, 0.001, numbers, ("a", "b"), numbers, numbers)
    for part in ((1, 3), (2, 3), (1, 2)):
        files.write("best", replace(found, shard=Shard(*part, 4)))
    assert [len(files.shards("best", of)) for of in (None, 2, 3)] == [3, 1, 2]
