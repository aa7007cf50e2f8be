"""`Method.loss`: any method in the training loop of another library."""

import gc
import weakref

import pytest
import torch
from conftest import toy_data, toy_net

from sparring import (
    MART,
    PGD,
    TRADES,
    AcceleratedCopy,
    Batch,
    CrossEntropy,
    GaussianStart,
    Linf,
    LogitPairing,
    Method,
    OriginalModel,
    Progress,
    State,
    Sum,
    TemporalEnsembling,
    UserError,
    train_step,
)
from sparring.attacks import FGSM, SignStart, Split
from sparring.core.rng import mixed_seed
from sparring.core.schedules import EpsWarmUp
from sparring.core.types import pixels
from sparring.objectives import EAT, ELLE, GAT, IKL, NuAT

PLAIN = Method(PGD(Linf(0.1), 3), CrossEntropy())
METHODS = [
    PLAIN,
    Method(PGD(Linf(0.1), 2, start=GaussianStart()), TRADES()),
    Method(PGD(Linf(0.1), 2), MART()),
    Method(PGD(Linf(0.1), 2), Sum((CrossEntropy(clean=0.5), LogitPairing()))),
]


FROM_ZERO = FGSM(Linf(0.1))
METHODS_BY_NAME = {
    "GAT": Method(FGSM(Linf(0.1), start=SignStart(0.5)), GAT()),
    "NuAT": Method(FGSM(Linf(0.1), start=SignStart(0.5)), NuAT()),
    "ELLE-A": Method(FROM_ZERO, Sum((CrossEntropy(), ELLE(Linf(0.1), adaptive=True)))),
    "E-AT": Method(Split(((0.5, FROM_ZERO), (0.5, FROM_ZERO))), Sum((CrossEntropy(), EAT()))),
    "IKL": Method(PGD(Linf(0.1), 2), IKL()),
    "a schedule": Method(EpsWarmUp(PGD(Linf(0.1), 2)), CrossEntropy()),
}
PLACE, MEMORY = "give progress=sparring.Progress", "remembers something from batch to batch: give memory="
NEEDS = {**dict.fromkeys(METHODS_BY_NAME, PLACE), "ELLE-A": MEMORY, "IKL": "training set|" + PLACE}


def world():
    data, model = toy_data(), toy_net()
    return model, (pixels(data.x[:32]), data.y[:32])


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m.objective).__name__)
def test_the_gradient_is_that_of_a_training_step(method):
    model, (x, y) = world()
    other = toy_net()
    other.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(other.parameters(), 1.0)
    state = State.start(method, other, optimizer, seed=5)
    terms = train_step(method, state, Batch(x, y, torch.arange(32)), Progress(0, 1, 1), backend=OriginalModel())
    loss = method.loss(model, (x, y), seed=mixed_seed(5, 0), backend=OriginalModel())
    assert float(loss.detach()) == pytest.approx(sum(float(term) for term in terms.values()), rel=1e-6)
    loss.backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-6)


def test_gradients_accumulate_and_nothing_else_changes():
    model, (x, y) = world()
    model.train()
    model.requires_grad_(True)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    loss = PLAIN.loss(model, (x, y))
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters()), "the attack left no gradient"
    assert model.training and all(p.requires_grad for p in model.parameters())
    loss.backward()
    assert any(not torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_a_step_on_the_loss_trains_under_autocast_and_accumulation():
    model, (x, y) = world()
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9), []
    torch.manual_seed(0)
    for _ in range(30):
        for part in (slice(0, 16), slice(16, 32)):
            with torch.autocast("cpu", torch.bfloat16):
                loss = PLAIN.loss(model, (x[part], y[part])) / 2
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_seed_of_torch_decides_and_the_copy_is_checked_every_16th_time(monkeypatch):
    model, (x, y) = world()
    model.eval()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(float(PLAIN.loss(model, (x, y)).detach()))
    assert found[0] == found[1] != found[2]
    proofs, verified = [], AcceleratedCopy._verified
    monkeypatch.setattr(AcceleratedCopy, "_verified", lambda *given: proofs.append(1) or verified(*given))
    for _ in range(32):
        PLAIN.loss(model, (x, y))
    assert len(proofs) == 2


def test_a_model_is_freed():
    model, batch = world()
    PLAIN.loss(model, batch).backward()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_what_would_mislead_gets_a_sentence():
    model, (x, y) = world()
    with pytest.raises(UserError, match=r"outside \[0, 1\]"):
        PLAIN.loss(model, (4 * x - 2, y))
    with pytest.raises(UserError, match=r"wrapped in DataParallel.*give model.module"):
        PLAIN.loss(torch.nn.DataParallel(model), (x, y))
    with pytest.raises(UserError, match="a label is"):
        PLAIN.loss(model, (x, y + 7))
    remembers = Method(PGD(Linf(0.1), 1), Sum((CrossEntropy(), TemporalEnsembling())))
    with pytest.raises(UserError, match="memory of single examples needs a training set"):
        remembers.loss(model, (x, y), Progress(100, 1, 100))


@pytest.mark.parametrize("name", METHODS_BY_NAME)
def test_a_method_says_when_it_needs_its_place_in_training_or_its_memory(name):
    """Without either, a method that reads or keeps something would train as another one."""
    model, (x, y) = world()
    method = METHODS_BY_NAME[name]
    with pytest.raises(UserError, match=NEEDS[name]):
        method.loss(model, (x, y))
    given = {"progress": Progress(1, 4, 3), "memory": method.init(toy_data())}
    for _ in range(2):
        assert method.loss(model, Batch(x, y, torch.arange(32)), **given).isfinite()


def test_a_method_that_remembers_is_given_its_memory():
    data, (model, (x, y)) = toy_data(), world()
    method = Method(PGD(Linf(0.1), 1), Sum((CrossEntropy(), TemporalEnsembling(3.0))))
    memory = method.init(data)
    batch = Batch(x, y, torch.arange(32))
    before = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
    assert method.loss(model, batch, Progress(1, 1, 10), memory=memory).requires_grad
    assert method.loss(model, batch, Progress(2, 1, 10), memory=memory).isfinite()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in memory.state_dict().items())
