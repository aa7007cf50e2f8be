"""The bank and the term, against a loop in numpy that keeps the predictions itself."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import toy_data, toy_net
from helpers import bits, stop_at

import sparring.objectives.example_bank as banks
from sparring import (
    PGD,
    SWA,
    TRADES,
    Batch,
    Context,
    CrossEntropy,
    GaussianStart,
    Linf,
    Method,
    Progress,
    State,
    Sum,
    TemporalEnsembling,
    TensorData,
    UserError,
    fit,
    train_step,
)
from sparring.acceleration import OriginalModel
from sparring.core.rng import make_rng
from sparring.core.schedules import EpsWarmUp, Ramp
from sparring.core.types import ForwardCache, pixels
from sparring.data import NPZ, Batches
from sparring.objectives import BatchNormStatistics, Staged
from sparring.objectives.example_bank import Bank, chosen
from sparring.training import Interrupted, OptimizerStep
from sparring.training.cost import cost

pytestmark = pytest.mark.slow

BALL = Linf(8 / 255)
ALWAYS = TemporalEnsembling(weight=3.0)


def predictions(model, x):
    was = model.training
    model.eval()
    with torch.no_grad():
        p = model(x).softmax(1).numpy()
    model.train(was)
    return p


@pytest.mark.parametrize("sizes", [(4, 4, 4), (4, 3, 6)], ids=["one size", "another size after the second batch"])
@pytest.mark.parametrize("resumed", [False, True])
def test_the_bank_is_what_a_loop_in_numpy_keeps(sizes, resumed):
    """Over three batches an epoch and three epochs, with the size of batches changed and the state saved between."""
    data = toy_data(24)
    method = Method(PGD(BALL, steps=2), Sum((CrossEntropy(), TemporalEnsembling(Ramp(3.0, 2, 3), decay=0.9))))

    def start():
        torch.manual_seed(0)
        model = toy_net().train()
        return State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1), data)

    state, kept = start(), np.zeros((24, len(data.classes)))
    for step in range(9):
        epoch, size = step // 3 + 1, sizes[step // 3]
        index = torch.randperm(24, generator=make_rng(step))[:size]
        x = pixels(data.x[index])
        if epoch >= 2:  # where the ramp begins, the bank does
            kept[index] = 0.9 * kept[index] + 0.1 * predictions(state.model, x)
        train_step(
            method, state, Batch(x, data.y[index], index), Progress(step, 3, 3), OptimizerStep(), OriginalModel()
        )
        found = state.memory[1].rows.numpy()
        np.testing.assert_allclose(found, kept, atol=1e-6)
        if resumed and step == 4:
            fresh = start()
            fresh.model.load_state_dict(copy.deepcopy(state.model.state_dict()))
            fresh.load_state_dict(copy.deepcopy(state.state_dict()))
            state = fresh
    assert (kept.sum(1) > 0).sum() > 6


def test_the_ramp_is_the_papers_at_its_ends_and_between():
    ramp = Ramp(30.0, 90, 150)

    def at(epoch):  # numbered from 1
        return ramp.at(Progress((epoch - 1) * 10 + 7, 10, 200))

    assert at(1) == at(89) == 0.0
    assert at(90) == pytest.approx(30 * math.exp(-5)) == pytest.approx(0.202, abs=1e-3)
    assert at(120) == pytest.approx(30 * math.exp(-5 / 4))
    assert at(150) == at(200) == 30.0
    assert Ramp(2.0, 5, 5).at(Progress(4, 1, 9)) == 2.0
    assert Ramp(2.0, 5, 5).at(Progress(3, 1, 9)) == 0.0
    with pytest.raises(UserError, match="ends at epoch 3"):
        Ramp(1.0, 4, 3)


def context(objective, model, data, rows=None):
    index = torch.arange(len(data)) if rows is None else rows
    batch = Batch(pixels(data.x[index]), data.y[index], index)
    return Context(ForwardCache(model), batch, objective.init(data), Progress(0, 1, 1))


def test_term_and_inner_loss_are_the_formula_and_the_two_weights_differ_by_the_number_of_classes():
    data, model = toy_data(12), toy_net().eval()
    classes = len(data.classes)
    ctx = context(ALWAYS, model, data)
    ALWAYS.observe(ctx)
    far = (ctx.batch.x + 0.1).clamp(0, 1)
    p = predictions(model, far)
    q = predictions(model, ctx.batch.x)  # after one look, the average is what was seen
    apart = ((p - q) ** 2).sum(1)
    assert apart.min() > 0
    np.testing.assert_allclose(ALWAYS.inner_term(ctx)(far).value.detach(), 3 * apart, rtol=1e-4)
    np.testing.assert_allclose(
        ALWAYS.inner_term(ctx)[torch.tensor([3, 1])](far[[3, 1]]).value.detach(), 3 * apart[[3, 1]], rtol=1e-4
    )
    np.testing.assert_allclose(ALWAYS.outer(ctx, far)["ensemble"].item(), 3 * apart.mean(), rtol=1e-4)
    released = replace(ALWAYS, per_class=True, weight=3.0 * classes)
    np.testing.assert_allclose(released.outer(ctx, far)["ensemble"].item(), 3 * apart.mean(), rtol=1e-4)
    np.testing.assert_allclose(
        released.outer(ctx, far)["ensemble"].item(), 3.0 * classes * ((p - q) ** 2).mean(), rtol=1e-4
    )


def test_with_trades_the_update_draws_the_clean_prediction_and_the_attack_the_adversarial_one():
    data, model = toy_data(12), toy_net().eval()
    term = replace(ALWAYS, on="clean", decay=0.5)
    ctx = context(term, model, data)
    term.observe(ctx)
    for p in model.parameters():  # the model moves on, so that its clean prediction is no more the average
        p.data.mul_(1.3)
    ctx = replace(ctx, lens=ForwardCache(model))
    far = (ctx.batch.x + 0.1).clamp(0, 1)
    q = ctx.memory[ctx.batch.index].numpy()
    q /= q.sum(1, keepdims=True)
    for x, found in ((far, term.inner_term(ctx)(far).value.mean()), (ctx.batch.x, term.outer(ctx, far)["ensemble"])):
        np.testing.assert_allclose(found.item(), 3 * ((predictions(model, x) - q) ** 2).sum(1).mean(), rtol=1e-4)


def test_the_attack_raises_the_term_too():
    """In a sum, the inner loss is that of the method plus the term; before the ramp it is the method's alone."""
    data, model = toy_data(12), toy_net().eval()
    method = Sum((CrossEntropy(), ALWAYS))
    ctx = context(method, model, data)
    method.observe(ctx)
    x = (ctx.batch.x + 0.1).clamp(0, 1)
    both, alone = method.inner(ctx)(x), CrossEntropy().inner(ctx)(x)
    term = ALWAYS.inner_term(ctx.remembering(ctx.memory[1]))(x)
    torch.testing.assert_close(both.value, alone.value + term.value)
    assert torch.equal(both.fooled, alone.fooled)
    later = Sum((CrossEntropy(), TemporalEnsembling(Ramp(3.0, 2, 3))))
    assert torch.equal(later.inner(ctx)(x).value, alone.value)
    assert list(later.outer(ctx, x)) == ["ce"]


