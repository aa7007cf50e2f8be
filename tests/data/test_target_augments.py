"""Augmentations that change targets."""

import math

import pytest
import torch
from scipy import stats

from sparring import TensorData, UserError, make_rng
from sparring.core.rng import PerExample
from sparring.data import Batches, Crop, CutMix, Flip, InputMixup, Jitter, RandomChoice, SmoothedLabels
from sparring.data.mixing import _share, moved_from, probabilities

X = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 2, 16, 16) / 8  # an image of its number
T = torch.eye(8)


def drawn(seed=0, count=8):
    return PerExample(seed, torch.arange(count), together=True)


def test_the_target_of_cutmix_is_the_share_of_pixels_of_each_image():
    shares = []
    for seed in range(50):
        x, soft = CutMix().change(X, T, drawn(seed))
        seen = torch.stack([(x[:, 0] * 8).round() == number for number in range(8)], 1).float().mean((2, 3))
        assert torch.allclose(soft, seen, atol=1e-6), "the oracle counts pixels"
        assert torch.equal(x[:, 0], x[:, 1]), "channels stay together"
        shares.append(float(soft.amax(1).mean()))
    assert min(shares) < 0.6 and max(shares) > 0.9


def test_the_rectangle_of_cutmix_is_the_same_in_all_images_and_connected():
    other = (CutMix().change(X, T, drawn(3))[0][:, 0] * 8).round() != torch.arange(8.0).view(8, 1, 1)
    changed = other[other.flatten(1).any(1)]  # an image may be its own partner
    assert bool((changed == changed[0]).all())
    rows, columns = changed[0].any(1).nonzero()[:, 0], changed[0].any(0).nonzero()[:, 0]
    assert len(rows) * len(columns) == int(changed[0].sum()), "it is a rectangle"
    assert rows.tolist() == list(range(int(rows[0]), int(rows[-1]) + 1))


def test_mixup_averages_images_and_targets_with_one_share():
    x, soft = InputMixup(0.4).change(X, T, drawn(1))
    numbers = (soft @ torch.arange(8.0)).view(8, 1, 1, 1) / 8
    assert torch.allclose(x, numbers.expand_as(x), atol=1e-6)
    assert torch.allclose(soft.sum(1), torch.ones(8)) and float(soft.amax(1).min()) < 1
    shares = {round(float(row.max()), 5) for row in soft if 0 < float(row.max()) < 1}
    assert len(shares) == 1


@pytest.mark.slow
def test_mixing_can_be_left_out_at_random():
    for change in (CutMix(p=0.25), InputMixup(p=0.25)):
        kept = sum(torch.equal(change.change(X, T, drawn(seed))[1], T) for seed in range(400))
        assert stats.binomtest(kept, 400, 0.75).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha):
    found = _share(alpha, torch.rand(4000, generator=make_rng(0)))
    assert stats.kstest(found.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.slow
def test_one_of_several_changes_is_drawn_for_each_batch():
    each = (CutMix(), InputMixup(), SmoothedLabels(0.3))
    counts = [0, 0, 0]
    for seed in range(200):
        x, soft = RandomChoice(each).change(X, T, drawn(seed))
        same = (x[:, 0] * 8).round() == x[:, 0] * 8  # mixup gives other numbers
        number = 2 if torch.equal(x, X) and float(soft.amax()) < 0.8 else int(not bool(same.all()))
        counts[number] += 1
        if number == 2:
            assert torch.equal(soft, SmoothedLabels(0.3).change(X, T, drawn(seed))[1])
    assert all(stats.binomtest(count, 200, 1 / 3).pvalue > 0.001 for count in counts), counts
    with pytest.raises(UserError, match="there is no change to choose from"):
        RandomChoice(())


def test_smoothed_labels_give_every_class_a_share():
    x, soft = SmoothedLabels(0.2).change(X, T, drawn())
    assert x is X and torch.allclose(soft.diagonal(), torch.full((8,), 0.8 + 0.2 / 8))
    assert torch.allclose(soft.sum(1), torch.ones(8))


@pytest.mark.parametrize(
    "make", [lambda: CutMix(0.0), lambda: CutMix(p=1.5), lambda: InputMixup(math.nan), lambda: SmoothedLabels(1.0)]
)
def test_parameters_out_of_range_are_refused(make):
    with pytest.raises(UserError):
        make()


def test_batches_have_soft_targets_whose_most_probable_class_is_the_label():
    data = TensorData((X * 255).to(torch.uint8), torch.arange(8) % 3, ("a", "b", "c"))
    made = Batches(data, 8, (Flip(), CutMix(), SmoothedLabels(0.1)), seed=1, views=2)
    (batch,) = made.rest_of_epoch(0)
    assert batch.soft.shape == (16, 3) and torch.equal(batch.y, batch.soft.argmax(1)) and batch.target is batch.soft
    (again,) = made.rest_of_epoch(0)
    assert torch.equal(batch.x, again.x) and torch.equal(batch.soft, again.soft)
    (plain,) = Batches(data, 8, (Flip(),), seed=1).rest_of_epoch(0)
    assert plain.soft is None and plain.target is plain.y
    assert torch.equal(probabilities(plain.y, 3).argmax(1), plain.y)
    parts = Batches(data, 8, (CutMix(),), seed=1, accumulate=2)
    (whole,) = parts.rest_of_epoch(0)
    assert torch.equal(torch.cat([part.soft for part in whole.micro_batches()]), whole.soft)


def test_pixels_are_followed_through_crops_and_flips():
    x = torch.rand(20, 3, 6, 5, generator=make_rng(0))
    changes = (Crop(2), Flip())
    rng = PerExample(5, torch.arange(20), together=True)
    z = x
    for change in changes:
        z = change(z, rng)
    places = moved_from(changes, x, PerExample(5, torch.arange(20), together=True))
    padded = torch.cat([x.flatten(2), torch.zeros(20, 3, 1)], 2)
    found = padded.gather(2, places.flatten(1)[:, None].expand(-1, 3, -1).remainder(31))
    assert torch.equal(found.view_as(z), z) and bool((places == -1).any())


@pytest.mark.parametrize("changes", [(Jitter(),), (CutMix(),)])
def test_pixels_are_not_followed_through_changes_of_colour(changes):
    with pytest.raises(UserError, match="cannot be carried through"):
        moved_from(changes, X, drawn())


def test_batches_say_where_pixels_are_from():
    data = TensorData((X * 255).to(torch.uint8), torch.arange(8) % 3, ("a", "b", "c"))
    (batch,) = Batches(data, 8, (Crop(2), Flip()), seed=1, places=True).rest_of_epoch(0)
    (plain,) = Batches(data, 8, (Crop(2), Flip()), seed=1).rest_of_epoch(0)
    assert torch.equal(batch.x, plain.x) and plain.places is None, "following changes no draw"
    inside = batch.places >= 0
    assert bool(inside.any()) and bool((batch.x[:, 0][~inside] == 0).all())
    with pytest.raises(UserError, match="cannot be carried through"):
        next(Batches(data, 8, (CutMix(),), places=True).rest_of_epoch(0))
