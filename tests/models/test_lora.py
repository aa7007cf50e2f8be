"""Low-rank adapters, where peft can be imported; a sentence where it cannot."""

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch
from helpers import bits, stop_at
from torch import nn

from sparring import PGD, Classifier, Linf, Method, UserError, fit, load_model
from sparring.core.rng import make_rng
from sparring.models import lora, merged
from sparring.objectives import FARE
from sparring.runs.given import GivenModel
from sparring.training import AdamW, Interrupted

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
X = torch.rand(6, 1, 8, 8, generator=make_rng(0))


def net(seed=0):
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 12))
    return Classifier(body, nn.Linear(12, 10))


def moved(model):
    """The model with adapters that do something."""
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.normal_(generator=make_rng(1))
    return model


@needs_peft
def test_adapters_change_nothing_at_first_and_are_trained_alone_with_the_head():
    model = lora(net(), rank=3)
    assert torch.equal(model(X), net()(X))
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained == {
        *("head.weight", "head.bias"),
        *(f"body.{n}.lora_{f}.default.weight" for n in (2, 4) for f in "AB"),
    }


@needs_peft
def test_an_adapter_adds_the_scaled_product_of_its_factors():
    model = moved(lora(net(), rank=3, alpha=6.0))
    found = merged(model)
    assert torch.allclose(found(X), model(X), atol=1e-5) and not torch.allclose(model(X), net()(X), atol=1e-2)
    assert found.state_dict().keys() == net().state_dict().keys()
    layer = model.body[4]
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.allclose(found.body[4].weight, net().body[4].weight + 2 * product, atol=1e-6)
    assert hasattr(model.body[4], "lora_A"), "the model itself keeps its adapters"


def test_a_model_without_adapters_is_merged_already():
    model = net()
    assert merged(model) is model


@needs_peft
@pytest.mark.slow
def test_a_run_with_adapters_resumes_bit_for_bit_and_leaves_the_weights(tiny, tmp_path):
    recipe = replace(
        tiny,
        model=GivenModel.of(lora(net())),
        method=Method(PGD(Linf(0.1), 2), FARE()),
        optimizer=AdamW(),
        lr=0.01,
        normalize=False,
    )
    whole = fit(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "cut", on_progress=stop_at(7))
    assert bits(fit(recipe, tmp_path / "cut")) == bits(whole)
    found, before = (load_model(whole.weights("last"), recipe).state_dict(), recipe.model().state_dict())
    changed = {name for name in before if not torch.equal(found[name], before[name])}
    assert changed == {name for name in before if "lora_" in name}, "FARE trains no head"


@needs_peft
def test_a_body_without_linear_layers_and_a_rank_of_none_are_refused():
    with pytest.raises(UserError, match="a Flatten, has no linear layer that an adapter could be added to"):
        lora(Classifier(nn.Flatten(), nn.Linear(64, 3)))
    with pytest.raises(UserError, match="rank = 0 is no whole number from 1 on"):
        lora(net(), 0)


def test_without_peft_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"low-rank adaptation comes from peft.*pip install 'sparring\[lora\]'"):
        lora(net())
