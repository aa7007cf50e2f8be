import pytest
import torch
from conftest import count, toy_net
from torch import nn

from sparring import Classifier, Progress, TensorData, UserError
from sparring.core.schedules import MultiStep
from sparring.core.types import ForwardCache, at, pixels


def classifier():
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 8)), nn.Linear(8, 3))


def test_added_terms_share_one_forward_pass_of_the_same_tensor():
    model, x = classifier(), torch.rand(5, 1, 4, 4)
    seen, lens = count(model.body), ForwardCache(model)
    lens.logits(x), lens.features(x), lens.logits(x)
    assert seen.forwards == 1


def test_a_tensor_that_was_changed_in_place_is_run_again():
    model, x = classifier(), torch.rand(5, 1, 4, 4)
    lens = ForwardCache(model)
    before = lens.logits(x)
    x.mul_(0.5)
    assert not torch.equal(lens.logits(x), before)
    assert torch.equal(lens.logits(x), model(x))


def test_an_output_without_a_gradient_does_not_serve_where_one_is_wanted():
    model, x = classifier(), torch.rand(5, 1, 4, 4)
    lens = ForwardCache(model)
    with torch.no_grad():
        assert not lens.logits(x).requires_grad
    assert lens.logits(x).requires_grad


def test_a_lens_serves_any_module_and_says_what_it_cannot_do():
    model, x = toy_net().eval(), torch.rand(5, 1, 4, 4)
    assert torch.equal(ForwardCache(model).logits(x), model(x))
    with pytest.raises(UserError, match=r"features are asked of a Sequential.*Classifier\(body, head\)"):
        ForwardCache(model).features(x)


def test_a_classifier_with_a_forward_of_its_own_is_trained_on_that_function():
    class Tempered(Classifier):
        def forward(self, x):
            return super().forward(x) / 2

    torch.manual_seed(0)
    model, x = Tempered(nn.Flatten(), nn.Linear(16, 3)), torch.rand(5, 1, 4, 4)
    lens = ForwardCache(model)
    assert torch.equal(lens.logits(x), model(x))
    assert torch.equal(lens.features(x), x.flatten(1))
    assert torch.equal(lens.logits(x), model(x))


def test_progress_is_where_a_schedule_reads_the_time():
    progress = Progress(step=15, steps_per_epoch=10, epochs=3)
    assert progress.epoch == 1.5
    assert progress.done == 0.5
    assert at(7.0, progress) == 7.0
    assert at(MultiStep(1.0, (1.5,)), progress) == pytest.approx(0.1)


def test_pixels_are_floats_in_0_to_1_whatever_they_were():
    assert torch.equal(pixels(torch.tensor([0, 255], dtype=torch.uint8)), torch.tensor([0.0, 1.0]))
    assert torch.equal(pixels(torch.tensor([0.25], dtype=torch.float64)), torch.tensor([0.25]))


def test_data_can_be_cut_and_knows_its_shape():
    data = TensorData(torch.zeros(6, 3, 4, 5, dtype=torch.uint8), torch.arange(6) % 2, ("a", "b"))
    assert data.shape == (3, 4, 5)
    assert len(data[torch.tensor([0, 2])]) == 2
    assert len(data[1:4]) == 3
