"""Free adversarial training: one gradient moves both players."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import count, toy_data, toy_net

from sparring import (
    Batch,
    Build,
    CrossEntropy,
    Linf,
    OptimizerStep,
    OriginalModel,
    Progress,
    State,
    Sum,
    TrainingLoop,
    UserError,
    fit,
)
from sparring.core.types import pixels
from sparring.data import Batches
from sparring.models import small_cnn
from sparring.objectives import ATTA, LogitPairing
from sparring.training import Free


def test_objectives_that_choose_the_attack_are_refused():
    with pytest.raises(UserError, match="ATTA chooses or remembers the attack of a step, and Free has none"):
        Free(Linf(0.1), 2, Sum((CrossEntropy(), ATTA())))
    Free(Linf(0.1), 2, Sum((CrossEntropy(), LogitPairing())))


def test_it_is_the_formula_of_its_paper():
    data, ours = toy_data(), toy_net().train()
    data = replace(data, x=data.x // 4)  # dark, so that the range of pixels cuts perturbations
    theirs, method = copy.deepcopy(ours), Free(Linf(0.1), replays=3)
    state = State.start(method, ours, torch.optim.SGD(ours.parameters(), lr=0.1), data)
    optimizer, delta, cut = torch.optim.SGD(theirs.parameters(), lr=0.1), torch.zeros(20, 1, 4, 4), 0
    for step in range(2):
        rows = torch.arange(20 * step, 20 * step + 20)
        x, y = pixels(data.x[rows]), data.y[rows]
        method.step(state, Batch(x, y, rows), Progress(step + 1, 3, 1), OptimizerStep(), OriginalModel())
        for _ in range(3):
            z = (x + delta).clamp(0, 1).requires_grad_()
            optimizer.zero_grad()
            F.cross_entropy(theirs(z), y).backward()
            optimizer.step()
            through = z.grad * ((x + delta >= 0) & (x + delta <= 1))  # the gradient of the clamp
            delta = (delta + 0.1 * through.sign()).clamp(-0.1, 0.1)
            cut += int((x + delta < 0).sum())
    assert cut > 0
    assert torch.allclose(state.memory.delta, delta, atol=1e-6)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_a_smaller_batch_uses_the_first_rows_and_the_others_stay():
    data, model = toy_data(), toy_net().train()
    method = Free(Linf(0.1), replays=2)
    state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1), data)
    kept = []
    for rows in (torch.arange(20), torch.arange(20, 25), torch.arange(30, 50)):
        batch = Batch(pixels(data.x[rows]), data.y[rows], rows)
        assert torch.equal(state.memory.read(batch), kept[-1][: len(rows)] if kept else torch.zeros(20, 1, 4, 4))
        method.step(state, batch, Progress(1, 3, 1), OptimizerStep(), OriginalModel())
        kept.append(state.memory.delta.clone())
    assert torch.equal(kept[1][5:], kept[0][5:]) and not torch.equal(kept[1][:5], kept[0][:5])


def test_a_replay_is_one_forward_and_one_backward_pass():
    data, model = toy_data(), toy_net().train()
    method = Free(Linf(0.1), replays=8)
    state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1), data)
    seen = count(model)
    rows = torch.arange(12)
    method.step(
        state, Batch(pixels(data.x[rows]), data.y[rows], rows), Progress(1, 3, 1), OptimizerStep(), OriginalModel()
    )
    assert (seen.forwards, seen.backwards) == (8, 8)


def test_the_perturbation_survives_a_saved_state():
    method, data = Free(Linf(0.1), replays=2), toy_data()

    def begin(seed):
        model = toy_net(seed).train()
        return State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1), data)

    def go(state, epochs):
        TrainingLoop(epochs, 0.1).run(method, state, Batches(data, 20))
        return state

    whole, half, other = go(begin(0), 4), go(begin(0), 2), begin(1)
    assert half.memory.delta.abs().max() == pytest.approx(0.1, abs=1e-6)
    other.model.load_state_dict(half.model.state_dict())
    other.load_state_dict(copy.deepcopy(half.state_dict()))
    go(other, 4)
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), other.model.parameters(), strict=True))
    assert torch.equal(whole.memory.delta, other.memory.delta)


@pytest.mark.slow
def test_a_run_of_it_is_a_run_like_any_other(tiny, tmp_path):
    said = []
    recipe = replace(tiny, method=Free(Linf(0.1), 2), model=Build(small_cnn, width=4))
    run = fit(recipe, tmp_path / "free", log=said.append)
    assert run.finished()
    assert "2 forward and 2 backward passes an example; " in said[0]
    assert "0 % of the time in the attack" in said[0]


def test_what_makes_no_sense_is_refused(tiny):
    from sparring import Guard

    with pytest.raises(UserError, match="replayed at least once"):
        Free(Linf(0.1), 0)
    with pytest.raises(UserError, match="let the guard report or stop"):
        replace(tiny, method=Free(Linf(0.1)), guard=Guard(Linf(0.1)))
    replace(tiny, method=Free(Linf(0.1), objective=CrossEntropy()), guard=Guard(Linf(0.1), "stop"))
