"""The averages beside those of torch.optim.swa_utils, on the same weights."""

import copy

import pytest
import torch
from conftest import toy_net
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from sparring import EMA, SWA, Progress, UserError


def moved(model, step):
    """The same model after a step of a training."""
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            p.add_(0.1 * torch.sin(torch.arange(p.numel(), dtype=p.dtype).view_as(p) + step + number))
    return model


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def test_ema_is_that_of_torch():
    model = toy_net()
    ours = EMA(0.9).init(model)
    theirs = AveragedModel(copy.deepcopy(model), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    theirs.update_parameters(model)  # torch copies the weights at its first update
    for step in range(1, 6):
        moved(model, step)
        EMA(0.9).update(ours, model, Progress(1000 + step, 10, 200))  # after its rise
        theirs.update_parameters(model)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(ours), weights(theirs.module), strict=True))


@pytest.mark.parametrize(("step", "same"), [(5, True), (13, True), (20, True), (25, False)])
def test_swa_is_the_model_until_an_epoch_is_averaged(step, same):
    """Within an epoch, too: a guard may stop training there."""
    model = toy_net()
    ours = SWA(start=1).init(model)
    for now in range(1, step + 1):
        SWA(start=1).update(ours, moved(model, now), Progress(now, 10, 4))
    assert all(torch.equal(a, b) for a, b in zip(weights(ours), weights(model), strict=True)) == same


def test_swa_is_that_of_torch():
    model, average = toy_net(), SWA(start=1)
    ours = average.init(model)
    theirs = AveragedModel(copy.deepcopy(model), multi_avg_fn=get_swa_multi_avg_fn())
    for epoch in range(1, 5):
        moved(model, epoch)
        average.update(ours, model, Progress(10 * epoch, 10, 5))
        if epoch > 1:
            theirs.update_parameters(model)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(ours), weights(theirs.module), strict=True))


def test_an_average_that_warms_up_is_the_model_until_then():
    model, other = toy_net(0), toy_net(1)
    rule = EMA(0.9, warm_up=0.25)
    average = rule.init(other)
    for step in (1, 4):
        rule.update(average, model, Progress(step, 5, 4))
        if step == 1:
            assert all(torch.equal(a, b) for a, b in zip(average.parameters(), model.parameters(), strict=True))
    rule.update(average, other, Progress(7, 5, 4))  # two steps after the warm-up: (1 + 2) / (10 + 2) is kept
    for kept, a, b in zip(average.parameters(), model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(kept, 0.25 * a + 0.75 * b, atol=1e-6)
    with pytest.raises(UserError, match="no share of the training"):
        EMA(warm_up=1.0)
