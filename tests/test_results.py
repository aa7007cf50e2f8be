import numpy as np
import pytest
from scipy.stats import binomtest

from sparring import Accuracy, RunFolder, UserError
from sparring.results import write_bytes
from sparring.scores import Evaluated


@pytest.mark.parametrize(("correct", "examples"), [(0, 10), (10, 10), (50, 100), (850, 1000), (1, 3)])
def test_the_interval_is_wilsons(correct, examples):
    accuracy = Accuracy(correct, examples)
    wanted = binomtest(correct, examples).proportion_ci(method="wilson")
    assert accuracy.interval == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    assert accuracy.plain() == {
        "accuracy": correct / examples,
        "low": accuracy.interval[0],
        "high": accuracy.interval[1],
        "examples": examples,
    }


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [
        a.interval[0] <= 0.7 <= a.interval[1] for a in (Accuracy(int(k), 200) for k in rng.binomial(200, 0.7, 4000))
    ]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.012)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_bytes(path, b"old")
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_metrics_survive_a_line_that_was_cut_short_and_can_be_rewound(tmp_path):
    run = RunFolder(tmp_path)
    for step in (10, 20, 30):
        run.add_metrics({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')
    assert [row["step"] for row in run.metrics()] == [10, 20, 30]
    run.rewind_metrics(20)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 10}\n{"step": 20}\n'


def test_flags_are_read_as_they_were_written(tmp_path):
    found = Evaluated(
        {"clean": np.array([True, False]), "pgd-50-10": np.array([False, False])}, np.array([0, 1]), ("a", "b")
    )
    run = RunFolder(tmp_path)
    run.write_flags("best", found)
    again = run.read_flags("best")
    assert {name: flags.tolist() for name, flags in again.standing.items()} == {
        "clean": [True, False],
        "pgd-50-10": [False, False],
    }
    assert again.label.tolist() == [0, 1]
    assert again.classes == ("a", "b")
    assert found.table()["clean"] == Accuracy(1, 2)


def test_only_the_files_of_a_run_are_cleared(tmp_path):
    run = RunFolder(tmp_path)
    run.begin({"$": "recipe:Recipe"})
    run.set_status({})
    mine = {"notes.txt", "poster.png", "rice2020.safetensors", "other.json"}
    for name in (*mine, "learning-curve.png", ".learning-curve.writing.png", "best.safetensors"):
        (tmp_path / name).write_text("x")
    run.checkpoints.mkdir()
    run.clear()
    assert {p.name for p in tmp_path.iterdir()} == mine


def test_a_folder_of_other_files_is_foreign_and_an_empty_one_is_not(tmp_path):
    assert not RunFolder(tmp_path / "new").foreign()
    assert not RunFolder(tmp_path).foreign()
    for name in (".lock", ".recipe.json.writing"):  # what a killed process leaves
        (tmp_path / name).touch()
    assert not RunFolder(tmp_path).foreign()
    (tmp_path / "thesis.tex").write_text("x")
    assert RunFolder(tmp_path).foreign()
    assert RunFolder(tmp_path / "thesis.tex").foreign()
    (tmp_path / "recipe.json").write_text('{"soup": "onions"}')
    assert RunFolder(tmp_path).foreign()


def test_a_second_process_is_kept_out(tmp_path):
    with (
        RunFolder(tmp_path).locked(),
        pytest.raises(UserError, match="is in use: another process trains there"),
        RunFolder(tmp_path).locked(),
    ):
        pass
    with RunFolder(tmp_path).locked():
        pass


def test_a_file_that_is_not_json_is_named(tmp_path):
    run = RunFolder(tmp_path)
    run.begin({"a": 1})
    (tmp_path / "recipe.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"recipe\.json cannot be read .*: restore it, or start a new run"):
        run.recipe()
    (tmp_path / "recipe.json").write_text("[1]")
    with pytest.raises(UserError, match="it holds a list"):
        run.recipe()
