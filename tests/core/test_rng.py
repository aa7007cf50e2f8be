import pytest
import torch
from scipy.stats import chisquare, kstest

from sparring import L1, L2, Linf, make_rng
from sparring.core import rng as rng_room
from sparring.core.rng import (
    PerExample,
    exponential,
    integers,
    mixed_seed,
    normal,
    seed_draws,
    some,
    uniform,
    uniform_of_batch,
)

THREATS = [Linf(0.1), L2(0.5), L1(2.0)]


def streams(count, seed=0):
    return PerExample(seed, torch.arange(count))


@pytest.mark.parametrize(
    ("draw", "law"), [(uniform, "uniform"), (normal, "norm"), (exponential, "expon")], ids=lambda v: str(v)[:12]
)
def test_the_numbers_of_all_examples_together_follow_the_law(draw, law):
    found = draw(torch.empty(200, 50), streams(200)).double()
    assert kstest(found.flatten().numpy(), law).pvalue > 0.01
    assert kstest(found[:, 0].numpy(), law).pvalue > 0.01, "across examples at one place"
    assert (
        kstest(torch.stack([draw(torch.empty(1, 1), rng) for rng in [streams(1)] * 500]).flatten(), law).pvalue > 0.01
    )


def test_examples_places_draws_and_seeds_are_uncorrelated():
    rng = streams(64)
    first, second = uniform(torch.empty(64, 1000), rng), uniform(torch.empty(64, 1000), rng)
    other = uniform(torch.empty(64, 1000), streams(64, seed=1))
    rows = torch.corrcoef(torch.cat([first, second, other]))
    assert (rows - torch.eye(len(rows))).abs().max() < 0.15  # 5 standard deviations of 1 / sqrt(1000)
    places = torch.corrcoef(uniform(torch.empty(1000, 64), streams(1000)).T)
    assert (places - torch.eye(64)).abs().max() < 0.16


def test_an_example_draws_the_same_whatever_the_batch():
    whole = streams(10)
    first, second = normal(torch.empty(10, 3, 2), whole), uniform(torch.empty(10, 7), whole)
    for rows in (torch.tensor([4]), torch.tensor([9, 0, 4]), torch.arange(10).flip(0)):
        alone = PerExample(0, rows)
        assert torch.equal(normal(torch.empty(len(rows), 3, 2), alone), first[rows])
        assert torch.equal(uniform(torch.empty(len(rows), 7), alone), second[rows])


def test_what_some_examples_draw_is_drawn_from_the_whole():
    """A restart on a few examples must not repeat their numbers, nor shift those of the others."""
    rng, alone = streams(6), PerExample(0, torch.tensor([5]))
    uniform(torch.empty(3, 2), some(some(rng, torch.tensor([1, 3, 5])), torch.tensor([True, True, True])))
    found = uniform(torch.empty(6, 2), rng)
    assert torch.equal(found[:1], uniform(torch.empty(1, 2), streams(1)))
    uniform(torch.empty(1, 2), alone)
    assert torch.equal(found[5:], uniform(torch.empty(1, 2), alone))


def test_a_generator_serves_all_and_is_handed_on_as_it_is():
    rng = make_rng(0)
    assert some(rng, torch.tensor([0])) is rng
    x = torch.empty(3, 4, dtype=torch.float64)
    assert uniform(x, rng, -2, -1).max() < -1
    assert uniform(x, streams(3), -2, -1).max() < -1
    assert uniform(x, streams(3)).dtype == torch.float64


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_samples_of_a_threat_lie_in_it_and_belong_to_their_examples(threat):
    x = torch.rand(8, 3, 4, 4, generator=make_rng(0))
    z = threat.sample(x, streams(8))
    assert threat.norm(z - x).max() <= threat.eps * (1 + 1e-5) + 1e-6
    assert torch.equal(threat.sample(x[5:], PerExample(0, torch.arange(5, 8))), z[5:])


def test_seeds_are_mixed_from_numbers_and_names():
    assert len({mixed_seed(0, 1), mixed_seed(1, 0), mixed_seed(0, "a"), mixed_seed(0, "b")}) == 4


def test_the_numbers_of_a_seed_are_those_of_every_version():
    """A changed stream would change every seeded result without a word."""
    drawn = uniform(torch.empty(2, 3, dtype=torch.float64), PerExample(7, torch.tensor([0, 41])))
    golden = [[0.1634849709, 0.0636702128, 0.8734776431], [0.7900731486, 0.0660245684, 0.2292471450]]
    assert torch.allclose(drawn, torch.tensor(golden, dtype=torch.float64), rtol=0, atol=1e-7)


def test_a_number_for_a_batch_is_one_in_training_and_one_for_each_example_in_evaluation():
    like, index = torch.zeros(4, 1), torch.arange(4)
    together, apart = PerExample(3, index, together=True), PerExample(3, index)
    assert len(uniform_of_batch(like, together).unique()) == 1
    assert len(uniform_of_batch(like, apart).unique()) == 4
    assert len(uniform_of_batch(like, make_rng(3)).unique()) == 1
    part = PerExample(3, index, together=True)[torch.tensor([2, 3])]
    assert torch.equal(
        uniform_of_batch(like[:2], part), uniform_of_batch(like, PerExample(3, index, together=True))[:2]
    )
    assert not torch.equal(uniform_of_batch(like, together), uniform_of_batch(like, together)), "drawn anew"


def test_whole_numbers_are_uniform_and_below_their_bound():
    drawn = integers(60_000, 7, PerExample(1, torch.arange(60_000)), torch.device("cpu"))
    assert chisquare(drawn.bincount(minlength=7).numpy()).pvalue > 1e-3
    assert len(drawn.bincount()) == 7


def test_mixing_in_pieces_gives_the_numbers_of_one_piece(monkeypatch):
    whole = PerExample(5, torch.arange(9)).uniform(50)
    monkeypatch.setattr(rng_room, "_IN_CACHE", 60)
    assert torch.equal(PerExample(5, torch.arange(9)).uniform(50), whole)


def test_draws_are_those_after_manual_seed_without_a_word_to_devices_that_are_missing(monkeypatch):
    torch.manual_seed(7)
    wanted = torch.rand(5)
    monkeypatch.setattr(torch.cuda, "_lazy_call", lambda *args, **options: pytest.fail("it is kept for CUDA"))
    seed_draws(7, torch.device("cpu"))
    assert torch.equal(torch.rand(5), wanted)