def test_it_costs_a_clean_pass_once_it_has_begun():
    attack = PGD(BALL, steps=10)
    term = TemporalEnsembling(Ramp(30.0, 6, 8))
    before = cost(Method(attack, CrossEntropy()), OptimizerStep(), 10, 5)
    after = cost(Method(attack, Sum((CrossEntropy(), replace(term, weight=30.0)))), OptimizerStep(), 10, 5)
    half = cost(Method(attack, Sum((CrossEntropy(), term))), OptimizerStep(), 10, 5)
    assert (before.forward, after.forward, half.forward) == (11, 12, 11.5)
    assert before.backward == after.backward == half.backward == 11


def test_predictions_are_those_of_eval_mode_whatever_the_attack_sees():
    """Batch statistics and dropout would make a prediction depend on its neighbours."""
    data, model = toy_data(12), toy_net().train()
    ctx = context(ALWAYS, model, data, torch.tensor([5, 2]))
    with torch.no_grad():
        ALWAYS.observe(ctx)
    np.testing.assert_allclose(ctx.memory[ctx.batch.index], 0.1 * predictions(model, ctx.batch.x), atol=1e-6)
    assert model.training


def test_views_of_an_image_enter_as_their_mean():
    data, model = toy_data(12), toy_net().eval()
    ctx = context(ALWAYS, model, data, torch.tensor([3, 7, 3, 7]))
    ctx = replace(ctx, batch=replace(ctx.batch, x=(ctx.batch.x + torch.rand(4, 1, 1, 1)).clamp(0, 1)))
    ALWAYS.observe(ctx)
    p = predictions(model, ctx.batch.x)
    np.testing.assert_allclose(ctx.memory[torch.tensor([3, 7])], 0.1 * (p[:2] + p[2:]) / 2, atol=1e-6)
    assert not ctx.memory.rows[[0, 1, 2, 4]].any()


