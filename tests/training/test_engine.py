import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from conftest import toy_data, toy_net
from torch import nn

from sparring import (
    EMA,
    PGD,
    Batch,
    Benign,
    CrossEntropy,
    Linf,
    Method,
    Objective,
    Progress,
    State,
    TrainingLoop,
    UserError,
    train_mode,
    train_step,
)
from sparring.acceleration import OriginalModel
from sparring.core.rng import PerExample, mixed_seed
from sparring.core.schedules import MultiStep
from sparring.core.types import pixels
from sparring.data import Batches
from sparring.training import SGD
from sparring.training.checkpoint import Checkpoints
from sparring.training.engine import Hook

MADRY = Method(PGD(Linf(0.05), steps=2), CrossEntropy())


def begin(method=MADRY, model=None, lr=0.1, **optimizer):
    model = toy_net().train() if model is None else model
    return State.start(method, model, torch.optim.SGD(model.parameters(), lr=lr, **optimizer), toy_data())


def run(state, method=MADRY, epochs=2, lr=0.1, **rest):
    TrainingLoop(epochs, lr, **rest).run(method, state, Batches(toy_data(), 20))
    return state


def test_training_learns():
    state = run(begin(), epochs=15)
    data = toy_data(seed=1)
    assert (state.model.eval()(pixels(data.x)).argmax(1) == data.y).float().mean() > 0.9


def test_the_attack_sees_eval_mode_and_the_update_the_mode_of_the_owner():
    modes = []
    model = toy_net().train()
    model.register_forward_hook(lambda m, *_: modes.append(m.training))
    run(begin(model=model), epochs=1)
    assert modes == [*[False] * 5, *[False, False, True] * 3], "first images and copy are checked in eval mode"


def test_images_that_were_normalised_outside_the_model_are_refused_at_the_first_step():
    data, state = toy_data(), begin()
    batch = Batch(pixels(data.x[:20]) * 2 - 1, data.y[:20], torch.arange(20))
    with pytest.raises(UserError, match=r"images span .* outside \[0, 1\]"):
        train_step(MADRY, state, batch, Progress(0, 3, 1))


def on_logits(of):
    """An `inner` that gives a function of images."""
    return lambda ctx: lambda x: of(ctx.lens.logits(x))


def terms(of):
    return lambda ctx, x_adv: of(ctx.lens.logits(x_adv).mean())


@pytest.mark.parametrize(
    ("inner", "outer", "message"),
    [
        (None, terms(lambda out: out), r"outer of Mine gives a Tensor: wanted are terms by name, as \{'ce': loss\}"),
        (None, terms(lambda out: {}), "outer of Mine gives no term"),
        (None, terms(lambda out: {"ce": out.item()}), "'ce' is a float: wanted is a tensor, without .item"),
        (None, terms(lambda out: {"ce": out[None]}), r"'ce' has shape \(1,\): wanted is a scalar, as its mean"),
        (None, None, "Mine has no `outer`: let it return the terms of the update"),
        (
            on_logits(lambda out: out.sum(1)),
            None,
            r"the loss <lambda> gives a Tensor: wanted is LossOutput\(value, fooled",
        ),
        (
            on_logits(lambda out: (out.sum(), None)),
            None,
            r"the loss <lambda> has shape \(\): wanted is one number per image",
        ),
        (on_logits(lambda out: (0.0, None)), None, "the value of the loss <lambda> is a float"),
        (
            lambda ctx: ctx.lens.logits(ctx.batch.x).sum(1),
            None,
            "inner of Mine gives a Tensor: wanted is the loss itself",
        ),
    ],
)
def test_an_objective_that_gives_something_else_is_refused_in_a_sentence(inner, outer, message):
    given = {"inner": lambda self, ctx: (inner or CrossEntropy().inner)(ctx)}
    given |= {"outer": lambda self, ctx, x_adv: outer(ctx, x_adv)} if outer else {}
    mine = Method(PGD(Linf(0.05), steps=2), type("Mine", (Objective,), given)())
    with pytest.raises(UserError, match=message):
        run(begin(mine), mine, epochs=1)
    with pytest.raises(UserError, match=r"Nothing has no `inner`: let it return the loss of the attack"):
        run(begin(), Method(PGD(Linf(0.05), steps=2), type("Nothing", (Objective,), {})()), epochs=1)


