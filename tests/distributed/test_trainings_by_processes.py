"""Training by several processes is training by one: weights, statistics, memory, and the number of collectives."""

from dataclasses import replace

import pytest
import torch
from forked import ended, started
from trainings import TRAININGS, begun, main, trained

from sparring.training.updates import BatchLoss

pytestmark = pytest.mark.slow

FEW = (
    "cross-entropy",
    "awp, batch norm",
    "mixup",
    "grad-align",
    "ensembling",
    "contrastive",
    "instances",
    "free",
    "split",
    "swa",
)
WITHOUT_BATCH_NORM = tuple(name for name, training in TRAININGS.items() if training.net == "plain")


def by_processes(world, folder, *names):
    """Start the processes, and return what the first one found."""
    store, out = str(folder / "store"), folder / "out.pt"
    processes = [started(main, rank, world, store, str(out), *names) for rank in range(world)]
    assert [ended(process) for process in processes] == [0] * world
    return torch.load(out, weights_only=False)


def compare(found, names):
    """Compare what processes found with what one process finds here, to the rounding of sums."""
    for name in names:
        one, many = trained(name), found[name]
        assert one["weights"].isfinite().all() and one["weights"].abs().max() > 0.1, name
        for what in ("weights", "memory"):
            assert one[what].shape == many[what].shape, (name, what)
            assert torch.allclose(one[what], many[what], rtol=0, atol=2e-12), (name, what)
        assert one["terms"] == pytest.approx(many["terms"], rel=1e-6), name
        assert not one["collectives"], name
        assert many["apart"] == 0, f"{name}: the processes have other weights than each other"


def test_two_processes_train_as_one_whatever_the_method_and_communicate_once_in_an_update(tmp_path):
    found = by_processes(2, tmp_path)
    compare(found, [name for name, training in TRAININGS.items() if not training.local_batch_norm])
    updates = {name: 2 if "awp" in name else 1 for name in (*WITHOUT_BATCH_NORM, "local batch norm")}
    assert {name: found[name]["collectives"] for name in updates} == {n: {"all_reduce": c} for n, c in updates.items()}
    sent = found["cross-entropy"]
    others = sent["tensors"] + len(sent["terms"]) + 3
    assert sent["numbers"] == sent["trained"] + others, "gradients, which of them there are, terms, requests"
    # batch norm takes one collective forward and one backward in each of its two layers and two passes
    assert found["trades"]["collectives"] == {"all_reduce": 1 + 4 + 4, "all_gather": 4 + 4}
    apart = (trained("local batch norm")["weights"] - found["local batch norm"]["weights"]).abs().max()
    assert apart > 1e-3, "local batch norm depends on the number of processes, and is the same on each"
    assert found["local batch norm"]["apart"] == 0


def test_three_processes_whose_parts_differ_in_size_train_as_one(tmp_path):
    compare(by_processes(3, tmp_path, *FEW), FEW)


@pytest.mark.parametrize("name", ["accumulated", "accumulated awp"])
def test_micro_batches_give_the_update_of_the_whole_batch(name, monkeypatch):
    apart = trained(name)
    held = []
    state, loop, batches = begun(TRAININGS[name])
    call = BatchLoss.__call__
    monkeypatch.setattr(BatchLoss, "__call__", lambda self: held.append(1) or call(self))
    loop.run(TRAININGS[name].method, state, batches, until=1)
    assert not held, "the graphs of all micro-batches are never in memory at once"
    monkeypatch.setitem(TRAININGS, "whole", replace(TRAININGS[name], accumulate=1))
    whole = trained("whole")
    assert torch.allclose(apart["weights"], whole["weights"], rtol=0, atol=1e-12)
    assert apart["terms"] == pytest.approx(whole["terms"], rel=1e-6)