def test_it_works_within_other_objectives():
    data = toy_data(12)
    inside = Sum((TRADES(), replace(ALWAYS, on="clean")))
    for objective in (BatchNormStatistics(inside, "both"), Staged(((1, CrossEntropy()), (1, inside)))):
        torch.manual_seed(0)
        model = toy_net().train()
        method = Method(PGD(BALL, steps=1, start=GaussianStart()), objective)
        state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1), data)
        for step, batch in enumerate(Batches(data, 6).rest_of_epoch(0)):
            terms = train_step(method, state, batch, Progress(step, 2, 1))
        assert "ensemble" in terms
        (bank,) = [m for m in state.memory.modules() if isinstance(m, Bank)]
        assert bool((bank.rows.sum(1) > 0).all())


# -- where it is kept


def test_fifty_million_rows_of_ten_are_in_half_precision_and_not_on_the_device():
    for memory, place in ((64 * 2**30, "host"), (2 * 2**30, "disk")):
        assert chosen(50_000_000, 10, "auto", memory) == (torch.float16, place)
    assert chosen(50_000, 10, "auto", 2**30) == (torch.float32, "device")
    assert chosen(1_281_167, 100, "auto", 2**40) == (torch.float16, "device")
    assert chosen(50_000, 10, "disk", 2**40) == (torch.float32, "disk")


@pytest.mark.parametrize("place", ["device", "host", "disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_place_holds_the_same_rows(place, dtype, monkeypatch):
    monkeypatch.setattr(banks, "WHOLE", 10**9 if dtype == torch.float32 else 0)
    data = toy_data(12)
    bank = Bank(data, 3, place)
    assert (bank.dtype, bank.rows.dtype, bank.place) == (dtype, dtype, place)
    assert str(bank).startswith("a bank of 12 x 3 numbers is kept")
    index, values = torch.tensor([7, 0, 11]), torch.rand(3, 3)
    bank[index] = values
    torch.testing.assert_close(bank[index], values, atol=1e-3 if dtype == torch.float16 else 0, rtol=0)
    assert bank[index].dtype == torch.float32
    assert bank.rows.sum(1).count_nonzero() == 3
    other = Bank(data, 3, place)
    other.load_state_dict(copy.deepcopy(bank.state_dict()))
    assert torch.equal(other.rows, bank.rows)
    moved = bank.to("meta")  # a device that is surely another
    assert moved.rows.device.type == ("meta" if place == "device" else "cpu")


def test_training_from_the_host_or_a_file_gives_the_same_bits_as_on_the_device():
    data = toy_data(12)
    found = []
    for place in ("device", "host", "disk"):
        torch.manual_seed(0)
        model = toy_net().train()
        method = Method(PGD(BALL, steps=1), Sum((CrossEntropy(), replace(ALWAYS, place=place))))
        state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1), data)
        for batch in Batches(data, 6).rest_of_epoch(0):
            train_step(method, state, batch, Progress(0, 2, 1))
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_disk_without_room_is_said(monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(banks.os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match="no room for a bank of 12 x 3"):
        Bank(toy_data(12), 3, "disk")


# -- what is refused


class Endless:
    """Labelled images without a length."""

    classes = ("a", "b")
    shape = (1, 8, 8)


def test_data_whose_examples_have_no_number_are_refused():
    with pytest.raises(UserError, match="streamed without end"):
        ALWAYS.init(Endless())
    model = toy_net()
    method = Method(PGD(BALL, steps=1), Sum((CrossEntropy(), ALWAYS)))
    with pytest.raises(UserError, match="needs a training set whose examples have a number"):
        State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("wrong", [-1, 12])
def test_an_index_of_no_example_is_refused(wrong):
    data = toy_data(12)
    ctx = context(ALWAYS, toy_net().eval(), data)
    ctx = replace(ctx, batch=replace(ctx.batch, index=torch.full((12,), wrong)))
    with pytest.raises(UserError, match=f"a batch has the index {wrong}, but examples are numbered from 0 to 11"):
        ALWAYS.observe(ctx)


def test_a_bank_of_another_data_set_is_refused():
    data = toy_data(12)
    saved = Bank(data, 3).state_dict()
    with pytest.raises(UserError, match="the saved bank is of 12 examples and 3 classes"):
        Bank(toy_data(24), 3).load_state_dict(saved)
    for other in (data.relabelled((data.y + 1) % 3), TensorData(data.x.flip(0), data.y, data.classes)):
        with pytest.raises(UserError, match="other labels or images"):
            Bank(other, 3).load_state_dict(saved)
    Bank(data, 3).load_state_dict(saved)


def test_a_run_whose_file_was_exchanged_does_not_go_on(tiny, tmp_path):
    path = tmp_path / "data.npz"

    def written(seed):
        rng = np.random.default_rng(seed)
        x, y = rng.random((80, 8, 8), dtype=np.float32), rng.integers(10, size=80)
        np.savez(path, x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=np.arange(20) % 10)

    written(0)
    assert isinstance(tiny.method, Method)
    objective = Sum((CrossEntropy(), ALWAYS))
    recipe = replace(
        tiny, data=NPZ(str(path)), method=replace(tiny.method, objective=objective), batch_size=20, held_out=0.1
    )
    said = []

    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "run", on_progress=stop_at(3), log=said.append)
    assert any("a bank of 54 x 10 numbers is kept on the device of the model, in float32" in line for line in said)
    written(1)
    with pytest.raises(UserError, match="the data set has changed since this training began"):
        fit(recipe, tmp_path / "run")


