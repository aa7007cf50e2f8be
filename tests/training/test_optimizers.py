import pytest
import torch
from conftest import toy_net
from torch import nn

from sparring import AWP, SAM, SGD, Adam, AdamW, OptimizerStep, UserError
from sparring.training import EMA, LAMB, LARS, RMSProp


def test_weight_decay_spares_norms_and_biases_if_told_so():
    for optimizer in (SGD(weight_decay=0.1, decay_vectors=False), AdamW(weight_decay=0.1, decay_vectors=False)):
        decayed, spared = optimizer.build(toy_net()).param_groups
        assert decayed["weight_decay"] == 0.1
        assert spared["weight_decay"] == 0.0
        assert {p.ndim for p in decayed["params"]} == {2}
        assert {p.ndim for p in spared["params"]} == {1}
    (together,) = SGD().build(toy_net()).param_groups
    assert len(together["params"]) == 6


def test_options_reach_torch():
    (group,) = SGD(momentum=0.8, nesterov=True, weight_decay=1e-3).build(toy_net()).param_groups
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.8, True, 1e-3)
    assert AdamW(betas=(0.8, 0.9)).build(toy_net()).param_groups[0]["betas"] == (0.8, 0.9)


@pytest.mark.parametrize("limit", [None, 0.5])
def test_a_gradient_is_clipped_to_its_length_before_the_step(limit):
    layer = nn.Linear(3, 1, bias=False)
    before = layer.weight.detach().clone()
    update = OptimizerStep(max_norm=limit)
    terms = update(layer, torch.optim.SGD(layer.parameters(), lr=1.0), lambda: {"a": 3 * layer.weight.sum()})
    moved = float((layer.weight - before).norm().detach())
    assert moved == pytest.approx(27**0.5 if limit is None else limit, rel=1e-4)
    assert not terms["a"].requires_grad


def test_the_terms_of_an_update_are_added_up():
    layer = nn.Linear(1, 1, bias=False)
    OptimizerStep()(
        layer,
        torch.optim.SGD(layer.parameters(), lr=0.0),
        lambda: {"a": layer.weight.sum(), "b": 2 * layer.weight.sum()},
    )
    assert float(layer.weight.grad) == 3.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(weight_decay=-1.0), "weight_decay = -1 is not a finite number from 0 on"),
        (lambda: SGD(momentum=-0.9), r"momentum = -0\.9 is not in \[0, 1\)"),
        (lambda: Adam(betas=(1.5, 0.9)), r"betas\[0\] = 1\.5 is not in \[0, 1\)"),
        (lambda: AdamW(weight_decay=float("nan")), "weight_decay = nan"),
        (lambda: LARS(momentum=1.0), r"momentum = 1 is not in \[0, 1\)"),
        (lambda: LAMB(betas=(0.9, 1.0)), r"betas\[1\] = 1 is not in \[0, 1\)"),
        (lambda: RMSProp(alpha=-0.1), r"alpha = -0\.1 is not in \[0, 1\)"),
        (lambda: OptimizerStep(max_norm=-1.0), "max_norm = -1 is no norm to clip to"),
        (lambda: AWP(max_norm=0.0), "max_norm = 0 is no norm to clip to"),
        (lambda: SAM(max_norm=float("inf")), "max_norm = inf is no norm to clip to"),
        (lambda: EMA(1.5), r"decay = 1\.5 of the average is no share in \[0, 1\)"),
    ],
)
def test_numbers_that_would_train_uphill_or_not_at_all_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
