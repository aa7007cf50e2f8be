import pytest
import torch
from conftest import toy_net
from torch import nn

from sparring import batch_statistics, eval_mode, frozen, train_mode, unchanged
from sparring.views import mode_matters, statistics_kept


def modes(model):
    return [m.training for m in model.modules()]


VIEWS = [eval_mode, train_mode, batch_statistics, statistics_kept, frozen, unchanged]


@pytest.mark.parametrize("view", VIEWS, ids=lambda v: v.__name__)
def test_every_view_undoes_itself_also_after_an_exception(view):
    model = toy_net().train()
    model[2].eval()
    model[1].weight.requires_grad_(False)
    before = modes(model), [p.requires_grad for p in model.parameters()], model[2].track_running_stats
    with pytest.raises(KeyError), view(model):
        raise KeyError
    with view(model):
        pass
    after = modes(model), [p.requires_grad for p in model.parameters()], model[2].track_running_stats
    assert after == before


def test_batch_norm_goes_by_the_batch_and_its_statistics_stay():
    model, x = toy_net().train(), torch.rand(8, 1, 4, 4)
    with batch_statistics(model):
        kept = model(x)
    assert int(model[2].num_batches_tracked) == 0
    assert torch.equal(model[2].running_mean, torch.zeros(32))
    assert torch.equal(kept, model(x))  # in training mode, the same answer
    assert int(model[2].num_batches_tracked) == 1
    model.eval()
    with batch_statistics(model):
        assert torch.equal(model(x), kept)
    assert not model.training


def test_views_do_what_they_say():
    model = toy_net().train()
    with eval_mode(model):
        assert not any(modes(model))
    with eval_mode(model), train_mode(model):
        assert all(modes(model))
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters())


def test_only_layers_that_act_differently_make_the_mode_matter():
    assert mode_matters(toy_net().train()) == "2 (BatchNorm1d)"
    assert mode_matters(toy_net().eval()) is None
    assert mode_matters(nn.Sequential(nn.Linear(2, 2), nn.ReLU()).train()) is None
    assert mode_matters(nn.Dropout()) == "itself (Dropout)"
