"""Randomized smoothing beside what is known: exact binomial intervals, and classifiers whose radius is known."""

import numpy as np
import pytest
import torch
from conftest import toy_data, toy_net
from scipy.stats import binomtest, norm
from torch import nn

from sparring import TensorData, UserError, certify
from sparring.evaluation import Smoothed
from sparring.records import Certification, merge_certifications
from sparring.records.certification import lower_bound


def linear(seed=0):
    """Two classes with a plane between them, images about it, and the exact distance of each."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    x = torch.rand(30, 3, 2, 2)
    with torch.no_grad():
        net[1].weight *= 3
        net[1].bias -= net(x).mean(0)
        margin = net(x)[:, 1] - net(x)[:, 0]
    normal = net[1].weight[1] - net[1].weight[0]
    y = (margin > 0).long()
    return net, TensorData(x, y, ("a", "b")), (margin.abs() / normal.norm()).detach().numpy()


def same(found, wanted):
    ours, theirs = found.arrays(), wanted.arrays()
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert np.array_equal(ours[name], theirs[name]), name


def test_the_bound_is_the_exact_one_sided_binomial_interval():
    for trials, alpha in ((1, 0.05), (100, 0.001), (1000, 0.001)):
        for successes in sorted({0, 1, trials // 2, trials - 1, trials}):
            exact = binomtest(successes, trials, alternative="greater").proportion_ci(1 - alpha, "exact").low
            assert lower_bound(np.array([successes]), trials, alpha)[0] == pytest.approx(exact, abs=1e-12)


@pytest.mark.slow
def test_the_certified_radius_of_a_linear_classifier_never_exceeds_the_exact_one_and_comes_near_it():
    net, data, exact = linear()
    found = certify(net, data, 0.25, samples=4000)
    assert (found.radius <= exact).all()
    assert (found.predicted[~found.abstained] == data.y.numpy()[~found.abstained]).all()
    assert (exact[found.abstained] < 0.3 * 0.25).all(), (
        "it abstains only near the plane, if 100 copies mistake the class"
    )
    within = ~found.abstained & (exact < 0.8 * found.largest_radius)
    assert within.sum() > 10
    assert (found.radius[within] > exact[within] - 0.15 * 0.25).all()


@pytest.mark.slow
def test_votes_have_the_share_that_a_linear_classifier_has_exactly():
    net, data, exact = linear(1)
    votes = certify(net, data, 0.5, samples=3000).votes
    share = norm.cdf(exact / 0.5)
    assert (np.abs(votes / 3000 - share) < 4 * np.sqrt(share * (1 - share) / 3000) + 1e-3).all()


def test_two_classes_that_vote_alike_make_it_abstain_and_count_as_wrong():
    class Split(nn.Module):
        """Decides by the sign of the noise in the first pixel."""

        def forward(self, x):
            return torch.stack([x[:, 0, 0, 0] - 0.5, 0.5 - x[:, 0, 0, 0]], 1)

    x = torch.full((20, 1, 2, 2), 0.5)
    found = certify(Split().eval(), (x, torch.zeros(20, dtype=torch.long)), 0.25, samples=500)
    assert found.abstained.all()
    assert set(found.predicted) == {-1} and set(found.radius) == {0.0}
    assert found.curve()[0.0].correct == 0
    assert "abstained on 20" in repr(found)


@pytest.fixture(scope="module")
def net():
    return toy_net().eval().double()


@pytest.fixture(scope="module")
def whole(net):
    return certify(net, toy_data(), 0.2, samples=90, selection=10)


def test_neither_the_batch_size_nor_the_part_of_the_images_changes_a_vote(net, whole):
    same(certify(net, toy_data(), 0.2, samples=90, selection=10, batch_size=37), whole)
    parts = [certify(net, toy_data(), 0.2, samples=90, selection=10, shard=(number, 3)) for number in (3, 1, 2)]
    same(merge_certifications(parts), whole)
    with pytest.raises(UserError, match="shards 2/3 are missing"):
        merge_certifications(parts[:2])
    other = certify(net, toy_data(), 0.3, samples=90, selection=10, shard=(2, 3))
    with pytest.raises(UserError, match="different evaluations"):
        merge_certifications([*parts[:2], other])


def test_another_seed_gives_other_votes(net, whole):
    assert (certify(net, toy_data(), 0.2, samples=90, selection=10, seed=1).votes != whole.votes).any()


def test_a_certification_that_was_killed_goes_on(net, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("sparring.evaluation.smoothing._PASSES", 1000)  # ten examples at a time
    seen = []

    def stop(done, todo):
        seen.append(done)
        if done == 30 and len(seen) == 3:
            raise KeyboardInterrupt

    given = {"samples": 90, "selection": 10, "state": tmp_path / "state", "on_progress": stop}
    with pytest.raises(KeyboardInterrupt):
        certify(net, toy_data(), 0.2, **given)
    same(certify(net, toy_data(), 0.2, **given), whole)
    assert seen == [10, 20, 30, 40, 50, 60]
    with pytest.raises(UserError, match="holds the state of another evaluation"):
        certify(net, toy_data(), 0.1, **given)


def test_a_state_does_not_go_on_with_a_model_of_other_code(tmp_path):
    class Net(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.inner, self.act = toy_net().eval(), act

        def forward(self, x):
            return self.act(self.inner(x))

    given = {"samples": 9, "selection": 3, "state": tmp_path / "state"}
    first, second = Net(lambda z: z), Net(lambda z: -5 * z)
    second.load_state_dict(first.state_dict())
    certify(first, toy_data(), 0.2, **given)
    with pytest.raises(UserError, match=r"gives other answers than when the state .* its code has changed"):
        certify(second, toy_data(), 0.2, **given)
    certify(first, toy_data(), 0.2, **given)


def test_a_copy_without_finite_logits_votes_for_no_class():
    class Lost(nn.Module):
        def forward(self, x):
            first = x[:, 0, 0, 0]
            return torch.stack([torch.ones_like(first), torch.where(first > 0.5, first, torch.nan)], 1)

    x = torch.full((1, 1, 2, 2), 0.5)
    votes = Smoothed(Lost(), 0.5).votes(x, torch.tensor([0]), range(1000), classes=2, seed=0, batch_size=100)
    assert 400 < votes.sum() < 600


def test_a_certification_survives_being_written_as_arrays(whole):
    same(Certification.from_arrays(whole.arrays()), whole)


def test_the_curve_counts_right_examples_within_their_radius(whole):
    for radius, accuracy in whole.curve().items():
        assert accuracy.correct == sum((whole.predicted == whole.label) & (whole.radius >= radius))
    assert max(whole.curve()) <= whole.largest_radius
    assert whole.largest_radius == pytest.approx(0.2 * norm.ppf(0.001 ** (1 / 90)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, r"sigma = 0\.0 of the noise is not a finite number above 0, such as 0\.25"),
        ({"sigma": "0.25"}, r"sigma = '0\.25' of the noise is not a finite number"),
        ({"samples": 0}, "samples"),
        ({"alpha": 0.5}, r"alpha = 0\.5 is not in \(0, 0\.5\)"),
        ({"shard": (4, 3)}, "number of a shard"),
    ],
)
def test_what_cannot_be_certified_is_a_sentence(net, change, message):
    with pytest.raises(UserError, match=message):
        certify(net, toy_data(), **{"sigma": 0.2, "samples": 10, **change})
