"""Searches that are recorded and replayed, on a pretended GPU whose graphs repeat the operations one by one."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from pretended import OnGPU, counts, pretended, waits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparring import (
    FGSM,
    L2,
    PGD,
    TRADES,
    CrossEntropy,
    Linf,
    Method,
    RandomStart,
    State,
    TensorData,
    WhiteBox,
    evaluate,
    train_step,
)
from sparring.acceleration import AcceleratedCopy, captured
from sparring.attacks import NFGSM, MixedStart
from sparring.core.types import Batch, Progress, SearchCall
from sparring.models import small_cnn
from sparring.training import SGD

pytestmark = pytest.mark.slow

T, SIDE, B = Linf("8/255"), 8, 12


class PretendedGraph:
    """Keeps each operation with its tensors; a replay carries them out again, into the same memory."""

    made: ClassVar[list["PretendedGraph"]] = []

    def __init__(self):
        self.calls, self.replays = [], 0
        PretendedGraph.made.append(self)

    def warm_up(self, run):
        return run()

    def record(self, run):
        before, graph = sum(waits().values()), self

        class Recorder(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                out = func(*args, **(kwargs or {}))
                graph.calls.append((func, args, kwargs or {}, out))
                return out

        with Recorder():
            out = run()
        if sum(waits().values()) > before:
            raise RuntimeError("operation not permitted when stream is capturing")
        return out

    def replay(self):
        self.replays += 1
        kept = dict(counts)
        for func, args, kwargs, out in self.calls:
            given = {id(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
            new = func(*args, **kwargs)
            for old, each in zip(tree_leaves(out), tree_leaves(new), strict=True):
                if isinstance(old, torch.Tensor) and id(old) not in given and not func.is_view:
                    values = each.held if isinstance(each, OnGPU) else each
                    (old.held if isinstance(old, OnGPU) else old).copy_(values)
        counts.clear()
        counts.update(kept)
        counts["kernels"] += 1


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    monkeypatch.setattr(captured, "new_graph", PretendedGraph)
    PretendedGraph.made.clear()
    return PretendedGraph.made


def net():
    torch.manual_seed(0)
    model = small_cnn(10, (3, SIDE, SIDE), width=2, batch_norm=True).to("cuda").train()
    return model, torch.rand(4 * B, 3, SIDE, SIDE, device="cuda"), (torch.arange(4 * B) % 10).to("cuda")


def trained(attack, objective, backend, steps=4):
    """Weights after a few steps on different images, launches of the last step, and notes."""
    with pretended():
        model, x, y = net()
        data = TensorData((255 * x).to(torch.uint8), y, tuple("abcdefghij"))
        method = Method(attack, objective)
        state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.5), data)
        before = [p.held.clone() for p in model.parameters()]
        for step in range(steps):
            counts.clear()
            rows = torch.arange(B, device="cuda") + step * B
            train_step(method, state, Batch(x[rows], y[rows], rows), Progress(step, 10, 2), backend=backend)
        after = [p.held.clone() for p in model.parameters()]
        assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), "it trains"
        return after, counts["kernels"], backend.notes(model)


SEARCHES = {
    "pgd": (PGD(T, 3), CrossEntropy()),
    "fgsm": (FGSM(T), CrossEntropy()),
    "l2": (PGD(L2(0.5), 3), CrossEntropy()),
    "trades": (PGD(T, 3), TRADES()),
    "n-fgsm": (NFGSM(T), CrossEntropy()),
    "mixed start": (PGD(T, 3, start=MixedStart(RandomStart(), 0.5)), CrossEntropy()),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_training_with_replayed_searches_ends_with_the_same_bits(name, graphs):
    wanted, eager, _ = trained(*SEARCHES[name], AcceleratedCopy("fp32", "off"))
    found, replayed, notes = trained(*SEARCHES[name], AcceleratedCopy("fp32", "off", capture=True))
    assert notes == ()
    assert [graph.replays for graph in graphs] == [3]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert replayed < eager - 30


@dataclass(frozen=True)
class Impatient:
    """An attack that says it can be recorded, and cannot."""

    recordable = True

    def __call__(self, loss, x, rng):
        return PGD(T, 2, patience=0)(loss, x, rng)


class Warm(CrossEntropy):
    """An objective whose inner loss changes in training."""

    def inner(self, ctx):
        loss = super().inner(ctx)
        return loss if ctx.progress.step >= 0 else None


@pytest.mark.parametrize(
    ("attack", "objective", "why"),
    [
        (Impatient(), CrossEntropy(), "not permitted when stream is capturing"),
        (PGD(T, 2), Warm(), "the search reads the progress of training, which changes"),
    ],
)
def test_what_cannot_be_recorded_runs_as_before_and_says_so(attack, objective, why, graphs):
    wanted, _, _ = trained(attack, objective, AcceleratedCopy("fp32", "off"))
    found, _, notes = trained(attack, objective, AcceleratedCopy("fp32", "off", capture=True))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert why in notes[0]
    assert [graph.replays for graph in graphs] == [0], "it is tried once"


def test_an_attack_with_patience_is_not_recorded(graphs):
    trained(PGD(T, 2, patience=1), CrossEntropy(), AcceleratedCopy("fp32", "off", capture=True))
    assert not graphs


def test_an_evaluation_replays_full_batches_with_the_same_result(graphs):
    def found(backend):
        with pretended():
            model, x, _ = net()
            y = model.eval()((255 * x).to(torch.uint8) / 255).argmax(1)  # else nothing is attacked
            data = TensorData((255 * x).to(torch.uint8), y, tuple("abcdefghij"))
            adversaries = {"pgd": WhiteBox(PGD(T, 3)), "l2": WhiteBox(PGD(L2(0.5), 2))}
            return evaluate(model.eval(), data, adversaries, batch_size=8, backend=backend)

    class Single(AcceleratedCopy):
        def batches_in_flight(self, device):
            return 1

    plain, replayed = found(Single("fp32", "off")), found(Single("fp32", "off", capture=True))
    assert sum(graph.replays for graph in graphs) >= 4
    for name in ("pgd", "l2"):
        assert (plain.robust[name] == replayed.robust[name]).all()
        assert (plain.margin[name] == replayed.margin[name]).all()


def test_only_a_few_recordings_are_kept(graphs):
    recordings, model = captured.Recordings(), nn.Identity()
    with pretended():
        x = torch.rand(4, 2, device="cuda")
        for key in (*range(6), 5, 0):
            recordings.search(model, SearchCall(key, lambda inputs, rng: inputs[0] + 1, (x,), torch.Generator("cuda")))
    assert [graph.replays for graph in graphs] == [0, 0, 0, 0, 0, 1, 0], "the first was forgotten"


def test_without_cuda_nothing_is_recorded(graphs):
    torch.manual_seed(0)
    model, x, y = small_cnn(10, (3, SIDE, SIDE), width=2), torch.rand(B, 3, SIDE, SIDE), torch.arange(B) % 10
    method = Method(PGD(T, 2), CrossEntropy())
    state = State.start(method, model, SGD().build(model))
    for step in range(2):
        batch = Batch(x, y, torch.arange(B))
        train_step(method, state, batch, Progress(step, 10, 2), backend=AcceleratedCopy("fp32", "off", capture=True))
    assert not graphs
    assert replace(method, attack=FGSM(T)).attack.recordable
