"""Union of norms, transfer, corruptions and calibration: all computed from facts about examples."""

import numpy as np
import pytest
import torch
from conftest import toy_data, toy_net
from helpers import labelled_by, same_results

from sparring import FAB, L1, L2, PGD, EvaluationResult, Linf, OriginalModel, TensorData, UserError, WhiteBox, evaluate
from sparring.attacks import DDN, HopSkipJump
from sparring.core.rng import PerExample
from sparring.core.serialization import from_plain, to_plain
from sparring.core.types import pixels
from sparring.data.corruptions import CORRUPTIONS, CorruptedImages
from sparring.evaluation import AutoAttack, MinimumNorm, Transfer, full_suite
from sparring.records import Summary, merge_evaluations
from sparring.records.calibration import expected_calibration_error

ON_MODEL = {"backend": OriginalModel()}


@pytest.fixture(scope="module")
def net():
    return toy_net().eval().double()


@pytest.fixture(scope="module")
def data(net):
    return labelled_by(net)


def pgd(threat):
    return WhiteBox(PGD(threat, 3, patience=0))


# -- the union


def test_the_union_counts_examples_that_are_robust_in_every_norm(net, data):
    balls = {"linf": Linf(0.03), "l2": L2(0.15), "l1": L1(0.5)}
    found = evaluate(net, data, {name: pgd(ball) for name, ball in balls.items()}, **ON_MODEL)
    summary = Summary.of(found)
    one_by_one = sum(all(found.robust[name][i] for name in balls) for i in range(len(data)))
    assert summary.union.correct == one_by_one
    assert summary.united == ("linf", "l2", "l1")
    assert summary.union.correct <= min(found.table()[name].correct for name in balls)
    assert summary.plain()["union"]["of"] == ["linf", "l2", "l1"]


def test_one_norm_has_no_union(net, data):
    found = evaluate(net, data, {"a": pgd(Linf(0.03)), "b": pgd(Linf(0.01))}, **ON_MODEL)
    assert Summary.of(found).union is None


def test_the_curve_is_that_of_the_smallest_distances(net, data):
    attacks = {"pgd": pgd(L2(0.2)), "nearest": MinimumNorm(L2(0.2), (DDN(5),))}
    found = evaluate(net, data, attacks, **ON_MODEL)
    curve = Summary.of(found).curve
    assert list(curve) == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.3, 0.4])
    assert [accuracy.correct for accuracy in curve.values()] == [int((found.distance > eps).sum()) for eps in curve]


# -- transfer


def test_a_transfer_attack_asks_the_surrogate_alone(net, data):
    other = toy_net(1).eval().double()
    attack = Transfer.of("other", other, PGD(Linf(0.05), 3, patience=0))
    x, rows = pixels(data.x).double(), torch.arange(len(data))
    by_hand = WhiteBox(attack.attack)(other, x, data.y, PerExample(0, rows))
    assert torch.equal(attack(None, x, data.y, PerExample(0, rows)), by_hand)
    found = evaluate(net, data, {"transfer": attack}, **ON_MODEL)
    assert found.about["transfer"] == repr(Linf(0.05))
    assert found.table()["transfer"].correct <= found.table()["clean"].correct


def test_another_surrogate_is_another_attack_and_a_file_holds_none():
    one, two = (Transfer.of("runs/a", toy_net(seed), PGD(Linf(0.05), 3)) for seed in (0, 1))
    assert repr(one) != repr(two)
    read = from_plain(to_plain(one))
    assert read == one
    with pytest.raises(UserError, match="the surrogate runs/a was handed over as an object"):
        read(None, torch.rand(1, 1, 4, 4), torch.tensor([0]), PerExample(0, torch.tensor([0])))


# -- the suite


def test_the_full_suite_has_each_norm_once_that_of_the_training_first():
    found = full_suite(L2(0.25), surrogate=("runs/a", toy_net()))
    assert list(found) == ["l2", "linf", "l1", "hopskipjump", "transfer", "nearest"]
    assert found["l2"] == AutoAttack(L2(0.25))
    assert found["linf"] == AutoAttack(Linf(8 / 255))
    assert found["hopskipjump"].attack == HopSkipJump(L2(0.25))
    assert found["nearest"] == MinimumNorm.of(L2(0.25))
    assert "transfer" not in full_suite(Linf(0.1))
    with pytest.raises(UserError, match="the suite has the norms Linf, L2 and L1"):
        full_suite("linf:8/255")


# -- corruptions


def write_corruptions(folder, data):
    """Files in the format of CIFAR-10-C: the darker, the more severe, and one corruption that removes everything."""
    x = data.x.permute(0, 2, 3, 1).numpy()
    for name in CORRUPTIONS:
        shares = [0.0] * 5 if name == "fog" else [1 - severity / 10 for severity in range(5)]
        np.save(folder / f"{name}.npy", np.concatenate([(share * x).astype(np.uint8) for share in shares]))
    np.save(folder / "labels.npy", np.tile(data.y.numpy(), 5))


@pytest.fixture
def folder(tmp_path, data):
    write_corruptions(tmp_path, data)
    return tmp_path


def test_corrupted_images_are_those_of_their_file_severity_and_row(folder, data):
    corrupted = CorruptedImages(str(folder)).load(data[:7])
    assert len(corrupted) == 75
    for severity in range(1, 6):
        found = corrupted[f"snow-{severity}"][torch.tensor([3, 5])]
        wanted = (1 - (severity - 1) / 10) * data.x[[3, 5]].numpy()
        assert np.array_equal(found.x.numpy(), wanted.astype(np.uint8))
        assert torch.equal(found.y, data.y[[3, 5]])


