import pytest
import torch
from conftest import toy_net
from torch import nn

from sparring import PGD, Linf, UserError, perturb
from sparring.core.validation import check_images, check_labels, check_logits

X, Y = torch.rand(6, 1, 4, 4), torch.arange(6) % 3
ATTACK = PGD(Linf("8/255"), steps=2)


def test_good_input_passes():
    check_images(X)
    check_images(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), bytes_too=True)
    check_labels(Y, 3)
    check_logits(torch.randn(4, 5), 4, 5)
    assert perturb(toy_net(), X, Y, ATTACK).shape == X.shape


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X * 255, r"outside \[0, 1\]: pass raw pixels \(bytes / 255\)"),
        (X - 0.5, r"span \[-0"),
        (X.where(X > 0.5, torch.nan), "NaN or infinite"),
        (X.to_sparse(), "sparse_coo: wanted is a dense tensor"),
        (X[:0], "N > 0"),
        (X[0], "wanted is"),
        ((X * 255).byte(), r"uint8: wanted is floating point"),
        ((X * 255).long(), r"int64: wanted is floating point in \[0, 1\], as sparring.core.types.pixels makes it"),
    ],
)
def test_images_that_would_mislead_are_refused(x, message):
    with pytest.raises(UserError, match=message):
        perturb(toy_net(), x, Y[: len(x)] if x.ndim == 4 else Y, ATTACK)


def test_rounding_errors_of_a_normalisation_and_back_are_named_as_what_they_are():
    """Peers raise on -3e-8 without saying what to do."""
    with pytest.raises(UserError, match="-3e-08"):
        check_images(torch.tensor([[[[-3e-8, 0.5]]]]))


@pytest.mark.parametrize(
    ("y", "classes", "message"),
    [
        (Y - 1, 3, "span -1 to 1, but with 3 classes they run from 0 to 2"),
        (Y + 1, 3, "span 1 to 3"),
        (Y, 1, "1 class is nothing to classify"),
        (Y.float(), 3, "wanted are class numbers"),
        (Y.int(), 3, r"int32 .* as y.long\(\)"),
        (Y[:, None], 3, "wanted are class numbers"),
    ],
)
def test_labels_that_would_mislead_are_refused(y, classes, message):
    with pytest.raises(UserError, match=message):
        check_labels(y, classes)


@pytest.mark.parametrize("y", [Y.int(), Y == 0, Y / 0, Y[:, None].float()])
def test_labels_of_another_kind_get_a_sentence_before_they_are_looked_at(y):
    with pytest.raises(UserError, match="wanted are class numbers"):
        perturb(toy_net(), X, y, ATTACK)


def test_a_label_that_the_model_has_no_class_for_is_refused():
    with pytest.raises(UserError, match="a label is 2, but the model gives 2 classes, 0 to 1"):
        perturb(toy_net(classes=2), X, Y, ATTACK)


class Softmax(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = toy_net()

    def forward(self, x):
        return self.net(x).softmax(1)


def test_a_model_that_gives_probabilities_is_refused():
    with pytest.raises(UserError, match="gives probabilities, and attacks need logits: remove the final softmax"):
        perturb(Softmax(), X, Y, ATTACK)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.randn(4, 3), r"gives 3 classes, but the data have 5"),
        (torch.randn(4), r"gives \(4,\) for 4 images"),
        (torch.randn(3, 5), r"gives \(3, 5\) for 4 images"),
        (torch.randn(4, 1), "one number per image"),
        ("logits", "gives str for 4 images"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(out, message):
    with pytest.raises(UserError, match=message):
        check_logits(out, 4, 5)


def test_perturb_leaves_the_model_its_mode_and_its_gradients():
    model = toy_net().train()
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    perturb(model, X, Y, ATTACK)
    assert model.training
    assert not model[2].training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_perturb_repeats_itself_from_its_seed():
    model = toy_net()
    assert torch.equal(perturb(model, X, Y, ATTACK, seed=3), perturb(model, X, Y, ATTACK, seed=3))
    assert not torch.equal(perturb(model, X, Y, ATTACK, seed=3), perturb(model, X, Y, ATTACK, seed=4))
