"""How the weights move: weight perturbation against its formula, averages, central gradients."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import count, toy_data, toy_net
from torch import nn

from sparring import (
    AWP,
    FGSM,
    PGD,
    SGD,
    SWA,
    Adam,
    CrossEntropy,
    Linf,
    Method,
    OptimizerStep,
    Progress,
    State,
    TrainingLoop,
    UserError,
    fit,
)
from sparring.core.modes import eval_mode
from sparring.core.schedules import MultiStep, PiecewiseConstant, WarmUp
from sparring.core.types import pixels
from sparring.data import Batches
from sparring.objectives import MAILAT
from sparring.training.averaging import estimate_statistics


def closure(model, seed=0):
    data = toy_data(seed=seed)
    x, y = pixels(data.x[:20]), data.y[:20]
    return lambda: {"ce": F.cross_entropy(model(x), y)}


def test_weight_perturbation_is_the_formula_of_its_paper():
    ours = toy_net().train()
    theirs = copy.deepcopy(ours)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    AWP(0.02)(ours, optimizer, closure(ours))

    weights = [p for p in theirs.parameters() if p.ndim > 1]
    with torch.random.fork_rng():
        proxy = copy.deepcopy(theirs)  # its own statistics, as in the released code
        grads = torch.autograd.grad(closure(proxy)()["ce"], [p for p in proxy.parameters() if p.ndim > 1])
    moves = [0.02 * w.detach().norm() * g / g.norm() for w, g in zip(weights, grads, strict=True)]
    with torch.no_grad():
        for w, move in zip(weights, moves, strict=True):
            w += move
    closure(theirs)()["ce"].backward()
    torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01).step()
    with torch.no_grad():
        for w, move in zip(weights, moves, strict=True):
            w -= move
    for name, tensor in ours.state_dict().items():
        assert torch.allclose(tensor.float(), theirs.state_dict()[name].float(), atol=1e-6), name


def test_weight_perturbation_evaluates_the_closure_twice_and_attacks_once():
    data, model = toy_data(), toy_net().train()
    method = Method(PGD(Linf(0.05), steps=10), CrossEntropy())
    state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1), data)
    seen = count(model)
    from sparring import Batch, OriginalModel, train_step

    batch = Batch(pixels(data.x[:12]), data.y[:12], torch.arange(12))
    train_step(method, state, batch, Progress(1, 5, 1), AWP(), OriginalModel())
    assert (seen.forwards, seen.backwards) == (12, 12)


def test_weight_perturbation_is_undone_by_an_exception_too():
    model = toy_net().train()
    before, calls = copy.deepcopy(model.state_dict()), []

    def breaks():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no")
        return closure(model)()

    with pytest.raises(RuntimeError):
        AWP()(model, torch.optim.SGD(model.parameters(), lr=0.1), breaks)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor.float(), before[name].float(), atol=1e-7), name


def test_a_model_without_matrices_has_nothing_to_perturb():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3))
    x = torch.rand(8, 3)
    with pytest.raises(UserError, match="weights of two dimensions or more, and Sequential trains none"):
        AWP()(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda: {"a": model(x).sum()})
    with pytest.raises(UserError, match="gamma = 0 is not above 0"):
        AWP(0.0)


def test_weights_that_are_computed_from_others_are_perturbed_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(16, 3)))
    x, seen = torch.rand(6, 1, 4, 4), []

    def loss():
        seen.append(model[1].weight.detach().clone())
        return {"ce": nn.functional.cross_entropy(model(x), torch.arange(6) % 3)}

    AWP(0.1)(model, torch.optim.SGD(model.parameters(), lr=0.0), loss)
    assert len(seen) == 2 and 0.05 < float((seen[1] - seen[0]).norm() / seen[0].norm()) < 0.5


def test_phases_and_warm_ups_that_never_come_are_told(tiny):
    """A short trial of a long recipe is no mistake, but says what it leaves out."""
    late = PiecewiseConstant(((0, OptimizerStep()), (3, AWP(0.05))))
    said = "what begins at epoch {} never comes: the training ends with epoch 3"
    assert replace(tiny, update=late).never() == [said.format(3)]
    assert replace(tiny, update=late, epochs=4).never() == [] == tiny.never()
    attack = PiecewiseConstant(((0, FGSM(Linf(0.1))), (5, PGD(Linf(0.1)))))
    mail = replace(tiny.method, attack=attack, objective=MAILAT(warm_up=76))
    assert replace(tiny, method=mail).never() == [said.format(5), said.format(76)]
    rate = PiecewiseConstant(((0, 0.1), (2, 0.05), (50, 0.01), (75, 0.001)))
    assert replace(tiny, lr=rate).never() == [said.format(50), said.format(75)]
    assert replace(tiny, lr=MultiStep(0.1, (2, 75))).never() == [said.format(75)]
    assert replace(tiny, lr=WarmUp(MultiStep(0.1, (75,)), 5)).never() == [
        said.format(75),
        "the rate's warm-up of 5 epochs does not end: the training ends with epoch 3",
    ]
    assert replace(tiny, lr=WarmUp(MultiStep(0.1), 3)).never() == []


@pytest.mark.slow
def test_an_update_may_change_with_the_epoch(tiny, tmp_path):
    later = replace(tiny, update=PiecewiseConstant(((0, OptimizerStep()), (2, AWP(0.05)))))
    a, b = fit(tiny, tmp_path / "a"), fit(later, tmp_path / "b")
    rows = [[r["terms"]["ce"] for r in run.metrics() if "terms" in r] for run in (a, b)]
    per_epoch = len(rows[0]) // 3
    assert rows[0][:per_epoch] == rows[1][:per_epoch]
    assert a.weights("last").read_bytes() != b.weights("last").read_bytes()


class Epochs:
    def __init__(self):
        self.weights, self.averages = [], []

    def on_step(self, state, progress, terms): ...

    def on_epoch(self, state, progress):
        self.weights.append(copy.deepcopy(state.model.state_dict()))
        self.averages.append(copy.deepcopy(state.average.state_dict()))


def trained(averaging, epochs=5):
    method, model, data = Method(PGD(Linf(0.05), steps=1), CrossEntropy()), toy_net().train(), toy_data()
    state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1), data)
    log = Epochs()
    TrainingLoop(epochs, 0.1, averaging=averaging, hooks=(log,)).run(method, state, Batches(data, 20))
    return log, data


def test_swa_is_the_mean_of_the_weights_at_the_end_of_the_epochs_after_its_start():
    log, _ = trained(SWA(start=2))
    for epoch in (1, 2, 3):  # until then, the model itself
        assert all(torch.equal(log.averages[epoch - 1][n], t) for n, t in log.weights[epoch - 1].items())
    wanted = torch.stack([w["1.weight"] for w in log.weights[2:]]).mean(0)
    assert torch.allclose(log.averages[-1]["1.weight"], wanted, atol=1e-6)


def test_swa_takes_its_statistics_from_the_training_images():
    log, data = trained(SWA(start=2))
    model = toy_net()
    model.load_state_dict(log.averages[-1])
    with torch.no_grad():
        hidden = model[1](pixels(data.x).flatten(1))
    assert torch.allclose(model[2].running_mean, hidden.mean(0), atol=1e-5)


def test_statistics_are_estimated_without_touching_anything_else():
    model = toy_net().train()
    model[0].eval()
    before = copy.deepcopy(model.state_dict())
    estimate_statistics(model, [torch.rand(8, 1, 4, 4) for _ in range(3)])
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert model[2].momentum == 0.1
    assert model.training
    assert not model[0].training


def test_the_images_that_swa_looks_at_move_nothing_that_training_draws_from():
    states = []
    for averaging in (None, SWA(start=0)):
        method, model, data = Method(PGD(Linf(0.05), steps=1), CrossEntropy()), toy_net().train(), toy_data()
        state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1), data)
        TrainingLoop(4, 0.1, averaging=averaging).run(method, state, Batches(data, 20))
        states.append(state.model.state_dict())
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.mark.parametrize(("what", "least"), [("weights", 2), ("convolutions", 3)])
def test_a_central_gradient_is_the_decayed_one_without_its_mean(what, least):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    theirs = copy.deepcopy(model)
    x, y = torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    optimizer = SGD(weight_decay=0.1, centralize=what).build(model)
    velocity = [torch.zeros_like(p) for p in theirs.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    for _ in range(3):
        OptimizerStep()(model, optimizer, lambda: {"ce": F.cross_entropy(model(x), y)})
        grads = torch.autograd.grad(F.cross_entropy(theirs(x), y), list(theirs.parameters()))
        for p, g, v in zip(theirs.parameters(), grads, velocity, strict=True):
            g = g + 0.1 * p.detach()
            if p.ndim >= least:
                g = g - g.mean(dim=tuple(range(1, p.ndim)), keepdim=True)
            v.mul_(0.9).add_(g)
            with torch.no_grad():
                p.sub_(0.5 * v)
    for p, q in zip(model.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def test_adam_adds_weight_decay_to_the_gradient():
    (group,) = Adam(betas=(0.8, 0.9), weight_decay=0.3).build(toy_net()).param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.9), 0.3)
    assert not isinstance(Adam().build(toy_net()), torch.optim.AdamW)


def test_statistics_stay_in_evaluation_whatever_a_view_does():
    model = toy_net().train()
    with eval_mode(model):
        before = model[2].running_mean.clone()
        model(torch.rand(4, 1, 4, 4))
    assert torch.equal(model[2].running_mean, before)
