"""SAM, ASAM and random weight perturbation against their formulas, in double precision."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparring import ASAM, RWP, SAM, OptimizerStep, UserError
from sparring.core.rng import make_rng
from sparring.training import BatchLoss

X = torch.rand(20, 5, generator=make_rng(0)).double()
Y = torch.arange(20) % 3


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double().train()


def closure(model, rows=slice(None), weight=1.0):
    return lambda: {"ce": weight * F.cross_entropy(model(X[rows]), Y[rows])}


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def grads_at(model, moves):
    """The gradient of the loss at moved weights, of a copy."""
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for w, move in zip(moved.parameters(), moves, strict=True):
            w += move
    return torch.autograd.grad(closure(moved)()["ce"], list(moved.parameters()))


def stepped(model, optimizer, grads):
    for w, grad in zip(model.parameters(), grads, strict=True):
        w.grad = grad
    optimizer.step()


def same(ours, theirs):
    return all(
        torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


def scales(name, w, adaptive):
    return w.detach().abs() + 0.01 if adaptive and "weight" in name else torch.ones_like(w)


@pytest.mark.parametrize("update", [SAM(0.3), ASAM(0.7, eta=0.01)], ids=repr)
def test_sharpness_aware_steps_are_their_formula(update):
    ours, theirs = net(), net()
    optimizers = sgd(ours), sgd(theirs)
    for _ in range(3):
        update(ours, optimizers[0], closure(ours))
        sizes = [scales(name, w, isinstance(update, ASAM)) for name, w in theirs.named_parameters()]
        grads = grads_at(theirs, [torch.zeros_like(w) for w in theirs.parameters()])
        length = sum((t * g).square().sum() for t, g in zip(sizes, grads, strict=True)).sqrt()
        moves = [update.rho * t * t * g / length for t, g in zip(sizes, grads, strict=True)]
        stepped(theirs, optimizers[1], grads_at(theirs, moves))
        assert same(ours, theirs)


@pytest.mark.parametrize("share", [0.5, 0.3, 1.0])
def test_random_weight_perturbation_is_its_formula(share):
    ours, theirs = net(), net()
    optimizers = sgd(ours), sgd(theirs)
    for number in range(3):
        torch.manual_seed(number)
        RWP(0.2, share)(ours, optimizers[0], closure(ours))
        torch.manual_seed(number)
        rng = make_rng(int(torch.randint(2**62, ())))
        noise = [torch.randn(w.shape, generator=rng, dtype=torch.float64) for w in theirs.parameters()]
        sizes = [w.norm(dim=1, keepdim=True) if w.ndim > 1 else w.norm() for w in theirs.parameters()]
        noisy = grads_at(theirs, [0.2 * s.detach() * n for s, n in zip(sizes, noise, strict=True)])
        calm = grads_at(theirs, [torch.zeros_like(w) for w in theirs.parameters()])
        stepped(theirs, optimizers[1], [share * a + (1 - share) * b for a, b in zip(noisy, calm, strict=True)])
        assert same(ours, theirs)


@pytest.mark.parametrize("update", [SAM(), ASAM(), RWP(), RWP(share=1.0)], ids=repr)
def test_the_statistics_of_batch_norm_move_once(update):
    model, plain = net(), net()
    update(model, sgd(model), closure(model))
    OptimizerStep()(plain, sgd(plain), closure(plain))
    assert int(model[1].num_batches_tracked) == 1
    if update != RWP(share=1.0):
        assert torch.equal(model[1].running_mean, plain[1].running_mean)


@pytest.mark.parametrize("update", [SAM(0.3), ASAM(), RWP(0.2)], ids=repr)
def test_micro_batches_give_the_update_of_the_whole_batch(update):
    whole, parts = net().eval(), net().eval()
    for model, loss in (
        (whole, closure(whole)),
        (parts, BatchLoss((closure(parts, slice(8), 0.4), closure(parts, slice(8, 20), 0.6)))),
    ):
        torch.manual_seed(3)
        update(model, sgd(model), loss)
    assert same(whole, parts)


@pytest.mark.parametrize("update", [SAM(0.3), ASAM(), RWP(0.2)], ids=repr)
def test_moved_weights_come_back_after_an_exception(update):
    model, calls = net(), []
    before = [w.detach().clone() for w in model.parameters()]

    def breaks():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("broken")
        return closure(model)()

    with pytest.raises(RuntimeError, match="broken"):
        update(model, sgd(model), breaks)
    assert all(torch.equal(w, old) for w, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    "make", [lambda: SAM(0), lambda: ASAM(-1), lambda: ASAM(eta=-1), lambda: RWP(0), lambda: RWP(1, 0)]
)
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(UserError, match=r"rho|eta|gamma|share"):
        make()
