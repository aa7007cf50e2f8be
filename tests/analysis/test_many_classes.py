"""Information with many classes and many weights: estimators that take few passes and bounded memory."""

import numpy as np
import pytest
import torch
from conftest import count
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparring import Classifier, TensorData, UserError, make_rng
from sparring.analysis import measure_information
from sparring.analysis.information import weights

CLASSES, IMAGES, TESTS = 50, 32, 24


def data(n: int, seed: int) -> TensorData:
    x = torch.rand(n, 1, 4, 4, generator=make_rng(seed))
    return TensorData(x, torch.arange(n) % CLASSES, tuple(map(str, range(CLASSES))))


TRAIN, TEST = data(IMAGES, 0), data(TESTS, 1)


def net(width: int = 12) -> Classifier:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.Tanh())
    return Classifier(body, nn.Linear(width, CLASSES)).eval()


def measured(model, estimator, **more):
    given = {"jacobian_examples": 0, "probes": 4, "count": 3, "batch_size": 32}
    return measure_information(model, TRAIN, TEST, estimator=estimator, **{**given, **more})


@pytest.mark.slow
def test_the_cheap_estimators_agree_with_the_exact_one():
    exact = measured(net(), "exact").values
    drawn = measured(net(), "sampled", probes=400).values
    batch = [measured(net(), "batch", seed=seed).values for seed in range(40)]
    means = {name: float(np.mean([one[name].mean() for one in batch])) for name in exact}
    for name, values in exact.items():
        assert drawn[name].mean() == pytest.approx(values.mean(), rel=0.25), name
        assert means[name] == pytest.approx(values.mean(), rel=0.1), name
    # and not only by being near: without the factor of the batch they would be 32 times too small
    assert means["weights: trace: all"] > 0.5 * exact["weights: trace: all"].mean()


@pytest.mark.slow
def test_labels_drawn_for_the_prediction_are_of_its_distribution():
    exact = measured(net(), "exact").values["prediction: trace"]
    many = measured(net(), "sampled", probes=3000).values["prediction: trace"]
    assert np.allclose(many, exact, rtol=0.15)


@pytest.mark.slow
def test_passes_grow_with_the_classes_only_if_every_class_is_asked():
    """Backward passes through the model as autograd sees them; vectorized gradients run the model once a batch."""
    passes = {}
    for estimator in ("exact", "sampled", "batch"):
        model = net()
        seen = count(model)
        measured(model, estimator)
        passes[estimator] = seen.forwards
    # exact: for each class a vectorized pass of each batch, of training and test images
    assert passes["exact"] >= 2 * CLASSES
    assert passes["sampled"] <= 40, passes
    assert passes["batch"] <= 40, passes


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returns, in bytes."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, torch.Tensor):
                self.bytes = max(self.bytes, each.numel() * each.element_size())
        return out


@pytest.mark.slow
def test_memory_is_bounded_by_the_budget(monkeypatch):
    """At a width whose gradients of 32 images would take 100 times the budget."""
    model = net(600)
    one = 4 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(weights, "BUDGET", 2 * one)
    for estimator in ("sampled", "batch"):
        with Largest() as seen:
            measured(model, estimator)
        assert seen.bytes <= 2 * one, estimator
    monkeypatch.setattr(weights, "BUDGET", 64 * one)
    with Largest() as seen:
        measured(model, "sampled")
    assert seen.bytes > 2 * one, "the measurement sees what the budget prevents"


def test_an_estimator_without_gradients_of_images_knows_no_effective_information():
    with pytest.raises(UserError, match="the estimator batch avoids: leave it out with jacobian_examples=0"):
        measured(net(), "batch", jacobian_examples=2)
    with pytest.raises(UserError, match="estimator = 'exakt'"):
        measured(net(), "exakt")
    found = measured(net(), "batch")
    assert found.plain()["estimator"] == "batch"
    assert found.plain()["figures"]["weights: trace: all"]["batches"] == 1
    assert found.plain()["figures"]["prediction: trace"]["images"] == TESTS
    assert set(found.estimates) == {"from batches"}
    assert "effective information" in measured(net(), "sampled", jacobian_examples=2).values


def test_attention_is_differentiated_twice():
    """The fused kernels of attention have no second derivative."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.head = nn.Linear(4, 12), nn.Linear(16, CLASSES)

        def forward(self, x):
            q, k, v = self.qkv(x[:, 0]).chunk(3, -1)
            z = nn.functional.scaled_dot_product_attention(*(each[:, None] for each in (q, k, v)))
            return self.head(z.flatten(1))

    torch.manual_seed(0)
    found = measured(Attention().eval(), "batch")
    assert found.values["representation: trace"].min() > 0
