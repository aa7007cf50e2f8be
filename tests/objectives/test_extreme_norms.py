"""E-AT: which norm is drawn, by the errors so far."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from sparring import L2, PGD, CrossEntropy, Linf, Method, Progress, State, Sum, UserError, train_step
from sparring.acceleration import OriginalModel
from sparring.attacks import Split
from sparring.core.rng import make_rng
from sparring.core.types import Batch, TensorData
from sparring.models import small_cnn
from sparring.objectives import EAT
from sparring.objectives.extreme_norms import drawn
from sparring.testing import check_objective

X = torch.rand(12, 3, 8, 8, generator=make_rng(0))
Y = torch.arange(12) % 3
PARTS = Split(((0.5, PGD(Linf(0.2), 2)), (0.5, PGD(L2(0.01), 2))))


def test_norms_are_drawn_in_proportion_to_their_errors():
    count = Counter(drawn([[30.0, 100.0], [90.0, 100.0]], [0.5, 0.5], seed) for seed in range(4000))
    assert count[1] / 4000 == pytest.approx(0.75, abs=0.03)
    assert {drawn([[0.0, 100.0], [90.0, 100.0]], [0.5, 0.5], seed) for seed in range(50)} == {1}


class Meeting:
    """An attack that writes down that it was drawn; under "a" every image is another."""

    def __init__(self, name, met):
        self.name, self.met = name, met

    def __call__(self, loss, x, rng):
        self.met.append(self.name)
        return 1 - x if self.name == "a" else x


@pytest.mark.parametrize("errors", [[], [[3.0, 9.0], [0.0, 0.0]], [[0.0, 9.0], [0.0, 9.0]]])
def test_the_shares_decide_until_each_norm_has_errors(errors):
    count = Counter(drawn(errors, [0.2, 0.8], seed) for seed in range(4000))
    assert count[1] / 4000 == pytest.approx(0.8, abs=0.03)


def test_each_batch_meets_one_norm_and_its_errors_are_counted():
    torch.manual_seed(0)
    model = small_cnn(3, (3, 8, 8), width=4).eval()
    method = Method(PARTS, Sum((CrossEntropy(), EAT())))
    state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.0), TensorData(X, Y, tuple("abc")))
    counted, seen = torch.zeros(2, 2), []
    model.register_forward_hook(lambda module, args, out: seen.append(args[0].detach()))
    for number in range(12):
        before = state.memory[1].held.clone()
        train_step(method, state, Batch(X, Y, torch.arange(12)), Progress(number, 4, 9), backend=OriginalModel())
        x_adv = seen[-1]
        norm = int(bool(((x_adv - X).flatten(1).norm(dim=1) <= 0.011).all()))
        counted[norm] += torch.tensor([float((model(x_adv).argmax(1) != Y).sum()), 12.0])
        assert torch.equal(state.memory[1].held, counted), before
    assert bool((counted[:, 1] > 0).all())


@pytest.mark.slow
def test_the_parts_of_a_batch_meet_the_same_norm():
    torch.manual_seed(0)
    model, met = small_cnn(3, (3, 8, 8), width=4).eval(), []
    method = Method(Split(((0.5, Meeting("a", met)), (0.5, Meeting("b", met)))), Sum((CrossEntropy(), EAT())))
    state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.0), TensorData(X, Y, tuple("abc")))
    steps = []
    for number in range(40):
        met.clear()
        batch = Batch(X, Y, torch.arange(12), accumulate=4)
        train_step(method, state, batch, Progress(number, 40, 1), backend=OriginalModel())
        steps.append("".join(met))
    assert set(steps) == {"aaaa", "bbbb"}


def test_the_contract_holds_and_another_attack_is_refused():
    objective = Sum((CrossEntropy(), EAT()))
    check_objective(objective, PARTS)
    method = Method(PARTS.parts[0][1], objective)
    model = small_cnn(3, (3, 8, 8), width=4)
    state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.0), TensorData(X, Y, tuple("abc")))
    with pytest.raises(UserError, match="E-AT draws one of several attacks"):
        train_step(method, state, replace(Batch(X, Y, torch.arange(12))), Progress(0, 4, 9), backend=OriginalModel())
