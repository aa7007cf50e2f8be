"""`sparring evaluate RUN --suite full`, with attacks that are shorter than the suite's own."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from sparring import PGD, WhiteBox, fit
from sparring.attacks import HopSkipJump
from sparring.cli import run as shell
from sparring.data import Digits
from sparring.data.corruptions import CORRUPTIONS
from sparring.records.run_folder import read_evaluated

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    import conftest

    recipe = replace(conftest.tiny.__wrapped__(), epochs=1)
    return fit(recipe, tmp_path_factory.mktemp("suite") / "run", progress=False)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr("sparring.evaluation.suite.AutoAttack", lambda ball: WhiteBox(PGD(ball, 2, patience=0)))
    monkeypatch.setattr("sparring.evaluation.suite.HopSkipJump", partial(HopSkipJump, steps=1, samples=5))


@pytest.fixture
def corrupted(tmp_path):
    """Corrupted digits that are the clean ones."""
    test = Digits().load()[1]
    for name in CORRUPTIONS:
        np.save(tmp_path / f"{name}.npy", np.tile(test.x.permute(0, 2, 3, 1).numpy(), (5, 1, 1, 1)))
    np.save(tmp_path / "labels.npy", test.y.numpy())
    return tmp_path


def test_the_full_suite_gives_one_table_in_the_console_in_json_and_in_the_folder(trained, short, corrupted, capsys):
    command = ["evaluate", str(trained.path), "--weights", "last", "--evaluation.examples", "20", "--overwrite"]
    command += ["--suite", "full", "--suite-threats", "l2:0.5", "--transfer-from", str(trained.path)]
    command += ["--corruptions", str(corrupted)]
    assert shell([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["last"]
    assert {"clean", "linf", "l2", "hopskipjump", "transfer", "summary"} <= set(found)
    assert "l1" not in found and "pgd-3" not in found
    flags = read_evaluated(trained.flags("last"))
    union = np.logical_and.reduce([flags.robust[name] for name in ("linf", "l2", "hopskipjump", "transfer")])
    assert found["summary"]["union"]["accuracy"] == pytest.approx(union.mean())
    assert found["summary"]["corruptions"]["mean"] == pytest.approx(found["clean"]["accuracy"])
    assert set(found["summary"]["calibration"]) == {"ece", "nll", "brier"}
    assert len(found["summary"]["curve"]) == 6
    written = json.loads((trained.path / "evaluation.json").read_text())
    assert written["last"]["summary"] == found["summary"]
    assert written["how"]["evaluation"]["corruptions"]["folder"] == str(corrupted)
    assert shell(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for row in ("union of linf, l2, hopskipjump, transfer", "corruptions, mean", "severity 5", "Brier score"):
        assert row in shown


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--suite-threats", "l2:0.5"), "--suite-threats are the sets of a suite: give --suite full with them"),
        (("--certify-samples", "7"), "--certify-samples is the number of noisy copies of --certify"),
        (("--transfer-from", "nowhere"), "--transfer-from nowhere: there is no such run folder or file of weights"),
        (("--corruptions", "nowhere"), "nowhere"),
    ],
)
def test_what_a_suite_lacks_is_a_sentence(trained, flags, said, capsys):
    assert shell(["evaluate", str(trained.path), "--threat", "linf:0.1", "--overwrite", *flags]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--suite-threats", "l2:0.5"), "--suite-threats are the sets of a suite: give --suite full with them"),
        (("--keep-images",), "--keep-images is about the results in a folder, and there is none: give --out FOLDER"),
        (("--overwrite",), "--overwrite is about the results in a folder"),
        (("--weights", "last"), "--weights chooses weights of a run folder, and"),
    ],
)
def test_options_without_effect_are_refused(trained, flags, said, capsys):
    assert shell(["evaluate", str(trained.weights("best")), *flags]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
