import pytest
import torch
import torch.nn.functional as F
from conftest import count, toy_data, toy_net

import sparring as sp
from sparring import (
    FGSM,
    PGD,
    Batch,
    Benign,
    Context,
    CrossEntropy,
    Cycle,
    Descend,
    Lens,
    Linf,
    Method,
    Progress,
    State,
    Sum,
    UserError,
    train_step,
)
from sparring.core import pixels
from sparring.testing import check_objective

BALL = Linf(8 / 255)
SHORT = PGD(BALL, steps=3)

# one line for a new method
OBJECTIVES = [
    sp.CrossEntropy(),
    sp.CrossEntropy(label_smoothing=0.2),
    sp.Sum((sp.CrossEntropy(),)),
    sp.TRADES(),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize(
    "attack", [Benign(), SHORT, Cycle(((2, Benign()), (1, FGSM(BALL))))], ids=["benign", "pgd", "cycle"]
)
def test_every_objective_keeps_its_contract(objective, attack):
    check_objective(objective, attack)


def one_step(objective, attack, model):
    data = toy_data()
    state = State.start(Method(attack, objective), model, torch.optim.SGD(model.parameters(), lr=0.1), data)
    index = torch.arange(12)
    batch = Batch(pixels(data.x[index]), data.y[index], index)
    return train_step(Method(attack, objective), state, batch, Progress(0, 5, 1), Descend())


# forwards, backwards: what the theory asks for
PASSES = [
    (CrossEntropy(), Benign(), 1, 1),
    (CrossEntropy(), PGD(BALL, steps=10), 11, 11),
]


@pytest.mark.parametrize(("objective", "attack", "forwards", "backwards"), PASSES, ids=lambda v: repr(v)[:40])
def test_a_training_step_takes_as_many_passes_as_the_theory_says(objective, attack, forwards, backwards):
    model = toy_net().train()
    seen = count(model)
    one_step(objective, attack, model)
    assert (seen.forwards, seen.backwards) == (forwards, backwards)


def test_label_smoothing_acts_on_the_update_and_not_on_the_attack():
    model, data = toy_net().eval(), toy_data(12)
    ctx = Context(Lens(model), Batch(pixels(data.x), data.y, torch.arange(12)), torch.nn.Module(), Progress(0, 1, 1))
    objective = CrossEntropy(label_smoothing=0.3)
    logits = model(ctx.batch.x)
    assert torch.allclose(objective.inner(ctx)(ctx.batch.x).value, F.cross_entropy(logits, data.y, reduction="none"))
    assert torch.allclose(objective.outer(ctx, ctx.batch.x)["ce"], F.cross_entropy(logits, data.y, label_smoothing=0.3))


def test_two_terms_of_one_name_are_refused():
    with pytest.raises(UserError, match="both call a term 'ce'"):
        one_step(Sum((CrossEntropy(), CrossEntropy())), Benign(), toy_net())
