import numpy as np
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
    Near,
    Progress,
    State,
    Sum,
    UserError,
    train_step,
)
from sparring.core import pixels
from sparring.fast import Fast, Plain
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


def one_step(objective, attack, model, search=Plain()):  # noqa: B008
    """Not the very first, which also runs 8 images to check them."""
    data = toy_data()
    state = State.start(Method(attack, objective), model, torch.optim.SGD(model.parameters(), lr=0.1), data)
    index = torch.arange(12)
    batch = Batch(pixels(data.x[index]), data.y[index], index)
    return train_step(Method(attack, objective), state, batch, Progress(1, 5, 1), Descend(), search)


# forwards, backwards: what the theory asks for
PASSES = [
    (CrossEntropy(), Benign(), 1, 1),
    (CrossEntropy(), PGD(BALL, steps=10), 11, 11),
    # 1 + steps + 2 forwards; the first is not differentiated
    (sp.TRADES(), PGD(BALL, steps=10, start=Near()), 13, 12),
    # added terms share the forward pass of the adversarial point, and the attack that of each iterate
    (Sum((CrossEntropy(), sp.TRADES())), PGD(BALL, steps=10, start=Near()), 13, 12),
]


@pytest.mark.parametrize(("objective", "attack", "forwards", "backwards"), PASSES, ids=lambda v: repr(v)[:40])
def test_a_training_step_takes_as_many_passes_as_the_theory_says(objective, attack, forwards, backwards):
    for search in (Plain(), Fast()):
        model = toy_net().train()
        seen = count(model)
        one_step(objective, attack, model, search)
        seen.forwards = seen.backwards = 0  # the first step also compares the copy with the model
        one_step(objective, attack, model, search)
        assert (seen.forwards, seen.backwards) == (forwards, backwards), search


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


def context(model):
    data = toy_data(12)
    return Context(Lens(model), Batch(pixels(data.x), data.y, torch.arange(12)), torch.nn.Module(), Progress(0, 1, 1))


def test_trades_is_the_formula_of_its_paper():
    """Written out in numpy, all in double precision: CE(z(x), y) + beta mean_i sum_c p_ic log(p_ic / q_ic)."""
    model, data = toy_net().eval().double(), toy_data(12)
    batch = Batch(pixels(data.x).double(), data.y, torch.arange(12))
    ctx = Context(Lens(model), batch, torch.nn.Module(), Progress(0, 1, 1))
    x_adv = (ctx.batch.x + 0.05).clamp(0, 1)
    with torch.no_grad():
        p, q = (model(x).softmax(1).numpy() for x in (ctx.batch.x, x_adv))
        terms = sp.TRADES(beta=4.0).outer(ctx, x_adv)
        inner = sp.TRADES(beta=4.0).inner(ctx)(x_adv).value.numpy()
    assert float(terms["kl"]) == pytest.approx(4.0 * (p * np.log(p / q)).sum(1).mean(), rel=1e-9)
    assert float(terms["ce_clean"]) == pytest.approx(-np.log(p[np.arange(12), ctx.batch.y]).mean(), rel=1e-9)
    assert inner == pytest.approx(4.0 * (p * np.log(p / q)).sum(1), rel=1e-8)


def test_trades_differentiates_both_predictions_in_the_update():
    """The released code does; with the clean prediction detached the gradient is another."""
    model = toy_net().eval()
    ctx = context(model)
    x_adv = (ctx.batch.x + 0.05).clamp(0, 1)
    (ours,) = torch.autograd.grad(sp.TRADES().outer(ctx, x_adv)["kl"], model[1].weight)
    clean, adv = model(ctx.batch.x), model(x_adv).log_softmax(1)
    both = 6 * F.kl_div(adv, clean.softmax(1), reduction="batchmean")
    held = 6 * F.kl_div(adv, clean.detach().softmax(1), reduction="batchmean")
    (wanted,) = torch.autograd.grad(both, model[1].weight, retain_graph=True)
    (other,) = torch.autograd.grad(held, model[1].weight)
    assert torch.allclose(ours, wanted, atol=1e-6)
    assert not torch.allclose(ours, other, atol=1e-4)


def test_a_sum_adds_the_inner_losses_and_asks_each_part_for_its_terms():
    model = toy_net().eval()
    ctx = Context(
        Lens(model), context(model).batch, Sum((CrossEntropy(), sp.TRADES())).init(toy_data()), Progress(0, 1, 1)
    )
    both = Sum((CrossEntropy(), sp.TRADES()))
    x_adv = (ctx.batch.x + 0.05).clamp(0, 1)
    parts = [part.inner(context(model))(x_adv).value for part in both.parts]
    assert torch.allclose(both.inner(ctx)(x_adv).value, sum(parts))
    assert set(both.outer(ctx, x_adv)) == {"ce", "ce_clean", "kl"}
    assert both.inner(ctx)(x_adv).fooled is not None


def test_trades_has_a_finite_gradient_where_a_probability_underflows():
    """With probabilities instead of their logarithms the gradient is NaN from here on (0 / 0)."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[100.0], [0.0], [-100.0]]).expand(3, 16))
    ctx = context(model)
    assert (model(ctx.batch.x).softmax(1) == 0).any()
    sum(sp.TRADES().outer(ctx, (ctx.batch.x + 0.05).clamp(0, 1)).values()).backward()
    assert model[1].weight.grad.isfinite().all()
