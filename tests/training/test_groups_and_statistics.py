"""What the optimiser decays in the memory of a method, and whose batch norm an average has."""

import torch
from conftest import toy_data, toy_net
from torch import nn

from sparring import EMA, PGD, SWA, Build, CrossEntropy, Linf, Method, State, TrainingLoop
from sparring.data import Batches
from sparring.models import small_cnn
from sparring.objectives import LBGAT
from sparring.training import engine
from sparring.training.optimizers import SGD


def decays(optimizer_rule):
    data, model = toy_data(), small_cnn(width=4, batch_norm=True, num_classes=3, shape=(1, 4, 4))
    build = Build(small_cnn, width=4, batch_norm=True, num_classes=3, shape=(1, 4, 4))
    optimizer = optimizer_rule.build(model)
    own = {id(p) for p in model.parameters()}
    State.start(Method(PGD(Linf(0.1), 1), LBGAT(build)), model, optimizer, data)
    memory = [(p.ndim, g["weight_decay"]) for g in optimizer.param_groups for p in g["params"] if id(p) not in own]
    return set(memory)


def test_a_second_net_is_decayed_as_the_model_is():
    assert decays(SGD(weight_decay=0.1)) == {(1, 0.1), (2, 0.1), (4, 0.1)}
    assert decays(SGD(weight_decay=0.1, decay_vectors=False)) == {(1, 0.0), (2, 0.1), (4, 0.1)}
    assert decays(SGD(weight_decay=0.0)) == {(1, 0.0), (2, 0.0), (4, 0.0)}


def test_batch_norm_that_is_local_stays_local_in_an_average(monkeypatch):
    def refused(model):
        raise AssertionError("batch norm of all processes was asked for")

    monkeypatch.setattr(engine, "global_batch_norm", refused)
    data = toy_data(20)
    for averaging in (EMA(0.9), SWA(0)):
        model = nn.Sequential(toy_net(), nn.BatchNorm1d(3))
        method = Method(PGD(Linf(0.1), 1), CrossEntropy())
        state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1), data)
        state.local_batch_norm = True
        TrainingLoop(2, 0.1, averaging=averaging).run(method, state, Batches(data, 10, seed=0))
        assert state.step == 4
