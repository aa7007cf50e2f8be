"""How often the processor waits for a GPU: counted on a pretended one, against limits."""

import pytest
import torch
from pretended import counts, pretended, waits

from sparring import (
    APGD,
    L1,
    L2,
    MART,
    PGD,
    TRADES,
    CrossEntropy,
    GaussianStart,
    Linf,
    Margin,
    Method,
    State,
    TensorData,
    WhiteBox,
    evaluate,
    train_step,
)
from sparring.acceleration import AcceleratedCopy
from sparring.attacks import CE, CWL2, DDN, FAB, RandomEps, Square
from sparring.core.modes import eval_mode, frozen
from sparring.core.rng import PerExample
from sparring.core.types import Batch, Progress
from sparring.models import small_cnn
from sparring.objectives import MixUp, Sum, TemporalEnsembling
from sparring.objectives.grad_align import GradAlign
from sparring.training import LAMB, LARS, SGD, RMSProp
from sparring.training.updates import AWP, OptimizerStep

pytestmark = pytest.mark.slow

T, SIDE, B = Linf("8/255"), 8, 12
BACKEND = AcceleratedCopy("bf16", "off")
PLAIN = PGD(T, 3)


def net():
    torch.manual_seed(0)
    model = small_cnn(10, (3, SIDE, SIDE), width=2, batch_norm=True).to("cuda")
    return model, torch.rand(B, 3, SIDE, SIDE, device="cuda"), (torch.arange(B) % 10).to("cuda")


STEPS = {
    "pgd": (PLAIN, CrossEntropy(), OptimizerStep(), 0),
    "trades": (PGD(T, 3, start=GaussianStart()), TRADES(), OptimizerStep(), 0),
    "mart": (PLAIN, MART(), OptimizerStep(), 0),
    "awp": (PLAIN, CrossEntropy(), AWP(0.01), 0),
    "ensembling": (PLAIN, Sum((CrossEntropy(), TemporalEnsembling(1.0))), OptimizerStep(), 0),
    "random eps": (RandomEps(PLAIN), CrossEntropy(), OptimizerStep(), 0),
    "mixup": (PLAIN, MixUp(), OptimizerStep(), 0),
    "patience": (PGD(T, 3, patience=1), CrossEntropy(), OptimizerStep(), 3),
    "grad-align": (PGD(T, 1), Sum((CrossEntropy(), GradAlign(T))), OptimizerStep(), 1),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_waits_no_more_often_than_it_must(name):
    attack, objective, update, most = STEPS[name]
    with pretended():
        model, x, y = net()
        data = TensorData((255 * x).to(torch.uint8), y, tuple("abcdefghij"))
        method = Method(attack, objective)
        state = State.start(method, model.train(), SGD().build(model), data)
        for step in range(2):  # in the first, images are checked and a copy is made
            counts.clear()
            batch = Batch(x, y, torch.arange(B, device="cuda"))
            train_step(method, state, batch, Progress(step, 10, 2), update, BACKEND)
        assert sum(waits().values()) <= most, waits()


@pytest.mark.parametrize("value", [SGD(), LARS(), LAMB(), RMSProp()], ids=lambda value: type(value).__name__)
def test_no_optimiser_waits(value):
    with pretended():
        model, _, _ = net()
        optimizer = value.build(model.train())
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        counts.clear()
        optimizer.step()
        assert not waits(), waits()


ATTACKS = {
    "pgd": (PGD(T, 6), CE, 0),
    "pgd with patience": (PGD(T, 6, patience=0), CE, 6),
    "pgd l1": (PGD(L1(12), 6), CE, 0),
    "apgd": (APGD(T, 6), CE, 2 * 6),
    "apgd l2": (APGD(L2(0.5), 6), CE, 2 * 6),
    "square": (Square(T, 12), Margin, 2 * 12),
    "fab": (FAB(T, 6), Margin, 3 * 6),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_waits_about_once_a_step_where_examples_leave_and_else_never(name):
    attack, loss, most = ATTACKS[name]
    with pretended():
        model, x, y = net()
        with eval_mode(model), frozen(model), BACKEND(model, x) as attacked:
            counts.clear()
            attack(loss(attacked.__call__, y), x, PerExample(0, torch.arange(B, device="cuda")))
        assert sum(waits().values()) <= most, waits()


@pytest.mark.parametrize("attack", [DDN(4), CWL2(4, searches=2)], ids=["ddn", "cw"])
def test_the_nearest_point_is_kept_without_a_wait(attack):
    with pretended():
        model, x, y = net()
        with eval_mode(model), frozen(model), BACKEND(model, x) as attacked:
            counts.clear()
            attack.closest(Margin(attacked.__call__, y), x, PerExample(0, torch.arange(B, device="cuda")))
        assert not waits(), waits()


@pytest.mark.parametrize("where", ["cuda", "cpu"])
def test_an_evaluation_takes_data_from_anywhere_and_reads_weights_at_once(where):
    with pretended():
        model, x, y = net()
        data = TensorData((255 * x).to(torch.uint8), y, tuple("abcdefghij")).to(where)
        counts.clear()
        found = evaluate(model.eval(), data, {"pgd": WhiteBox(PGD(T, 2, patience=0))}, backend=BACKEND)
        assert found.table()["pgd"].examples == B
        assert waits()["_local_scalar_dense"] <= 40, "thirty weights, each looked at six times, are read together"
