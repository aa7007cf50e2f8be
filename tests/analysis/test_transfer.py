"""Transfer to other tasks, and how far these are."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import toy_data
from sklearn.linear_model import LogisticRegression
from torch import nn

from sparring import Classifier, TensorData, UserError, fit, make_rng
from sparring.analysis import FineTuning, measure_transfer_learning, shots, task_distance, task_embedding
from sparring.analysis.transfer.measure import last_block
from sparring.cli import run as shell
from sparring.core.serialization import Build
from sparring.core.types import pixels
from sparring.data import ClassSubset, Digits, Resized
from sparring.models import amdim, linear_probe, preact_resnet18, resnet18, small_cnn, validated_probe

pytestmark = pytest.mark.slow


def normed(classes: int = 3) -> Classifier:
    torch.manual_seed(0)
    return small_cnn(classes, (1, 4, 4), width=3, batch_norm=True).eval()


# -- the head


def test_the_probe_is_that_of_scikit_learn():
    rng = make_rng(0)
    z, w = torch.randn(200, 10, generator=rng), torch.randn(10, 4, generator=rng)
    y = (z @ w + torch.randn(200, 4, generator=rng)).argmax(1)
    layer = linear_probe(z, y, 4, penalty=0.01)
    standard = ((z - z.mean(0)) / z.std(0)).double().numpy()
    known = LogisticRegression(C=1 / (0.01 * 200), tol=1e-8, max_iter=1000).fit(standard, y.numpy())
    assert np.allclose(layer(z).softmax(1).detach(), known.predict_proba(standard), atol=1e-3)
    again = linear_probe(z, y, 4, penalty=0.01, start=layer)
    assert torch.allclose(again.weight, layer.weight, atol=1e-3)


def test_the_penalty_is_the_one_that_is_best_on_a_part_held_out():
    rng = make_rng(0)
    z = torch.randn(60, 50, generator=rng)  # more noise than can be told from 60 examples
    y = (z[:, 0] + 0.5 * torch.randn(60, generator=rng) > 0).long()
    _, chosen = validated_probe(z, y, 2)
    assert chosen >= 1e-2
    clear = torch.randn(3000, 5, generator=rng)
    _, easy = validated_probe(clear, (clear[:, 0] > 0).long(), 2)
    assert easy <= 1e-4
    layer, only = validated_probe(z, y, 2, penalties=(0.5,))
    assert only == 0.5 and torch.equal(layer.weight, linear_probe(z, y, 2, 0.5).weight)
    assert validated_probe(z[:2], torch.tensor([0, 1]), 2)[0].weight.shape == (2, 50)  # nothing left to hold out
    with pytest.raises(UserError, match="no penalty"):
        validated_probe(z, y, 2, penalties=())


# -- modes


@pytest.mark.parametrize("mode", ["head", "norms", "block", "layers", "all"])
def test_modes_move_what_they_say(mode):
    model, data = normed(), toy_data(60)
    layers = ("3", "body.9") if mode == "layers" else ()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    found = measure_transfer_learning(model, data, data, FineTuning(mode, epochs=15, batch_size=16, layers=layers))
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters()) and not model.training
    moved = {n for n, each in found.model.body.state_dict().items() if not torch.equal(each, before[f"body.{n}"])}
    weights = {"0.weight", "3.weight", "6.weight", "9.weight", "13.weight", "13.bias"}
    block, chosen = {"13.weight", "13.bias"}, {"3.weight", "9.weight"}
    expected = {"head": set(), "norms": set(), "block": block, "layers": chosen, "all": weights}[mode]
    assert moved & weights == expected
    norms = {n for n in before if n.startswith("body.") and n.removeprefix("body.") not in weights}
    assert moved - weights == (set() if mode == "head" else {n.removeprefix("body.") for n in norms})
    assert found.accuracy.value > 0.8 and not found.model.training
    again = measure_transfer_learning(model, data, data, FineTuning(mode, epochs=15, batch_size=16, layers=layers))
    assert again.accuracy == found.accuracy
    assert all(torch.equal(p, q) for p, q in zip(again.model.parameters(), found.model.parameters(), strict=True))


def test_a_head_on_pooled_features_reads_one_number_of_each_channel():
    data = toy_data(60)
    model = small_cnn(3, (1, 4, 4), width=3, batch_norm=True, hidden=False).eval()
    found = measure_transfer_learning(model, data, data, FineTuning(pooled=True))
    assert found.model.head.weight.shape == (3, 6)
    x = pixels(data.x[:5])
    with torch.no_grad():
        maps = model.body[:-1](model.normalize(x))
        assert torch.allclose(found.model.features(x), maps.mean((2, 3)))
    assert measure_transfer_learning(model, data, data).model.head.weight.shape == (3, maps[0].numel())


def test_pooled_features_of_a_residual_net_are_those_that_it_has():
    net, data = resnet18(3, (1, 4, 4), width=0.05).eval(), toy_data(30)
    plain, pooled = (measure_transfer_learning(net, data, data, FineTuning(pooled=each)) for each in (False, True))
    assert torch.allclose(plain.model(pixels(data.x)), pooled.model(pixels(data.x)), atol=1e-4)


def test_what_cannot_be_pooled_is_refused():
    flat = Classifier(nn.Flatten(), nn.Linear(16, 3)).eval()
    behind = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.ReLU())  # the last map is not what the head reads
    for model in (flat, normed(), Classifier(behind, nn.Linear(12, 3)).eval()):
        with pytest.raises(UserError, match=r"neither a map \[B, C, H, W\] that is flattened nor the averages of one"):
            measure_transfer_learning(model, toy_data(30), toy_data(30), FineTuning(pooled=True))
    with pytest.raises(UserError, match="mode = 'all' trains the features that the model has: pooled takes"):
        FineTuning("all", pooled=True)


def test_the_statistics_of_a_task_do_not_lose_the_differences_between_classes_that_lie_together():
    """Images in the order of their classes fill batches with one class each."""
    model, data = normed(), toy_data(240)
    rows = data.y.argsort(stable=True)
    together = TensorData(data.x[rows], data.y[rows], data.classes)
    how = FineTuning("norms", epochs=1, batch_size=16, lr=1e-9)
    found = [measure_transfer_learning(model, each, data, how).model.body[1].running_var for each in (data, together)]
    assert torch.allclose(*found, rtol=0.1)


def test_the_last_block_is_the_one_that_runs_last():
    x = torch.rand(2, 1, 8, 8)
    net = resnet18(3, (1, 8, 8), width=0.05).eval()
    assert last_block(net, x) is net.body.layer4[1]  # though its first norm is registered after it
    net = preact_resnet18(3, (1, 8, 8), width=0.05).eval()
    assert last_block(net, x) is net.body.layer4[1]
    net = small_cnn(3, (1, 8, 8), width=2, hidden=False).eval()
    assert last_block(net, x) is net.body[6]
    net = amdim(3, (1, 8, 8), width=2, dim=4, depth=1, read="linear").eval()
    assert any(last_block(net, x) is module for module in net.body.whole.modules())
    with pytest.raises(UserError, match="no weights, so it has no last block"):
        last_block(Classifier(nn.Flatten(), nn.Linear(64, 2)), x)


def test_a_tuned_net_beats_its_head_where_features_say_too_little():
    """Which of two corners alone is bright: no linear reading of pixels tells."""
    rng = make_rng(0)
    corners = torch.randint(2, (200, 2), generator=rng)
    x = 0.2 * torch.rand(200, 1, 4, 4, generator=rng)
    x[:, 0, 0, 0] += 0.8 * corners[:, 0]
    x[:, 0, 3, 3] += 0.8 * corners[:, 1]
    data = TensorData(x, corners.sum(1) % 2, ("alike", "unlike"))
    torch.manual_seed(0)
    model = small_cnn(2, (1, 4, 4), width=4, batch_norm=True).eval()
    head, block, whole = (
        measure_transfer_learning(model, data, data, FineTuning(mode, epochs=40, batch_size=20)).accuracy
        for mode in ("head", "block", "all")
    )
    assert head.value < 0.75 < 0.95 < min(block.value, whole.value)


# -- images of a task


def test_shots_are_drawn_evenly_and_from_all_classes():
    y = torch.tensor([0] * 50 + [1] * 20 + [2] * 3)
    data = TensorData(torch.arange(73).view(-1, 1, 1, 1).float() / 80, y, ("a", "b", "c"))
    for count, each in ((3, [1, 1, 1]), (9, [3, 3, 3]), (20, None), (73, [50, 20, 3])):
        found = shots(data, count, 0)
        assert len(found) == count == len(set(found.x.flatten().tolist()))
        counts = found.y.bincount().tolist()
        assert counts == each if each else sorted(counts[:2]) == [8, 9] and counts[2] == 3
    assert torch.equal(shots(data, 9, 1).x, shots(data, 9, 1).x)
    assert not torch.equal(shots(data, 9, 1).x, shots(data, 9, 2).x)
    for count in (2, 74):
        with pytest.raises(UserError, match=f"count = {count} images of 3 classes: take 3 to 73, at least one of each"):
            shots(data, count, 0)


def test_tasks_that_cannot_be_fitted_are_refused():
    model, data = normed(), toy_data(30)
    missing = TensorData(data.x, data.y % 2, data.classes)
    with pytest.raises(UserError, match=r"no image to train on of 1 of its 3 classes \(c\): take more"):
        measure_transfer_learning(model, missing, data)
    large = TensorData(torch.rand(6, 1, 9, 9), torch.arange(6) % 2, ("a", "b"))
    with pytest.raises(UserError, match="does not take images of 1x9x9"):
        measure_transfer_learning(model, large, large)
    headless = nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()).eval()
    with pytest.raises(UserError, match="no linear layer of Sequential gives its logits"):
        measure_transfer_learning(headless, data, data)
    with pytest.raises(UserError, match="the body of the model has no layer '33': did you mean 3"):
        measure_transfer_learning(model, data, data, FineTuning("layers", layers=("33",)))
    with pytest.raises(UserError, match="layers are named, and only then, with the mode layers"):
        FineTuning("all", layers=("3",))
    bare = small_cnn(3, (1, 4, 4), width=2).eval()
    with pytest.raises(UserError, match="trains batch norm, which this model does not have"):
        measure_transfer_learning(bare, data, data, FineTuning("norms"))
    with pytest.raises(UserError, match="mode = 'body' is not one of head, norms, block, layers, all"):
        FineTuning("body")
    with pytest.raises(UserError, match="epochs = 0 is no whole number"):
        FineTuning(epochs=0)


# -- distances


def test_tasks_are_near_to_themselves_and_far_from_others():
    torch.manual_seed(0)
    model = small_cnn(10, (1, 8, 8), width=4, batch_norm=True).eval()
    train, _ = Digits().load()
    some, others = (shots(ClassSubset(Digits(), part).load()[0], 60, 0) for part in ((0, 1, 2), (7, 8, 9)))
    more = shots(ClassSubset(Digits(), (0, 1, 2)).load()[0], 60, 1)
    a, b, c = (task_embedding(model, task) for task in (some, more, others))
    assert a.shape == (4 + 4 + 8 + 8 + 16,)  # a number for each filter and each unit
    assert task_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert task_distance(a, c) == pytest.approx(task_distance(c, a))
    assert 0 < task_distance(a, b) < task_distance(a, c) < 1
    assert task_distance(a, 3 * a) < 0.5
    one, other = torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0])
    assert task_distance(one, other) == pytest.approx(1 - (2 * 3 / 16) / (10 / 16))
    assert len(train) == 1437


# -- the shell


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    import conftest

    folder, recipe = tmp_path_factory.mktemp("runs"), replace(conftest.tiny.__wrapped__(), epochs=1)
    for name, width in (("narrow", 2), ("wide", 3)):
        fit(replace(recipe, model=Build(small_cnn, width=width, batch_norm=True)), folder / name, device="cpu")
    return folder


def test_runs_are_transferred_from_the_shell(runs, capsys, tmp_path):
    narrow, wide = (str(runs / name) for name in ("narrow", "wide"))
    few = ["--images", "30", "--distance-examples", "20"]
    args = ["--to", "digits+rotated", "digits+classes=5-9", "--compare-with", wide]
    assert shell(["analyze", narrow, "transfer", *args, *few, "--shots", "20", "60", "--seeds", "1"]) == 0
    out = capsys.readouterr().out
    assert "gain" in out and "distance" in out
    saved = json.loads((runs / "narrow" / "analysis-transfer.json").read_text())
    assert np.array(saved["accuracy by seed"]["digits+classes=5-9"]).shape == (1, 2)
    assert 0 < saved["distance"]["digits+rotated"] < 1
    assert (runs / "narrow" / "analysis-transfer.png").stat().st_size > 5_000
    few += ["--shots", "20", "--seeds", "2"]
    args = ["--to", "digits", "--mode", "norms", "--epochs", "1", "--json"]
    assert shell(["analyze", narrow, "transfer", *args, *few]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["how"]["mode"] == "norms"
    assert np.array(found["runs"][0]["accuracy by seed"]["digits"]).shape == (2, 1)
    larger = Resized(Digits(), 1, 9, 9).load()
    arrays = {
        f"{a}_{part}": getattr(d, a).numpy() for part, d in zip(("train", "test"), larger, strict=True) for a in "xy"
    }
    np.savez(tmp_path / "large.npz", **arrays)
    task = f"npz:{tmp_path / 'large.npz'}"
    assert shell(["analyze", narrow, "transfer", "--to", task, *few]) == 2
    assert "has images of 1x9x9, and the run was trained on 1x8x8: give --resize" in capsys.readouterr().err
    assert shell(["analyze", narrow, "transfer", "--to", task, "--resize", *few, "--seeds", "1"]) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no task is named: give --to digits"),
        (["--to", "digit"], "no data called 'digit': did you mean digits"),
        (["--to", "digits", "--seeds", "0"], "give at least one task, one number of images and one seed"),
        (["--to", "digits", "--shots", "5"], "count = 5 images of 10 classes"),
        (["--to", "digits+classes=5-19"], "are chosen of those numbered 0 to 9"),
    ],
)
def test_a_transfer_to_nowhere_is_refused(runs, args, message, capsys):
    assert shell(["analyze", str(runs / "narrow"), "transfer", *args]) == 2
    assert message in capsys.readouterr().err
