from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from sparring import RunFolder, UserError
from sparring.records import Accuracy, EvaluationResult, PairedComparison
from sparring.records.run_folder import read_evaluated, write_bytes, write_evaluated


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
        run.add_metrics({"step": step, "epoch": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')
    assert [row["step"] for row in run.metrics()] == [10, 20, 30]
    run.rewind(20)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(
        f'{{"step": {step}, "epoch": 1.0}}\n' for step in (10, 20)
    )


def test_flags_are_read_as_they_were_written(tmp_path):
    found = EvaluationResult(
        {"clean": np.array([True, False]), "pgd-50-10": np.array([False, False])}, np.array([0, 1]), ("a", "b")
    )
    run = RunFolder(tmp_path)
    run.write_flags("best", found)
    again = run.read_flags("best")
    assert {name: flags.tolist() for name, flags in again.robust.items()} == {
        "clean": [True, False],
        "pgd-50-10": [False, False],
    }
    assert again.label.tolist() == [0, 1]
    assert again.classes == ("a", "b")
    assert found.table()["clean"] == Accuracy(1, 2)


def test_only_the_files_of_a_run_are_cleared(tmp_path):
    run = RunFolder(tmp_path)
    run.begin({"$": "Recipe"})
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
        pytest.raises(UserError, match="is in use: another process works there"),
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
    with pytest.raises(UserError, match=r"it is \[1\], wanted is dict"):
        run.recipe()


def evaluated(**robust):
    flags = {name: np.array(values, dtype=bool) for name, values in robust.items()}
    return EvaluationResult(flags, np.array([0, 0, 0, 1, 1, 1]), ("cat", "dog"))


CASCADE = {
    "clean": [1, 1, 1, 1, 1, 0],
    "aa/first": [1, 1, 0, 1, 0, 0],
    "aa/second": [1, 0, 0, 1, 0, 0],
    "aa": [1, 0, 0, 1, 0, 0],
    "pgd": [1, 1, 1, 0, 1, 0],
}


def test_what_broke_an_example_is_read_off_the_flags():
    found = evaluated(**CASCADE)
    assert found.broken_by("aa").tolist() == ["", "second", "first", "", "first", "clean"]
    assert found.broken_by("pgd").tolist() == ["", "", "", "pgd", "", "clean"]
    with pytest.raises(UserError, match="nothing called 'pgdd' was evaluated: did you mean pgd"):
        found.broken_by("pgdd")


def test_classes_are_sorted_from_the_worst():
    found = evaluated(**CASCADE).by_class("pgd")
    assert list(found) == ["dog", "cat"]
    assert (found["dog"], found["cat"]) == (Accuracy(1, 3), Accuracy(3, 3))


def test_classes_of_one_name_are_told_apart():
    """As the two cranes of ImageNet."""
    found = EvaluationResult({"clean": np.array([True, True, False, False])}, np.array([0, 0, 1, 2]), ("a", "b", "a"))
    assert {name: each.value for name, each in found.by_class("clean").items()} == {
        "b": 0.0,
        "a (2)": 0.0,
        "a (0)": 1.0,
    }


def test_everything_but_the_pictures_is_read_as_it_was_written(tmp_path):
    base = evaluated(**CASCADE)
    more = {
        "margin": {"aa": np.linspace(-1, 1, 6)},
        "norm": {"aa": np.array([np.nan, 0.1, 0.2, np.nan, 0.1, np.nan])},
        "adversarial": {"aa": np.ones((6, 1, 2, 2), dtype=np.float32)},
        "index": np.arange(6),
        "distance": np.array([np.inf, 0.1, 0.2, 0.3, 0.1, 0.0]),
        "notes": ("careful",),
    }
    found = replace(base, **more)
    write_evaluated(tmp_path / "e.npz", found)
    again = read_evaluated(tmp_path / "e.npz")
    assert set(again.arrays()) == set(found.arrays())
    for name, values in found.arrays().items():
        assert np.array_equal(again.arrays()[name], values, equal_nan=values.dtype.kind == "f"), name
    assert again.classes == found.classes
    assert again.notes == ("careful",)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut short"])
def test_a_damaged_evaluation_gets_a_sentence(tmp_path, content):
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"e\.npz cannot be read .*: evaluate again"):
        read_evaluated(tmp_path / "e.npz")
    with pytest.raises(UserError, match=r"missing\.npz cannot be read .No such file"):
        read_evaluated(tmp_path / "missing.npz")


def test_mcnemars_test_is_the_exact_one():
    """7 against 1 discordant pairs: twice the lower tail of a fair coin, 2 (1 + 8) / 256."""
    pair = PairedComparison(7, 1, 100)
    assert pair.p == pytest.approx(18 / 256)
    assert pair.difference == pytest.approx(0.06)
    assert PairedComparison(0, 0, 10).p == 1.0
    assert PairedComparison(3, 3, 10).p == 1.0
    assert "+6.00 points" in str(pair)


def test_the_interval_of_a_paired_difference_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        split = rng.multinomial(200, [0.1, 0.05, 0.85])
        low, high = PairedComparison(int(split[0]), int(split[1]), 200).interval
        hits += low <= 0.05 <= high
    assert 930 <= hits <= 980


def test_two_evaluations_are_paired_example_by_example():
    a, b = evaluated(**CASCADE), evaluated(**{**CASCADE, "aa": [0, 1, 1, 1, 0, 0]})
    assert a.paired(b, "aa") == PairedComparison(1, 2, 6)
    assert a.paired(b, "aa", "pgd") == PairedComparison(1, 3, 6)
    with pytest.raises(UserError, match="the same images in the same order"):
        a.paired(replace(b, label=np.array([1, 0, 0, 1, 1, 1])), "aa")
    with pytest.raises(UserError, match="the same images in the same order"):
        replace(a, index=np.arange(6)).paired(replace(b, index=np.arange(6)[::-1]), "aa")
