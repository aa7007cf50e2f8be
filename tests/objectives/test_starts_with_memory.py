"""An objective may choose where the attack begins, and remember where it ended."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from sparring import FGSM, PGD, CrossEntropy, Linf, Method, State, Sum, UserError, train_step
from sparring.acceleration import OriginalModel
from sparring.attacks import NFGSM
from sparring.core.rng import make_rng
from sparring.core.types import Batch, Progress, TensorData
from sparring.models import small_cnn
from sparring.objectives import BatchNormStatistics, LogitPairing, Staged
from sparring.testing import check_objective

BALL = Linf(0.1)
X = torch.rand(12, 3, 8, 8, generator=make_rng(0))
Y = torch.arange(12) % 3


class Places(nn.Module):
    def __init__(self, count, shape):
        super().__init__()
        self.register_buffer("held", torch.zeros(count, *shape))


@dataclass(frozen=True)
class Continued(CrossEntropy):
    """Begins each attack at the perturbation with which the last one of this example ended."""

    def init(self, data):
        return Places(len(data), data.shape)

    def start(self, ctx):
        return ctx.batch.x + ctx.memory.held[ctx.batch.index]

    def remember(self, ctx, x_adv):
        ctx.memory.held[ctx.batch.index] = x_adv - ctx.batch.x


def state(method):
    torch.manual_seed(0)
    model = small_cnn(3, (3, 8, 8), width=4)
    return State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.0), TensorData(X, Y, tuple("abc")))


def steps(method, count, batch=None):
    made = state(method)
    for step in range(count):
        train_step(method, made, batch or Batch(X, Y, torch.arange(12)), Progress(step, 9, 1), backend=OriginalModel())
    return made


def test_two_steps_from_memory_are_one_attack_of_two_steps():
    method = Method(PGD(BALL, 1, 0.03), Continued())
    made = steps(method, 2)
    from sparring.attacks.losses import CE
    from sparring.attacks.pgd import CleanStart

    wanted = PGD(BALL, 2, 0.03, CleanStart())(CE(made.model.eval(), Y), X, make_rng(0)) - X
    assert torch.allclose(made.memory.held, wanted, atol=1e-6) and bool(wanted.any())


@pytest.mark.parametrize("wrap", [lambda o: Sum((o, LogitPairing())), BatchNormStatistics, lambda o: Staged(((3, o),))])
def test_objectives_made_of_others_pass_starts_and_memory_on(wrap):
    alone = steps(Method(PGD(BALL, 1, 0.03), Continued()), 2).memory.held
    memory = steps(Method(PGD(BALL, 1, 0.03), wrap(Continued())), 2).memory
    held = next(each for each in memory.modules() if isinstance(each, Places)).held
    assert torch.allclose(held, alone, atol=1e-6)


def test_micro_batches_begin_and_remember_their_own_rows():
    method = Method(PGD(BALL, 1, 0.03), Continued())
    whole = steps(method, 3).memory.held
    parts = steps(method, 3, Batch(X, Y, torch.arange(12), accumulate=3)).memory.held
    assert torch.allclose(parts, whole, atol=1e-6)


def test_an_attack_without_a_start_is_refused():
    with pytest.raises(UserError, match="NFGSM has no start"):
        steps(Method(NFGSM(BALL), Continued()), 1)


def test_the_contract_of_objectives_holds_for_one_with_memory():
    check_objective(Continued(), FGSM(BALL))


@dataclass(frozen=True)
class Second(CrossEntropy):
    """Trains a second linear net in its memory, on the same images."""

    def init(self, data):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))

    def outer(self, ctx, x_adv):
        second = nn.functional.cross_entropy(ctx.memory(ctx.batch.x), ctx.batch.y)
        return {**CrossEntropy.outer(self, ctx, x_adv), "second": second}


def test_parameters_of_the_memory_are_trained_with_the_model():
    method = Method(FGSM(BALL), Second())
    made = state(method)
    for group in made.optimizer.param_groups:
        group["lr"] = 0.5
    before = made.memory[1].weight.detach().clone()
    first, *_, last = [
        train_step(method, made, Batch(X, Y, torch.arange(12)), Progress(step, 9, 1), backend=OriginalModel())["second"]
        for step in range(20)
    ]
    assert not torch.equal(made.memory[1].weight, before) and float(last) < 0.7 * float(first)
    assert set(made.trained.parameters()) == {*made.model.parameters(), *made.memory.parameters()}
    again = state(method)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.memory[1].weight, made.memory[1].weight)


def test_a_method_without_such_parameters_trains_the_bare_model():
    made = state(Method(FGSM(BALL), Continued()))
    assert made.trained is made.model and len(made.optimizer.param_groups) == 1
