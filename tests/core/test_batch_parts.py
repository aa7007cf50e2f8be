"""Parts of a batch: micro-batches, shares, and the random streams of views."""

import pytest
import torch

from sparring import Batch, UserError
from sparring.core import ranks


def batch(count, views=1, **more):
    rows = torch.arange(count * views)
    return Batch(rows[:, None].float(), rows % 3, torch.arange(count).repeat(views), views, **more)


def test_micro_batches_hold_all_views_of_their_images_and_their_shares_sum_to_one():
    parts = batch(5, views=2, accumulate=2).micro_batches()
    assert [part.index.tolist() for part in parts] == [[0, 1, 2, 0, 1, 2], [3, 4, 3, 4]]
    assert [part.x[:, 0].tolist() for part in parts] == [[0, 1, 2, 5, 6, 7], [3, 4, 8, 9]]
    assert [part.views for part in parts] == [2, 2]
    assert [part.share for part in parts] == [0.6, 0.4]
    whole = batch(5)
    assert whole.micro_batches() == [whole]
    assert whole.share == 1
    assert batch(5, whole=20).share == 0.25
    with pytest.raises(UserError, match="a batch of 2 images cannot be divided into 3 micro-batches"):
        batch(2, accumulate=3).micro_batches()


def test_views_of_an_image_draw_other_numbers_and_a_part_draws_those_of_the_whole():
    whole = batch(4, views=2, accumulate=2)
    assert len(whole.streams.unique()) == 8
    assert torch.equal(batch(4).streams, torch.arange(4))
    first = whole.micro_batches()[0]
    assert torch.equal(first.streams, whole.streams[[0, 1, 4, 5]])


def test_one_process_is_its_own_group():
    rows = torch.arange(6.0)
    assert (ranks.world(), ranks.rank(), ranks.first()) == (1, 0, True)
    assert ranks.gathered(rows) is rows
    assert ranks.gathered_with_gradient(rows) is rows
    assert ranks.own(7) == slice(0, 7)
    assert ranks.from_first(lambda: 3) == 3
    assert ranks.each_of("x") == ["x"]
    assert ranks.any_of(True)
    assert ranks.total(5) == 5
    ranks.sum_([rows])
    assert rows.tolist() == [0, 1, 2, 3, 4, 5]
    ranks.wait()