@pytest.mark.slow
def test_accuracy_on_corrupted_images_is_that_of_an_evaluation_on_them(folder, net, data):
    corrupted = CorruptedImages(str(folder)).load(data)
    found = evaluate(net, data, {}, corrupted=corrupted, batch_size=8, **ON_MODEL)
    for name in ("fog-1", "snow-1", "snow-5"):
        alone = evaluate(net, corrupted[name], {}, **ON_MODEL)
        assert np.array_equal(found.corrupted[name], alone.robust["clean"])
    assert np.array_equal(found.corrupted["snow-1"], found.robust["clean"])
    summary = Summary.of(found)
    assert list(summary.corrupted) == list(CORRUPTIONS) and list(summary.severities) == [1, 2, 3, 4, 5]
    flags = np.array([found.corrupted[name] for name in corrupted])
    assert summary.mean_corrupted() == pytest.approx(flags.mean())
    assert summary.severities[5] == pytest.approx(np.mean([found.corrupted[f"{c}-5"].mean() for c in CORRUPTIONS]))
    parts = [evaluate(net, data, {}, corrupted=corrupted, shard=(number, 2), **ON_MODEL) for number in (1, 2)]
    same_results(merge_evaluations(parts), found)
    same_results(EvaluationResult.from_arrays(found.arrays(pictures=True)), found)


def test_corruptions_of_other_images_are_a_sentence(folder, net, data):
    source = CorruptedImages(str(folder))
    with pytest.raises(UserError, match="other labels than those of the 60 test images: name the folder"):
        source.load(data.relabelled((data.y + 1) % 3))
    inverted = TensorData(255 - data.x, data.y, data.classes)
    with pytest.raises(UserError, match="other images than the 60 test images, though of the same labels"):
        source.load(inverted)
    with pytest.raises(UserError, match="the corrupted images fog-1 are 7 of shape"):
        evaluate(net, data, {}, corrupted={"fog-1": data[:7]}, **ON_MODEL)
    np.save(folder / "frost.npy", np.zeros((300, 4, 4, 1), np.float32))
    with pytest.raises(UserError, match=r"frost\.npy holds float32 \(300, 4, 4, 1\), wanted are bytes \[300, height"):
        source.load(data)
    (folder / "frost.npy").unlink()
    with pytest.raises(UserError, match=r"frost\.npy"):
        source.load(data)


# -- calibration


def test_the_calibration_error_is_the_mean_gap_in_bins_of_equal_mass():
    rng = np.random.default_rng(0)
    confidence, right = rng.uniform(0.1, 1, 103), rng.uniform(size=103) < 0.6
    order, gaps, start = np.argsort(confidence), 0.0, 0
    for size in [11] * 3 + [10] * 7:
        rows = order[start : start + size]
        gaps += size * abs(confidence[rows].mean() - right[rows].mean())
        start += size
    assert start == 103
    assert expected_calibration_error(confidence, right, bins=10) == pytest.approx(gaps / 103)


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_its_excess():
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.5, 0.8, 200_000)
    right = rng.uniform(size=200_000) < confidence
    assert expected_calibration_error(confidence, right) < 0.006
    assert expected_calibration_error(confidence + 0.2, right) == pytest.approx(0.2, abs=0.01)


def test_facts_about_probabilities_are_those_of_the_softmax(net, data):
    found = evaluate(net, data, {}, **ON_MODEL)
    with torch.no_grad():
        share = net(pixels(data.x).double()).softmax(1)
    truth = torch.nn.functional.one_hot(data.y, 3)
    assert np.allclose(found.calibration["confidence"], share.amax(1), atol=1e-5)
    assert np.allclose(found.calibration["brier"], (share - truth).square().sum(1), atol=1e-5)
    nll = -share.log()[torch.arange(60), data.y].mean()
    assert Summary.of(found).calibration["nll"] == pytest.approx(float(nll), rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*infinite")
def test_logits_that_are_not_finite_are_certainty_in_a_wrong_class():
    class Lost(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 0, 0], torch.where(x[:, 0, 0, 0] > 0.5, torch.inf, 0.0)], 1)

    x = torch.cat([torch.full((2, 1, 2, 2), 0.2), torch.full((1, 1, 2, 2), 0.8)])
    found = evaluate(Lost().eval(), TensorData(x, torch.tensor([0, 0, 0]), ("a", "b")), {}, **ON_MODEL)
    assert found.calibration["confidence"][2] == 1 and found.calibration["brier"][2] == 2
    assert np.isinf(found.calibration["nll"][2])


def test_old_results_without_these_facts_have_an_empty_summary():
    y = toy_data().y.numpy()
    found = EvaluationResult({"clean": y > 0}, y, ("a", "b", "c"))
    assert Summary.of(found).rows() == {} == Summary.of(found).plain()


def test_distances_of_attacks_of_other_norms_are_measured_in_that_of_the_threat():
    """FAB's distance in Linf is smaller than any in L2, and hid what DDN found."""
    model = toy_net().double().eval()
    data = labelled_by(model)
    attacks = {"one": (DDN(100),), "two": (FAB(Linf(0.1), 2), DDN(100))}
    found = {name: evaluate(model, data, {"n": MinimumNorm(L2(1.0), each)}).distance for name, each in attacks.items()}
    assert (found["two"] <= found["one"] * 1.001).all()
