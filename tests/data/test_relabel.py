"""Training sets that are changed on purpose: what is drawn, what stays, what a run folder keeps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import toy_data
from helpers import stop_at

from sparring import APGD, PGD, Linf, Restarts, Square, TensorData, UserError, fit
from sparring.attacks import Split
from sparring.cli import run as shell
from sparring.core.types import pixels
from sparring.data import DifficultySubset, Digits, LabelNoise, PixelNoise, Subset, altered
from sparring.data.looks import CentralSquare
from sparring.data.pictures import Pictures
from sparring.records import RunFolder
from sparring.training import ExampleHistory
from sparring.training.checkpoint import read_weights
from sparring.training.example_history import remembering


def blank(n=20_000, classes=10):
    return TensorData(torch.zeros(n, 1, 1, 1), torch.arange(n) % classes, tuple(map(str, range(classes))))


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("including", [True, False])
def test_noise_has_the_transition_matrix_of_the_formula(rate, including):
    """P = (1 - r) I + (r / C) 11' with the true class, (1 - r) I + r / (C - 1) (11' - I) without."""
    data, c = blank(), 10
    found = altered(data, (LabelNoise(rate, including),), seed=3)
    counts = np.zeros((c, c))
    np.add.at(counts, (data.y.numpy(), found.data.y.numpy()), 1)
    eye = np.eye(c)
    want = (1 - rate) * eye + (rate / c if including else rate / (c - 1) * (1 - eye))
    assert np.abs(counts / 2000 - want).max() < 5 * np.sqrt(0.25 / 2000)
    assert torch.equal(found.true, data.y)
    assert torch.equal(found.wrong, found.data.y != data.y)
    share = rate * (1 - 1 / c) if including else rate
    assert float(found.wrong.float().mean()) == pytest.approx(share, abs=0.015)


def test_the_seed_decides_and_each_alteration_has_chance_of_its_own():
    data, noise = blank(500), LabelNoise(0.5)
    one, same, other = (altered(data, (noise,), seed).data.y for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    twice = altered(data, (LabelNoise(1.0), LabelNoise(1.0)), 1).data.y
    assert not torch.equal(twice, altered(data, (LabelNoise(1.0),), 1).data.y)
    assert torch.equal(altered(data, (PixelNoise("shuffled"),), 1).data.y, data.y)


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_a_rate_outside_the_unit_interval_is_refused(rate, capsys):
    with pytest.raises(UserError, match=r"a noise rate of -?\d.\d is not in \[0, 1\]"):
        LabelNoise(rate)
    assert shell(["train", "digits_random_labels", "--rate", str(rate)]) == 2
    assert "is not in [0, 1]" in capsys.readouterr().err


@pytest.mark.parametrize("floating", [False, True])
def test_pixels_lose_their_order_and_keep_their_values(floating):
    x = torch.randint(256, (7, 3, 4, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = TensorData(pixels(x) if floating else x, torch.arange(7) % 2, ("a", "b"))
    shuffled, each, drawn = (altered(data, (PixelNoise(kind),), 5).data for kind in ("shuffled", "random", "gaussian"))
    for found in (shuffled, each):
        assert found.x.dtype == data.x.dtype
        assert torch.equal(found.x.flatten(2).sort(2).values, data.x.flatten(2).sort(2).values)
        # channels of a pixel stay together
        triples = {tuple(column.tolist()) for column in found.x[0].flatten(1).T}
        assert triples == {tuple(column.tolist()) for column in data.x[0].flatten(1).T}

    def order(images, i):
        return [column.tolist() for column in images[i].flatten(1).T]

    def moves(found, i):
        there = order(data.x, i)
        return [there.index(column) for column in order(found.x, i)]

    assert moves(shuffled, 0) == moves(shuffled, 1) != list(range(20))
    assert moves(each, 0) != moves(each, 1)
    big = TensorData(
        torch.rand(500, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 4 + 0.375, data.y, ("a", "b")
    )
    noise = altered(big, (PixelNoise("gaussian"),), 0).data.x
    assert float(noise.mean()) == pytest.approx(float(big.x.mean()), abs=0.005)
    assert float(noise.std()) == pytest.approx(float(big.x.std()), abs=0.005)
    assert drawn.x.dtype == data.x.dtype
    assert drawn.x.shape == data.x.shape


def test_noise_of_pixels_has_the_spread_of_each_channel_and_strikes_a_share_of_the_images():
    x = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = 0.4 + x * torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    data = TensorData(x, torch.arange(200) % 2, ("a", "b"))
    noise = altered(data, (PixelNoise("gaussian"),), 0).data.x
    assert torch.allclose(noise.mean((0, 2, 3)), x.mean((0, 2, 3)), atol=0.005)
    assert torch.allclose(noise.std((0, 2, 3)), x.std((0, 2, 3)), atol=0.005)
    for kind in ("shuffled", "random", "gaussian"):
        for rate, struck in ((0.0, 0), (0.303, 60), (1.0, 200)):  # rounded down, as in the released code
            found = altered(data, (PixelNoise(kind, rate),), 0).data.x
            assert int((found != x).flatten(1).any(1).sum()) == struck
    assert torch.equal(data.x, x)
    with pytest.raises(UserError, match=r"a noise rate of 1.5 is not in \[0, 1\]"):
        PixelNoise("random", 1.5)


def test_pictures_in_files_can_get_other_labels_and_no_other_pixels(tmp_path):
    names = np.array([b"a", b"b", b"c"])
    pictures = Pictures(tmp_path, names, torch.tensor([0, 1, 0]), ("x", "y"), CentralSquare(4))
    found = altered(pictures, (LabelNoise(1.0, including=False),), 0)
    assert found.data.y.tolist() == [1, 0, 1]
    assert found.data.path(1) == pictures.path(1)
    with pytest.raises(UserError, match="stay in files"):
        altered(pictures, (PixelNoise(),), 0)


# -- a memory of examples, and subsets by it


@pytest.fixture(scope="module")
def remembered(tmp_path_factory):
    import conftest

    folder = tmp_path_factory.mktemp("runs") / "reference"
    recipe = conftest.tiny.__wrapped__()
    recipe = replace(
        recipe,
        data=Subset(Digits(), 300, 40),
        batch_size=64,
        alterations=(LabelNoise(0.2),),
        example_history=ExampleHistory(PGD(Linf(0.1), steps=2), every=2),
    )
    return recipe, fit(recipe, folder)


@pytest.mark.slow
def test_a_run_keeps_its_labels_and_what_it_was_like_on_each_example(remembered):
    recipe, run = remembered
    training = run.training()
    assert set(training) == {"rows", "y", "true"}
    assert 0.1 < (training["y"] != training["true"]).mean() < 0.3
    memory = run.read_memory()
    assert memory.epochs.tolist() == [2, 3]  # every second, and the last
    assert memory.adversarial_loss.shape == memory.clean_right.shape == (2, 270)
    assert np.array_equal(memory.y, training["y"])
    # it is what an attack with the same random numbers finds at the last weights
    from sparring.acceleration import AcceleratedCopy
    from sparring.runs.load import load_model

    train = recipe.split(recipe.data.load()[0], run.path, torch.device("cpu"))[0].data
    seen = recipe.example_history.record(load_model(run.weights("last"), recipe), train, AcceleratedCopy(), recipe.seed)
    for name, values in seen.items():
        if values.dtype == bool:
            assert np.array_equal(getattr(memory, name)[-1], values)
        else:
            np.testing.assert_allclose(getattr(memory, name)[-1], values, rtol=1e-3)
    assert np.all(memory.adversarial_loss >= memory.clean_loss - 0.05)
    assert sum(p.stat().st_size for p in run.memory.iterdir()) < 2 * 270 * 4.25 + 2 * 1500  # some 4 bytes each
    lost = memory.adversarial_right[0] & ~memory.adversarial_right[1]
    assert np.array_equal(memory.forgotten, lost.astype(int))


@pytest.mark.slow
def test_remembering_changes_nothing_of_the_training(remembered, tmp_path):
    recipe, run = remembered
    without = fit(replace(recipe, example_history=None), tmp_path / "without")
    one, other = (read_weights(each.weights("last"))[0] for each in (run, without))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert run.metrics() == without.metrics()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["easy", "hard"])
def test_subsets_are_the_easiest_and_the_hardest_of_the_reference(remembered, which):
    recipe, run = remembered
    subset = replace(recipe, alterations=(*recipe.alterations, DifficultySubset(0.4, which, ("reference",))))
    train = recipe.data.load()[0]
    part, _ = subset.split(train, run.path.parent / "another", torch.device("cpu"))
    whole, _ = recipe.split(train, run.path, torch.device("cpu"))
    hard = run.read_memory().difficulty
    assert len(part) == 108
    chosen = np.isin(whole.rows.numpy(), part.rows.numpy())
    assert chosen.sum() == 108
    if which == "hard":
        assert hard[chosen].min() >= hard[~chosen].max()
    else:
        assert hard[chosen].max() <= hard[~chosen].min()
    assert torch.equal(part.data.y, whole.data.y[torch.from_numpy(chosen)])
    assert torch.equal(part.true, whole.true[torch.from_numpy(chosen)])
    assert torch.equal(part.data.x, whole.data.x[torch.from_numpy(chosen)])


def test_a_random_subset_needs_no_reference_and_a_name_may_hold_the_seed(remembered, tmp_path):
    recipe, run = remembered
    train, cpu = recipe.data.load()[0], torch.device("cpu")
    sizes = [
        replace(recipe, alterations=(DifficultySubset(0.5, "random"),), seed=s).split(train, tmp_path, cpu)[0].rows
        for s in (0, 1)
    ]
    assert len(sizes[0]) == len(sizes[1]) == 135
    assert not torch.equal(*sizes)
    named = replace(
        recipe, alterations=(*recipe.alterations, DifficultySubset(0.5, "easy", (str(run.path.parent / "r{seed}"),)))
    )
    with pytest.raises(UserError, match=r"there is no run '.*r0' to choose examples by"):
        named.split(train, tmp_path, cpu)


def test_what_cannot_be_chosen_by_is_said(remembered, tmp_path):
    recipe, run = remembered
    with pytest.raises(UserError, match="name its folder"):
        DifficultySubset(0.5, "hard")
    with pytest.raises(UserError, match=r"not in \(0, 1\]"):
        DifficultySubset(0.0, "random")
    with pytest.raises(UserError, match="which = 'hrad' is not one of easy, hard, random"):
        DifficultySubset(0.5, "hrad", ("r",))
    with pytest.raises(UserError, match="kind = 'shufled' is not one of shuffled, random, gaussian"):
        PixelNoise("shufled")
    other = replace(recipe, alterations=(LabelNoise(0.3), DifficultySubset(0.5, "easy", (str(run.path),))))
    with pytest.raises(UserError, match="their labels are not those"):
        other.split(recipe.data.load()[0], tmp_path, torch.device("cpu"))
    with pytest.raises(UserError, match=r"0\.001 of 60 examples is less than one"):
        altered(toy_data(), (DifficultySubset(0.001, "random"),), 0)


@pytest.mark.slow
def test_a_run_does_not_go_on_on_other_examples(remembered, tmp_path):
    """The recipe is the same, but the run that it chooses by has changed."""

    from sparring.training import Interrupted

    recipe, _ = remembered
    reference = fit(replace(recipe, epochs=1), tmp_path / "ref")
    chosen = replace(
        recipe, alterations=(*recipe.alterations, DifficultySubset(0.5, "easy", ("ref",))), example_history=None
    )
    with pytest.raises(Interrupted):
        fit(chosen, tmp_path / "run", on_progress=stop_at(1))
    fit(replace(recipe, epochs=1, lr=0.5), reference.path, overwrite=True)
    with pytest.raises(UserError, match="was begun on other training examples or labels"):
        fit(chosen, tmp_path / "run")


def test_the_memory_of_a_future_that_is_trained_again_is_forgotten(remembered, tmp_path):
    run = RunFolder(tmp_path)
    run.settle_training({"rows": np.arange(3), "y": np.arange(3), "true": np.arange(3)})
    for step in (4, 8, 12):
        facts = {f"{name}_loss": np.full(3, 1e9) for name in ("clean", "adversarial")}
        facts |= {f"{name}_right": np.array([True, False, True]) for name in ("clean", "adversarial")}
        run.add_memory(step, step / 4, facts)
    run.rewind(9)
    memory = run.read_memory()
    assert memory.epochs.tolist() == [1, 2]
    assert memory.clean_loss.max() == 65504  # what half precision holds
    assert memory.clean_right.tolist() == [[True, False, True]] * 2
    next(run.memory.iterdir()).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"step-\d+\.npz cannot be read .*: train again"):
        run.read_memory()


@pytest.mark.slow
def test_from_the_shell_any_recipe_remembers(tmp_path, capsys):
    args = [
        "train",
        "quickstart",
        "--epochs",
        "1",
        "--model.width",
        "2",
        "--record-history",
        "--out",
        str(tmp_path / "run"),
    ]
    assert shell(args) == 0
    assert RunFolder(tmp_path / "run").read_memory().epochs.tolist() == [1]
    with pytest.raises(UserError, match="both must be at least 1"):
        ExampleHistory(PGD(Linf(0.1)), every=0)
    with pytest.raises(UserError, match=r"must continue after an example is fooled"):
        ExampleHistory(PGD(Linf(0.1), patience=0))
    for attack in (APGD(Linf(0.1)), Restarts(PGD(Linf(0.1))), Square(Linf(0.1)), Split(((1.0, APGD(Linf(0.1))),))):
        with pytest.raises(UserError, match=r"must continue after an example is fooled, and .* does not"):
            ExampleHistory(attack)
    assert remembering(APGD(Linf(0.1))).attack == APGD(Linf(0.1), to_the_end=True)
    assert remembering(PGD(Linf(0.1), patience=0)).attack == PGD(Linf(0.1), patience=None)
