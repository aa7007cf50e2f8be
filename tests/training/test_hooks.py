"""Hooks one by one, where a whole training would hide which epoch they ran in."""

import torch
from conftest import toy_data, toy_net

from sparring import PGD, Linf, OriginalModel, Progress, RunFolder, State
from sparring.training import ExampleHistory
from sparring.training.hooks import ExampleHistoryHook


def test_the_state_of_each_example_is_recorded_in_the_epochs_that_are_due(tmp_path):
    run, data, model = RunFolder(tmp_path), toy_data(), toy_net()
    run.settle_training({"rows": data.y.numpy(), "y": data.y.numpy(), "true": data.y.numpy()})
    state = State(model, torch.optim.SGD(model.parameters(), 0.1), torch.nn.Module(), 0)
    hook = ExampleHistoryHook(ExampleHistory(PGD(Linf(0.1), 1), every=3), run, data, OriginalModel(), 0)
    for epoch in range(1, 8):
        hook.on_epoch(state, Progress(10 * epoch, 10, 7))
    assert run.read_memory().epochs.tolist() == [3, 6, 7], "every third epoch, and the last"
