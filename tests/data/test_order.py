"""A random order that is computed position by position."""

import math

import pytest
import torch
from scipy.stats import chi2, chisquare

from sparring import UserError
from sparring.data.order import Order


def whole(count, seed=0):
    return Order(count, seed).rows(torch.arange(count))


@pytest.mark.parametrize("count", [*range(1, 40), 97, 128, 255, 256, 257, 1000, 4099, 2**16, 100_003, 2**20])
def test_every_number_stands_at_one_position(count):
    assert torch.equal(whole(count).sort().values, torch.arange(count))
    assert torch.equal(whole(count, 7).sort().values, torch.arange(count))


@pytest.mark.parametrize("count", [50_000_000, 2**31 + 11])
def test_different_positions_of_a_large_set_have_different_numbers_in_range(count):
    order = Order(count, 3)
    positions = torch.cat([torch.arange(100_000), torch.arange(count - 100_000, count)])
    found = order.rows(positions)
    assert found.dtype == torch.int64
    assert int(found.min()) >= 0 and int(found.max()) < count
    assert len(found.unique()) == len(positions)


def test_a_part_is_the_same_as_in_the_whole_and_leaves_its_positions_alone():
    order, positions = Order(1000, 5), torch.tensor([999, 0, 17, 17])
    assert torch.equal(order.rows(positions), whole(1000, 5)[positions])
    assert positions.tolist() == [999, 0, 17, 17]
    assert len(order) == 1000


def test_the_order_is_the_same_on_every_machine_and_with_every_torch():
    """Written down once: a run that is resumed elsewhere must go on in its order."""
    assert whole(12, 0).tolist() == [9, 0, 3, 1, 4, 10, 11, 2, 7, 5, 6, 8]
    few = Order(50_000_000, 1).rows(torch.tensor([0, 1, 2, 49_999_999]))
    assert few.tolist() == [32243490, 26755418, 34354921, 34841135]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "seeds"), [(2, 300), (3, 300), (4, 600), (5, 1500)])
def test_all_orders_of_a_small_set_are_equally_frequent(count, seeds):
    seen = {}
    for seed in range(seeds):
        order = tuple(whole(count, seed).tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == math.factorial(count)
    assert chisquare(list(seen.values())).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("count", [7, 16, 30])
def test_every_number_is_equally_frequent_at_every_position(count):
    seeds = 500
    found = torch.stack([whole(count, seed) for seed in range(seeds)])
    tables = torch.stack([torch.bincount(column, minlength=count) for column in found.T]).double()
    statistic = float(((tables - seeds / count).square() / (seeds / count)).sum())
    assert 1e-3 < chi2.sf(statistic, (count - 1) ** 2) < 1 - 1e-3


@pytest.mark.parametrize("count", [1000, 65_536, 50_000_000])
def test_neighbours_and_orders_of_neighbouring_seeds_are_uncorrelated(count):
    positions = torch.arange(min(count, 100_000) - 1)
    order = Order(count, 11)
    here, after, other = order.rows(positions), order.rows(positions + 1), Order(count, 12).rows(positions)
    found = torch.corrcoef(torch.stack([positions, here, after, other]).double())
    assert (found - torch.eye(4)).abs().max() < 5 / math.sqrt(len(positions))
    gaps = torch.histc(((after - here) % count).double(), 50, 0, count)
    assert chisquare(gaps.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-3, 0), (2.5, 0), (True, 0), (10, -1)])
def test_an_order_of_nothing_or_with_a_seed_below_0_is_refused(count, seed):
    with pytest.raises(UserError, match=r"is no whole number from (0|1 on)"):
        Order(count, seed)
