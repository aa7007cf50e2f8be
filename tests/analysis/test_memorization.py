"""Memorization of runs, from the shell; and on digits, TRADES learns random labels where PGD-AT does not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from sparring import PGD, TRADES, CrossEntropy, GaussianStart, Linf, Method, UserError, fit
from sparring.analysis.memorization.on_run import agreement, analyze_memorization
from sparring.analysis.runs import open_run
from sparring.cli import run as shell
from sparring.core.serialization import Build
from sparring.data import Digits, LabelNoise, PixelNoise, Subset
from sparring.models import small_cnn
from sparring.recipes import find
from sparring.recipes.memorization import digits_random_labels, fashion_kept
from sparring.records import RunFolder
from sparring.training import ExampleHistory

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """PGD-AT and TRADES, shortly, on labels a fifth of which were drawn anew."""
    import conftest

    folder = tmp_path_factory.mktemp("runs")
    threat = Linf(0.1)
    recipe = replace(
        conftest.tiny.__wrapped__(),
        data=Subset(Digits(), 300, 60),
        batch_size=32,
        lr=0.1,
        epochs=4,
        alterations=(LabelNoise(0.5),),
        example_history=ExampleHistory(PGD(threat, steps=2), every=2),
    )
    near = Method(PGD(threat, steps=2, start=GaussianStart()), TRADES())
    return (
        recipe,
        fit(recipe, folder / "pgd"),
        fit(replace(recipe, method=near, example_history=None), folder / "trades"),
    )


def test_analyze_says_what_was_learned_by_heart(runs, capsys):
    _, run, other = runs
    given = ["--weights", "last", "--examples", "50", "--jacobian-examples", "10", "--steps", "2"]
    assert shell(["analyze", str(run.path), "memorization", "--compare-with", str(other.path), *given]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("robust generalisation", "labels that", "log path norm", "Kendall's tau"):  # a console may be narrow
        assert part in said, said
    found = json.loads(run.analysis("memorization", "json").read_text())
    assert run.analysis("memorization", "png").stat().st_size > 10_000
    training = run.training()
    wrong = training["y"] != training["true"]
    assert found["labels"]["wrong"] == pytest.approx(wrong.mean())
    assert found["labels"]["given label, clean"]["examples"] == 50
    accuracy = {name: each["accuracy"] for name, each in found["accuracy"].items()}
    assert found["robust generalisation gap"] == accuracy["train, robust"] - accuracy["test, robust"]
    memory = run.read_memory()
    assert found["memory"]["robust accuracy"] == pytest.approx(memory.adversarial_right.mean(1))
    hardest = np.argsort(-memory.difficulty, kind="stable")[:20]
    assert found["memory"]["hardest"] == training["rows"][hardest].tolist()
    assert list(found["gradient"]) == ["first third", "second third", "last third"]
    logged = [row["gradient"] for row in run.metrics() if "gradient" in row]
    assert len(logged) == 3  # of 32 steps, every tenth
    assert min(logged) > 0
    with np.load(run.analysis("memorization", "npz")) as held:
        assert held["difficulty"].shape == (270,)
    assert not other.analysis("memorization", "json").exists()


def test_as_json_both_runs_and_how_they_agree(runs, capsys):
    _, run, other = runs
    given = ["--weights", "last", "--examples", "40", "--jacobian-examples", "5", "--steps", "1", "--json"]
    assert shell(["analyze", str(other.path), "memorization", "--compare-with", str(run.path), *given]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["run"] for each in found["runs"]] == [str(other.path), str(run.path)]
    assert found["runs"][0]["memory"] is None
    assert found["agreement"]["examples"] == 40  # one of the two remembers nothing: at the weights
    assert found["how"]["weights"] == "last"


def test_accuracies_are_on_the_labels_that_were_trained_on(runs):
    _, run, _ = runs
    subject = open_run(run.path, "last", 60, "cpu")
    found = analyze_memorization(subject, Linf(0.1), examples=270, jacobian_examples=5, steps=1)
    training = run.training()
    with torch.no_grad():
        right = (subject.model(subject.training.data.x.float() / 255).argmax(1) == subject.training.data.y).numpy()
    assert found.accuracy["train", "clean"].correct == right.sum()
    wrong = training["y"] != training["true"]
    assert found.fitted["given label, clean"].correct == right[wrong].sum()
    assert np.array_equal(subject.training.data.y.numpy(), training["y"])


def test_agreement_is_kendalls_tau_with_an_interval():
    rng = np.random.default_rng(0)
    one = rng.random(200)
    other = one + 0.3 * rng.random(200)
    found = agreement(one, other)
    assert found.tau == pytest.approx(kendalltau(one, other).statistic)
    assert found.low < found.tau < found.high
    assert found.examples == 200
    assert agreement(one, rng.random(200)).low < 0 < agreement(one, rng.random(200)).high


def test_what_does_not_compare_is_said(runs, tmp_path, capsys):
    recipe, run, _ = runs
    strange = fit(replace(recipe, alterations=(LabelNoise(0.3),), epochs=1), tmp_path / "strange")
    given = ["--weights", "last", "--examples", "10", "--jacobian-examples", "2", "--steps", "1"]
    assert shell(["analyze", str(run.path), "memorization", "--compare-with", str(strange.path), *given]) == 2
    assert "trained on different examples or labels" in capsys.readouterr().err


def test_bad_input_from_the_shell_has_its_sentence(runs, tmp_path, capsys):
    _, run, _ = runs
    for args, sentence in (
        ([str(run.path), "memorisation"], "no analysis 'memorisation'"),
        ([str(tmp_path / "none"), "memorization"], "is no run folder"),
        ([str(run.path), "memorization", "--jacobian-examples", "0"], "at least one image"),
    ):
        assert shell(["analyze", *args]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["cifar10_rn18_pgd_te", "cifar10_rn18_trades_te", "fashion_pgd_te", "fashion_trades_te"]
)
def test_the_recipes_have_the_weight_of_the_paper(name):
    recipe = find(name)()
    method, term = recipe.method.objective.parts
    assert (term.weight.peak, term.decay, term.per_class) == (30.0, 0.9, False)
    trades = "trades" in name
    assert isinstance(method, TRADES if trades else CrossEntropy)
    assert term.on == ("clean" if trades else "adversarial")
    share = (term.weight.start / recipe.epochs, term.weight.end / recipe.epochs)
    assert share == pytest.approx((0.45, 0.75), abs=0.06)


def test_recipes_with_changed_training_sets():
    assert digits_random_labels(rate=0.3).alterations == (LabelNoise(0.3),)
    assert fashion_kept(by="runs/a", keep="hard", share=0.5).alterations[0].by == ("runs/a",)
    assert find("cifar10_wrn28_10_random_labels")(train="pgd").augment == ()


def fitted(train: str, folder) -> float:
    """Training accuracy on random labels in the end, clean, after a third of the epochs and a smaller attack."""
    recipe = digits_random_labels(train=train)
    attack = recipe.method.attack
    recipe = replace(
        recipe,
        model=Build(small_cnn, width=16, batch_norm=True),
        method=replace(recipe.method, attack=replace(attack, steps=3, step_size=attack.threat.eps / 1.5)),
        epochs=20,
        lr=replace(recipe.lr, milestones=(7, 14)),
        example_history=replace(recipe.example_history, every=20),
        selection=replace(recipe.selection, steps=1),
    )
    return float(fit(recipe, folder).read_memory().clean_right[-1].mean())


def test_trades_learns_random_labels_where_pgd_at_does_not(tmp_path):
    """The same net, images, eps and number of steps; whether TRADES fits them, the study says."""
    trades, pgd = (fitted(train, tmp_path / train) for train in ("trades", "pgd"))
    assert trades > 0.4, trades
    assert pgd < 0.2, pgd


def test_pixels_can_be_changed_in_a_run(tmp_path):
    recipe = replace(digits_random_labels(), alterations=(PixelNoise("shuffled"),), epochs=1, example_history=None)
    recipe = replace(recipe, model=Build(small_cnn, width=2))
    run = fit(recipe, tmp_path)
    assert np.array_equal(run.training()["y"], run.training()["true"])
    with pytest.raises(UserError, match="has no history of its training examples"):
        RunFolder(tmp_path).read_memory()