def test_layers_that_the_owner_froze_stay_in_eval_mode():
    """Other libraries call model.train() on the whole tree after each attack."""
    model = toy_net().train()
    model[2].eval()
    before = model[2].running_mean.clone()
    run(begin(model=model), epochs=2)
    assert model.training
    assert not model[2].training
    assert torch.equal(model[2].running_mean, before)


def test_crafting_leaves_batch_statistics_alone_unless_a_view_says_otherwise():
    """The update sees each batch once, so its statistics are those of adversarial examples only."""
    seen = {}
    for name, view in (("eval", MADRY.inner_mode), ("train", train_mode)):
        model = toy_net().train()
        method = Method(MADRY.attack, MADRY.objective, inner_mode=view)
        run(begin(method, model), method, epochs=1)
        seen[name] = int(model[2].num_batches_tracked)
    assert seen == {"eval": 3, "train": 9}


def test_the_attack_leaves_no_gradient_for_the_optimiser_to_find():
    """The weight gradient of a step is that of the outer loss alone, although an attack came before it."""
    data, state = toy_data(), begin(lr=0.0)
    batch = Batch(pixels(data.x[:20]), data.y[:20], torch.arange(20))
    train_step(MADRY, state, batch, Progress(0, 3, 1), backend=OriginalModel())
    found = state.model[1].weight.grad.clone()
    again = begin(lr=0.0)
    with torch.no_grad():
        again.model.eval()
    rng = PerExample(mixed_seed(mixed_seed(0, 0), "attack"), batch.index)
    z = MADRY.attack(_loss(again.model, batch.y), batch.x, rng)
    again.model.train()
    (wanted,) = torch.autograd.grad(F.cross_entropy(again.model(z), batch.y), again.model[1].weight)
    assert torch.allclose(found, wanted, atol=1e-6)


def _loss(model, y):
    from sparring import CE

    return CE(model, y)


def test_a_user_parameter_that_is_frozen_stays_frozen():
    model = toy_net().train()
    model[1].weight.requires_grad_(False)
    before = model[1].weight.clone()
    state = State.start(MADRY, model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1))
    run(state)
    assert torch.equal(model[1].weight, before)
    assert not model[1].weight.requires_grad


def test_the_learning_rate_reaches_every_parameter_group():
    """Released code that sets it for group 0 alone trains norms and biases at the initial rate for ever."""
    model = toy_net().train()
    state = State.start(MADRY, model, SGD(decay_vectors=False).build(model), toy_data())
    run(state, lr=MultiStep(0.4, (1.0,), 0.5))
    assert [g["lr"] for g in state.optimizer.param_groups] == [0.2, 0.2]
    assert [g["weight_decay"] for g in state.optimizer.param_groups] == [5e-4, 0.0]


@dataclass(frozen=True)
class BreaksAt(Objective):
    step: int

    def inner(self, ctx):
        return CrossEntropy().inner(ctx)

    def outer(self, ctx, x_adv):
        logits = ctx.lens.logits(x_adv)
        good = F.cross_entropy(logits, ctx.batch.y)
        return {"fine": good, "bad": good * (math.nan if ctx.progress.step == self.step else 0.0)}


class Looks(Hook):
    """Remembers where it was called; looks at the terms if it is to."""

    def __init__(self, reads):
        self.reads, self.events = reads, []

    def on_step(self, state, progress, terms):
        self.events.append(progress.step if not self.reads else (progress.step, dict(terms)))

    def on_epoch(self, state, progress):
        self.events.append("epoch")


