"""What one of several processes wants all to do; a pretended group of two."""

import pytest
import torch

from sparring import UserError
from sparring.training import requests
from sparring.training.requests import SAVE, STOP, Requests


def test_one_process_decides_at_once():
    asked = Requests()
    assert asked.agreed(STOP, request=True, step=3)
    assert not asked.agreed(SAVE, request=False, step=3)
    assert asked.send(torch.device("cpu")) == ()


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(requests.ranks, "world", lambda: 2)
    return Requests(), Requests()


def take(step, both, *asking):
    """One update: the requests are averaged, and read after the next one."""
    sent = [each.send(torch.device("cpu"))[0] for each in both]
    sent[1][-1] = 0  # it is the second process
    for each in both:
        each.hear(step, tuple(((sent[0] + sent[1]) / 2).tolist()))
    return [each.agreed(STOP, request=asks, step=step) for each, asks in zip(both, asking, strict=True)]


def test_a_wish_of_one_is_fulfilled_by_all_after_the_same_step_and_once(two):
    assert take(1, two, False, True) == [False, False], "nobody has heard of it"
    assert take(2, two, False, True) == [True, True]
    assert take(3, two, False, False) == [False, False], "what was fulfilled is not asked for again"
    assert take(4, two, False, False) == [False, False]


def test_an_update_that_does_not_sum_is_noticed(two):
    one, other = two
    with pytest.raises(UserError, match="did not sum over the processes"):
        one.hear(1, tuple(one.send(torch.device("cpu"))[0].tolist()))
    alone = other.send(torch.device("cpu"))[0]
    alone[-1] = 0
    with pytest.raises(UserError, match="call sparring"):
        other.hear(1, tuple(alone.tolist()))