def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(tiny, tmp_path):
    """Stopped in the middle of an epoch, when the bank is in use."""
    objective = Sum((TRADES(), TemporalEnsembling(Ramp(30.0, 2, 3), on="clean")))
    attack = replace(tiny.method.attack, start=GaussianStart())
    recipe = replace(tiny, method=Method(attack, objective), batch_size=128)
    whole = fit(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "half", on_progress=stop_at(15))
    half = fit(recipe, tmp_path / "half")
    assert bits(half) == bits(whole)
    assert "ensemble" in whole.metrics()[-2]["terms"] or "ensemble" in whole.metrics()[-3]["terms"]


def test_a_ramp_that_begins_after_the_end_is_refused(tiny):
    """It would be plain training, without a word."""
    objective = Sum((CrossEntropy(), TemporalEnsembling()))
    with pytest.raises(UserError, match="begins to rise at epoch 90, after the end of these 3"):
        replace(tiny, method=replace(tiny.method, objective=objective))
    replace(tiny, method=replace(tiny.method, objective=objective), epochs=90)
    for weight in (-1.0, Ramp(-1.0)):
        with pytest.raises(UserError, match="drive predictions away"):
            TemporalEnsembling(weight)


def test_an_average_and_an_eps_that_come_after_the_end_are_refused(tiny):
    with pytest.raises(UserError, match="starts after epoch 3, and the training ends with epoch 3"):
        replace(tiny, averaging=SWA(3))
    replace(tiny, averaging=SWA(2))
    slow = replace(tiny.method, attack=EpsWarmUp(PGD(Linf(0.1)), epochs=4))
    with pytest.raises(UserError, match="eps rises for 4 epochs, longer than the training of 3"):
        replace(tiny, method=slow)
    replace(tiny, method=slow, epochs=4)


def test_a_decay_of_one_never_forgets_and_never_learns():
    with pytest.raises(UserError, match="decay = 1"):
        TemporalEnsembling(decay=1.0)
    with pytest.raises(UserError, match="add it to a method"):
        ALWAYS.inner(context(ALWAYS, toy_net().eval(), toy_data(12)))
