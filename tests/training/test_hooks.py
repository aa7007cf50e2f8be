"""Hooks one by one, where a whole training would hide which epoch they ran in."""

import warnings

import pytest
import torch
from conftest import toy_data, toy_net

from sparring import PGD, Linf, OriginalModel, Progress, RunFolder, State
from sparring.training import ExampleHistory
from sparring.training.hooks import ExampleHistoryHook, ValidationHook


def test_the_model_is_examined_once_and_measured_after_each_epoch():
    class Centred(torch.nn.Module):
        """Its answers depend on the batch."""

        def __init__(self):
            super().__init__()
            self.net = toy_net()

        def forward(self, x):
            return self.net((x - x.mean(0)).clamp(0, 1))

    state = State(Centred(), torch.optim.SGD([torch.zeros(1)], 0.1), torch.nn.Module(), 0)
    hook = ValidationHook(PGD(Linf(0.1), 1), 0, toy_data(), OriginalModel())
    with pytest.warns(UserWarning, match="depends on the rest of its batch"):
        hook.on_epoch(state, Progress(10, 10, 3))
    first = dict(hook.latest)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hook.on_epoch(state, Progress(20, 10, 3))
    assert hook.latest == first
    assert 0 < first["clean"] < 1


def test_the_state_of_each_example_is_recorded_in_the_epochs_that_are_due(tmp_path):
    run, data, model = RunFolder(tmp_path), toy_data(), toy_net()
    run.settle_training({"rows": data.y.numpy(), "y": data.y.numpy(), "true": data.y.numpy()})
    state = State(model, torch.optim.SGD(model.parameters(), 0.1), torch.nn.Module(), 0)
    hook = ExampleHistoryHook(ExampleHistory(PGD(Linf(0.1), 1), every=3), run, data, OriginalModel(), 0)
    for epoch in range(1, 8):
        hook.on_epoch(state, Progress(10 * epoch, 10, 7))
    assert run.read_memory().epochs.tolist() == [3, 6, 7], "every third epoch, and the last"
