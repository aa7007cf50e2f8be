import pytest
from conftest import toy_net
from torch import nn

from sparring import eval_mode, frozen, train_mode, unchanged
from sparring.views import mode_matters


def modes(model):
    return [m.training for m in model.modules()]


@pytest.mark.parametrize("view", [eval_mode, train_mode, frozen, unchanged], ids=lambda v: v.__name__)
def test_every_view_undoes_itself_also_after_an_exception(view):
    model = toy_net().train()
    model[2].eval()
    model[1].weight.requires_grad_(False)
    before = modes(model), [p.requires_grad for p in model.parameters()]
    with pytest.raises(KeyError), view(model):
        raise KeyError
    with view(model):
        pass
    assert (modes(model), [p.requires_grad for p in model.parameters()]) == before


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