@pytest.mark.parametrize(
    ("at", "reads", "step", "events"),
    [
        (4, False, 5, [1, 2, 3, "epoch", 4, 5]),  # one step late
        (5, False, 6, [1, 2, 3, "epoch", 4, 5, 6]),  # before the end of the epoch, where much is saved
        (4, True, 5, 5),  # by the first who looks
    ],
)
def test_a_loss_that_is_not_finite_stops_training_with_its_term_and_step(at, reads, step, events):
    method, looks = Method(Benign(), BreaksAt(at)), Looks(reads)
    state = begin(method)
    with pytest.raises(UserError, match=rf"term 'bad' became nan at step {at} \(epoch {at / 3:.2f}\)"):
        TrainingLoop(3, 0.1, hooks=(looks,)).run(method, state, Batches(toy_data(), 20))
    assert state.step == step
    assert looks.events == events if not reads else len(looks.events) == events
    with pytest.raises(UserError, match="became nan"):
        state.check_finite()


def test_a_checkpoint_looks_at_the_last_loss_first(tmp_path):
    method = Method(Benign(), BreaksAt(2))
    state = begin(method)
    with pytest.raises(UserError, match="became nan at step 2"):
        TrainingLoop(3, 0.0, hooks=(Saves(tmp_path),)).run(method, state, Batches(toy_data(), 20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000002"]


class Saves(Hook):
    def __init__(self, folder):
        self.checkpoints = Checkpoints(folder)

    def on_step(self, state, progress, terms):
        self.checkpoints.save(state)


class Log:
    def __init__(self):
        self.events = []

    def on_step(self, state, progress, terms):
        self.events.append(("step", progress.step, sorted(terms)))

    def on_epoch(self, state, progress):
        self.events.append(("epoch", progress.step))


def test_hooks_hear_of_every_step_and_every_epoch():
    log = Log()
    run(begin(), hooks=(log,))
    steps = [("step", n, ["ce"]) for n in range(1, 7)]
    assert log.events == [*steps[:3], ("epoch", 3), *steps[3:], ("epoch", 6)]


def test_training_goes_on_in_the_middle_of_an_epoch():
    class Pause:
        def on_step(self, state, progress, terms):
            if progress.step == 4:
                raise KeyboardInterrupt

        def on_epoch(self, state, progress): ...

    whole, half = run(begin()), begin()
    with pytest.raises(KeyboardInterrupt):
        run(half, hooks=(Pause(),))
    run(half)
    pairs = zip(whole.model.parameters(), half.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_dropout_goes_on_exactly_too():
    """It draws from torch's own generator, so that is part of the state."""

    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(), nn.Linear(8, 3)).train()

    whole, half = begin(model=net()), None
    run(whole, epochs=1)
    saved = whole.state_dict(), {k: v.clone() for k, v in whole.model.state_dict().items()}
    run(whole, epochs=2)
    half = begin(model=net())
    torch.rand(100)
    half.model.load_state_dict(saved[1])
    half.load_state_dict(saved[0])
    run(half, epochs=2)
    pairs = zip(whole.model.parameters(), half.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_the_average_follows_the_formula_and_copies_the_statistics():
    model, log = toy_net().train(), []

    class OverfittingMonitor:
        def on_step(self, state, progress, terms):
            log.append(model[1].weight.detach().clone())

        def on_epoch(self, state, progress): ...

    first = model[1].weight.detach().clone()
    state = run(begin(model=model), averaging=EMA(0.9), hooks=(OverfittingMonitor(),))
    wanted = first
    for t, live in enumerate(log, start=1):
        decay = min(0.9, (1 + t) / (10 + t))
        wanted = decay * wanted + (1 - decay) * live
    assert torch.allclose(state.average[1].weight, wanted, atol=1e-6)
    assert torch.equal(state.average[2].running_var, model[2].running_var)
    assert state.evaluated is state.average
    assert not any(p.requires_grad for p in state.average.parameters())
