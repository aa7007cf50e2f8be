"""The fast path gives what the slow one gives, on models that it can copy and on models that it cannot."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import count, toy_data
from forked import ended, started
from torch import nn
from torch._inductor.runtime.cache_dir_utils import cache_dir

from sparring import (
    APGD,
    CE,
    FAB,
    L2,
    PGD,
    CleanStart,
    CrossEntropy,
    Linf,
    Margin,
    Method,
    Progress,
    Restarts,
    Square,
    State,
    SurrogateGradient,
    UserError,
    WhiteBox,
    make_rng,
)
from sparring.acceleration import AcceleratedCopy, OriginalModel, computes_bf16, worth_compiling
from sparring.acceleration.body_copy import Shadow, sites
from sparring.acceleration.compiled import Compiled, keep_compiled_code
from sparring.acceleration.convolution import FrozenConv, worth
from sparring.acceleration.normalisation import FrozenNorm, folded
from sparring.acceleration.process import tune_process, usable_cores
from sparring.core.modes import eval_mode, train_mode
from sparring.core.types import Batch, Classifier, Encoder, ForwardCache, pixels
from sparring.evaluation import MinimumNorm, MultiTargeted, evaluate
from sparring.models import SmoothBackward, preact_resnet18, resnet18, small_cnn, wide_resnet
from sparring.training import train_step

pytestmark = pytest.mark.slow

GREY, COLOUR = (1, 28, 28), (3, 32, 32)


def lived(model, shape=COLOUR):
    """With the batch statistics of a few steps of training, in eval mode."""
    model.train()
    with torch.no_grad():
        for seed in range(3):
            model(torch.rand(8, *shape, generator=make_rng(seed)))
    return model.eval()


def gradient(model, x, y=None):
    z = x.clone().requires_grad_()
    out = model(z)
    value = out.square().sum() if y is None else F.cross_entropy(out, y, reduction="sum")
    return out.detach(), torch.autograd.grad(value, z)[0]


NETS = [  # how many convolutions are replaced, and how many batch norms that follow none
    (lambda: small_cnn(width=8), GREY, (4, 0)),
    (lambda: preact_resnet18(width=1 / 8), COLOUR, (20, 8)),
    (lambda: preact_resnet18(width=1 / 16), COLOUR, (19, 8)),  # the thin one stays as it is
    (lambda: preact_resnet18(width=1 / 8, final_norm=True, shortcut="activated"), COLOUR, (20, 9)),
    (lambda: resnet18(width=1 / 8), COLOUR, (20, 0)),
    (lambda: wide_resnet(10, 1), COLOUR, (9, 4)),
]
IDS = ("small_cnn", "preact_resnet18", "thin preact_resnet18", "normed preact_resnet18", "resnet18", "wide_resnet")


# -- convolutions


@pytest.fixture(params=["large", "small"])
def as_if(request):
    """Convolutions of small outputs, which are not worth a backward step of our own, and as if they were."""
    with worth(0 if request.param == "large" else 2**40):
        yield request.param


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("inner", "outer", "size", "stride", "side", "groups"),
    [
        (1, 8, 3, 1, 28, 1),
        (3, 8, 5, 1, 12, 1),
        (3, 8, 3, 1, 7, 1),
        (2, 4, 3, 2, 9, 1),
        (6, 8, 1, 1, 5, 2),
        (4, 4, 3, 1, 6, 4),
    ],
)
def test_a_frozen_convolution_is_the_convolution_and_its_gradient(
    as_if, inner, outer, size, stride, side, groups, relu
):
    torch.manual_seed(0)
    conv = nn.Conv2d(inner, outer, size, stride, padding=size // 2, groups=groups)
    frozen = FrozenConv(conv, relu, torch.float32)
    with torch.no_grad():
        frozen.weight.copy_(conv.weight)
        frozen.bias.copy_(conv.bias)
        frozen.loaded()
    x = torch.randn(5, inner, side, side)
    wanted = gradient(nn.Sequential(conv, nn.ReLU()) if relu else conv, x)
    ours = type(frozen(x.clone().requires_grad_()).grad_fn).__name__.startswith("_Differentiable")
    saves = relu or frozen.block > 0
    assert ours == (as_if == "large" and saves)
    for found, value in zip(gradient(frozen, x), wanted, strict=True):
        assert torch.allclose(found, value, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(frozen(x), wanted[0], rtol=1e-4, atol=1e-5)


def test_only_the_gradient_of_an_image_is_computed_in_blocks():
    assert FrozenConv(nn.Conv2d(1, 8, 3, padding=1), False, torch.float32).block == 4
    assert FrozenConv(nn.Conv2d(3, 8, 3, padding=1), False, torch.float32).block == 2
    for other in (nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3, stride=2, padding=1)):
        assert FrozenConv(other, False, torch.float32).block == 0


# -- batch norm that follows no convolution


def load(frozen, norm):
    ((frozen.scale[:], frozen.shift[:]),) = folded([norm.requires_grad_(False)])


@pytest.mark.parametrize("channels", [3, 16, 40])
def test_in_bf16_a_frozen_batch_norm_rounds_as_bf16_does(channels):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels).eval()
    norm.running_mean.normal_()
    frozen = FrozenNorm(norm, True, torch.bfloat16)
    load(frozen, norm)
    x = torch.randn(4, channels, 6, 5)
    (found, value_and_grad), (wanted, true) = gradient(frozen, x), gradient(nn.Sequential(norm, nn.ReLU()), x)
    assert found.dtype == torch.bfloat16
    assert 0 < (found.float() - wanted).norm() < 0.01 * wanted.norm()
    assert (value_and_grad - true).norm() < 0.02 * true.norm()


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_frozen_batch_norm_is_the_batch_norm_and_its_gradient(affine, relu):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5, affine=affine)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    if affine:
        nn.init.normal_(norm.weight)  # also below 0
        nn.init.normal_(norm.bias)
    frozen = FrozenNorm(norm, relu, torch.float32)
    load(frozen, norm)
    x = torch.randn(4, 5, 6, 6).contiguous(memory_format=torch.channels_last)
    wanted = gradient(nn.Sequential(norm.eval(), nn.ReLU()) if relu else norm.eval(), x)
    for found, value in zip(gradient(frozen, x), wanted, strict=True):
        assert torch.allclose(found, value, atol=1e-5)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_frozen_batch_norm_leaves_alone_what_it_was_given():
    norm, x = nn.BatchNorm2d(3).eval(), torch.randn(2, 3, 4, 4)
    frozen, before = FrozenNorm(norm, True, torch.float32), x.clone()
    load(frozen, norm)
    gradient(frozen, x)
    assert torch.equal(x, before)


# -- copies


@pytest.mark.slow
@pytest.mark.parametrize(("make", "shape", "counts"), NETS, ids=IDS)
def test_a_copy_answers_and_differentiates_as_its_model(as_if, make, shape, counts):
    torch.manual_seed(0)
    model = lived(make(), shape)
    kinds = [type(model.get_submodule(site.layer)) for site in sites(model)]
    assert (kinds.count(nn.Conv2d), kinds.count(nn.BatchNorm2d)) == counts
    shadow, x, y = Shadow(model, torch.float32, sites(model)), torch.rand(6, *shape), torch.arange(6)
    for found, wanted in zip(gradient(shadow.net, x, y), gradient(model, x, y), strict=True):
        assert (found - wanted).norm() < 1e-3 * wanted.norm()
    lived(model, shape)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=make_rng(1)))
        before = shadow.net(x)
        shadow.refresh(model)
        assert (shadow.net(x) - model(x)).norm() < 1e-4 * model(x).norm() < (before - model(x)).norm()


@pytest.mark.parametrize(("make", "shape", "counts"), NETS, ids=IDS)
def test_in_bf16_few_signs_change_and_gradients_vanish_nowhere(as_if, make, shape, counts):
    torch.manual_seed(0)
    model, x, y = lived(make(), shape), torch.rand(6, *shape), torch.arange(6)
    with AcceleratedCopy("bf16")(model, x) as attacked:
        (logits, found), (wanted_logits, wanted) = gradient(attacked, x, y), gradient(model, x, y)
    assert logits.dtype == torch.float32
    assert 0 < (logits - wanted_logits).norm() < 0.03 * wanted_logits.norm()
    assert (found.sign() != wanted.sign()).float().mean() < 0.15
    assert ((found == 0) & (wanted != 0)).float().mean() < 1e-3


def test_a_copy_follows_the_weights_and_leaves_the_model_alone():
    model, data, fast = lived(preact_resnet18(width=1 / 16)), torch.rand(4, *COLOUR), AcceleratedCopy("fp32")
    before = {name: (t.clone(), t.stride()) for name, t in model.state_dict().items()}
    with fast(model, data) as first:
        pass
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0]) and tensor.stride() == before[name][1]
    with torch.no_grad():
        model.head.bias.add_(1)
    with fast(model, data) as second:
        assert second is first, "the copy is made once"
        assert torch.allclose(second(data), model(data), atol=1e-4)
    model.body.layer1[0].act1 = nn.Tanh()
    with fast(model, data) as third:
        assert third is not first, "and anew for another model"
        assert torch.allclose(third(data), model(data), atol=1e-4)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_copy_of_a_classifier_gives_features_in_one_pass_of_its_body():
    model = lived(small_cnn(width=4), GREY)
    x = torch.rand(3, *GREY)
    with AcceleratedCopy("fp32")(model, x) as attacked:
        assert isinstance(attacked, Classifier)
        seen = count(attacked.body)
        lens = ForwardCache(attacked)
        assert torch.allclose(lens.features(x), model.features(x), atol=1e-5)
        assert torch.allclose(lens.logits(x), model(x), atol=1e-5)
        assert seen.forwards == 1


def test_in_training_mode_the_model_itself_is_searched_on_with_its_batch_statistics():
    model, x = preact_resnet18(width=1 / 16), torch.rand(8, *COLOUR)
    model.body.layer1.eval()
    modes = [m.training for m in model.modules()]
    with train_mode(model), AcceleratedCopy("fp32")(model, x) as attacked:
        tracked = int(model.body.layer2[0].bn1.num_batches_tracked)
        attacked(x)
        assert int(model.body.layer2[0].bn1.num_batches_tracked) == tracked + 1
    assert [m.training for m in model.modules()] == modes


class Early(Encoder):
    """Gives, as a part, what a layer is before its ReLU, which comes along in a copy."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x, parts=False):
        before = self.norm(self.conv(x))
        out = self.act(before).flatten(1)
        return (out, before) if parts else out


def test_a_copy_gives_the_parts_that_its_model_gives_or_there_is_none():
    model = lived(Classifier(Early(), nn.Linear(64, 3)), (1, 4, 4))
    x, fast = torch.rand(4, 1, 4, 4), AcceleratedCopy("fp32")
    with fast(model, x) as attacked:
        for found, wanted in zip(ForwardCache(attacked).parts(x), ForwardCache(model).parts(x), strict=True):
            assert torch.allclose(found, wanted, atol=1e-4)
    assert any("its parts differ" in note for note in fast.notes(model))


def test_batch_norm_of_the_pixels_stays_in_float32():
    model = lived(Classifier(small_cnn(width=4).body, nn.Linear(16, 3), nn.BatchNorm2d(1)), GREY)
    assert "normalize" not in {site.layer for site in sites(model)}


# -- models that cannot be copied


class Branching(nn.Module):
    """Its control flow depends on the data."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 16, 3)

    def forward(self, x):
        if x.mean() > 2:
            x = -x
        return self.head(self.conv(x).relu().reshape(len(x), -1))


class Viewing(Branching):
    """Its `view` does not go with channels-last tensors."""

    def forward(self, x):
        return self.head(self.conv(x).view(x.shape[0], -1))


class Shared(Branching):
    """It runs one convolution twice, and reads its weight besides."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head((self.conv(self.conv(x)) + self.conv.weight.sum()).flatten(1))


class Counting(Branching):
    """Its forward updates a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Noisy(Branching):
    def forward(self, x):
        return super().forward(x) + torch.randn(3)


class Normed(Branching):
    """The weight of its convolution is computed by a hook."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.utils.parametrizations.spectral_norm(self.conv)


ODD = [
    (Branching, None),
    (Normed, None),
    (Shared, None),
    (Viewing, "in channels-last order cannot be used"),
    (Counting, "forward changes"),
    (Noisy, "logits differ"),
    (lambda: Branching().double(), "float64"),
]


@pytest.mark.parametrize(("make", "note"), ODD, ids=lambda v: getattr(v, "__name__", str(v)))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_odd_models_are_searched_on_rightly_and_a_note_says_how(make, note, precision):
    torch.manual_seed(0)
    model, fast = make().eval(), AcceleratedCopy(precision)
    like = next(model.parameters())
    x = torch.rand(6, 1, 4, 4).to(like)
    with fast(model, x) as attacked:
        if not isinstance(model, Noisy):
            near = 1e-4 if precision == "fp32" or attacked is model else 0.05
            assert (attacked(x) - model(x)).norm() < near * model(x).norm()
        assert (attacked is model) == (note is not None and make is not Viewing)
    assert (note or "") in " ".join(fast.notes(model))
    assert bool(fast.notes(model)) == (note is not None)


class Defended(Branching):
    """Does one thing or another by what is set on it."""

    defence = True

    def __init__(self):
        super().__init__()
        self.defence = True

    def forward(self, x):
        return super().forward((x * 4).round() / 4 if self.defence else x)


class TwoNorms(nn.Module):
    """Takes a second argument, which by default is None."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(64, 3)
        self.clean, self.adv = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x, which=None):
        norm = self.clean if which is None else self.adv
        return self.head(norm(self.conv(x)).relu().flatten(1))


def halve(module, args, out):
    return out / 2


class WithPredictions(Branching):
    """Its forward depends on things that are no modules, weights or scalars of its own."""

    def __init__(self):
        super().__init__()
        self.settings = SimpleNamespace(scale=1.0, more=[{"shift": 0.0}])
        self.table, self.mask, self.numbers = {"power": 1.0}, torch.ones(3), np.ones(3, np.float32)
        self.squash = torch.tanh

    def forward(self, x):
        out = self.squash(super().forward(x)) * self.settings.scale + self.settings.more[0]["shift"]
        return out * self.table["power"] * self.mask * torch.from_numpy(self.numbers)


def dilate(model):
    model.conv.dilation, model.conv.padding = (2, 1), (2, 1)


def patch(model):
    model.forward = lambda x: Branching.forward(model, x.flip(3))


def patch_a_layer(model):
    model.conv.forward = lambda x: x.repeat(1, 4, 1, 1) / 4


def shrink(model):
    model.head = nn.Linear(64, 2)


def rebias(model):
    model.conv.bias = None


CHANGES = {
    "an attribute": (Defended, lambda m: setattr(m, "defence", False)),
    "a hook": (Branching, lambda m: m.conv.register_forward_hook(halve)),
    "the type": (Branching, lambda m: m.double()),
    "a layer": (Branching, shrink),
    "a missing bias": (Branching, rebias),
    "a nested setting": (WithPredictions, lambda m: setattr(m.settings, "scale", 3.0)),
    "a setting in a list in a setting": (
        WithPredictions,
        lambda m: m.settings.more[0].update(shift=torch.tensor([0.0, 1.0, 5.0])),
    ),
    "an entry of a dict": (WithPredictions, lambda m: m.table.update(power=-1.0)),
    "a tensor that is no buffer": (WithPredictions, lambda m: setattr(m, "mask", torch.tensor([1.0, 0.0, 2.0]))),
    "a tensor that is no buffer, in place": (WithPredictions, lambda m: m.mask[1:].mul_(3)),
    "a numpy array, in place": (WithPredictions, lambda m: m.numbers.__setitem__(0, 7)),
    "a function in an attribute": (WithPredictions, lambda m: setattr(m, "squash", torch.sin)),
    "the tuple of a layer": (Branching, dilate),
    "its forward": (Branching, patch),
    "the forward of a layer": (Branching, patch_a_layer),
    "other statistics": (TwoNorms, lambda m: m.clean.running_mean.add_(3)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_a_model_changes_its_copy(name):
    make, change = CHANGES[name]
    torch.manual_seed(0)
    model, fast, x = make().eval(), AcceleratedCopy("fp32"), torch.rand(4, 1, 4, 4)
    with fast(model, x) as attacked:
        before = attacked(x)
    change(model)
    x = x.to(next(model.parameters()))
    with fast(model, x) as attacked:
        assert torch.allclose(attacked(x), model(x), atol=1e-4)
        after = attacked(x)
        same = (after.shape, after.dtype) == (before.shape, before.dtype)
        assert not (same and torch.allclose(after, before, atol=1e-3))


class Switched(Branching):
    """Something outside of it says whether it normalises."""

    switch = [True]  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.fill_(0.5)

    def forward(self, x):
        out = self.conv(x)
        return self.head((self.norm(out) if self.switch[0] else out).relu().flatten(1))


def test_a_copy_that_no_longer_agrees_is_found_out_at_the_next_proof():
    torch.manual_seed(0)
    model, fast, x = Switched().eval(), AcceleratedCopy("fp32"), torch.rand(4, 1, 4, 4)
    with fast(model, x) as first:
        assert first is not model
    Switched.switch[0] = False
    try:
        with fast(model, x, fast.kind(model)) as attacked:
            assert attacked is first, "a kind that was proved before is taken"
        with fast(model, x) as attacked:
            assert attacked is not first
        assert torch.allclose(attacked(x), model(x), atol=1e-4)
        assert fast.kind(model) == "fp32"
    finally:
        Switched.switch[0] = True


def test_what_is_taken_follows_from_the_model_as_it_is_and_not_from_what_was_taken_before():
    """So a run that goes on takes what the whole run takes."""
    torch.manual_seed(0)
    model, x, fast = Branching().eval(), torch.rand(8, 1, 4, 4), AcceleratedCopy("bf16")
    healthy = copy.deepcopy(model.state_dict())
    cancelling = {name: tensor.clone() for name, tensor in healthy.items()}
    cancelling["conv.weight"][1] = 1.001 * healthy["conv.weight"][0]
    cancelling["conv.bias"][1] = healthy["conv.bias"][0]
    cancelling["head.weight"].zero_()[0, [0, 16]] = torch.tensor([1000.0, -1000.0])  # of what bf16 takes for equal
    kinds = []
    for weights in (healthy, cancelling, healthy):
        model.load_state_dict(weights)
        with fast(model, x):
            kinds.append(fast.kind(model))
        with AcceleratedCopy("bf16")(model, x) as alone, fast(model, x, fast.kind(model)) as again:
            assert torch.equal(alone(x), again(x))
    assert kinds[0] == kinds[2] != kinds[1]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x.flatten(1)).relu())


def test_a_weight_that_is_no_longer_tied_makes_a_new_copy():
    torch.manual_seed(0)
    model, fast, x = Tied().eval(), AcceleratedCopy("fp32"), torch.rand(8, 1, 4, 4)
    with fast(model, x):
        pass
    model.b.weight = nn.Parameter(torch.randn(16, 16))
    with fast(model, x, fast.kind(model)) as attacked:
        assert attacked is not model and torch.allclose(attacked(x), model(x), atol=1e-5)


@pytest.mark.parametrize("classes", [10, 32, 100, 200, 1000])
def test_logits_that_come_after_the_last_linear_layer_are_not_computed_in_bf16(classes):
    """Whichever memory torch hands out again."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.mix = nn.Linear(16, classes), nn.Parameter(torch.randn(classes, classes) / classes**0.5)

        def forward(self, x):
            return self.fc(x.flatten(1)) @ self.mix

    torch.manual_seed(0)
    model, fast, x = Mixed().eval(), AcceleratedCopy("bf16"), torch.rand(8, 1, 4, 4)
    for _ in range(3):
        with fast(model, x) as attacked, torch.no_grad():
            logits = attacked(x)
        assert not torch.equal(logits, logits.bfloat16().float())
        assert any("its logits are computed in bf16" in note for note in fast.notes(model))


def test_in_training_mode_the_logits_of_any_model_are_computed_in_float32():
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).train()
    x = torch.rand(8, 1, 4, 4)
    for model in (plain, Classifier(plain[:3], plain[3]).train()):
        with AcceleratedCopy("bf16")(model, x) as attacked, torch.no_grad():
            logits = attacked(x)
        assert not torch.equal(logits, logits.bfloat16().float())


def test_a_note_on_what_stood_in_the_way_goes_when_it_does_no_longer(monkeypatch):
    model, fast, x = lived(small_cnn(width=4), GREY), AcceleratedCopy("fp32"), torch.rand(4, *GREY)
    with monkeypatch.context() as patch:
        patch.setattr("sparring.acceleration.backend.disagreement", lambda *given: "its gradients differ")
        with fast(model, x) as attacked:
            assert attacked is model
        assert "attacks run on the model itself, not on an accelerated copy" in fast.notes(model)
    with fast(model, x) as attacked:
        assert attacked is not model
    assert not any("on the model itself" in note or fast.kind(model) + " cannot" in note for note in fast.notes(model))


class Itself(Branching):
    def __deepcopy__(self, memo):
        return self


def test_a_model_that_copies_itself_as_itself_is_left_alone():
    torch.manual_seed(0)
    model, fast, x = nn.Sequential(Itself()).eval(), AcceleratedCopy("bf16"), torch.rand(4, 1, 4, 4)
    kinds, before = [type(m) for m in model.modules()], model(x)
    with fast(model, x) as attacked:
        assert attacked is model
    assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(model(x), before)
    assert all(p.requires_grad for p in model.parameters())
    assert any("it would share modules or weights with the model" in note for note in fast.notes(model))


def test_hooks_of_a_classifier_itself_are_seen_in_every_mode():
    model, x = lived(small_cnn(width=4), GREY), torch.rand(4, *GREY)
    handle = model.register_forward_hook(lambda module, args, out: -out)
    assert torch.allclose(ForwardCache(model).logits(x), model(x))
    for mode in (eval_mode, train_mode):
        with mode(model), AcceleratedCopy("fp32")(model, x) as attacked:
            assert isinstance(attacked, Classifier)
            assert torch.allclose(ForwardCache(attacked).logits(x), model(x), atol=1e-5)
    handle.remove()


def test_a_gradient_that_is_not_the_models_is_found_out(monkeypatch):
    """The logits of the copy are right."""
    model, x, fast = lived(small_cnn(width=4), GREY), torch.rand(4, *GREY), AcceleratedCopy("fp32")
    monkeypatch.setattr(
        FrozenConv, "_plain", lambda self, x: F.conv2d(x, self.weight, self.bias, padding=1).relu().detach()
    )
    with fast(model, x) as attacked:
        pass
    assert all(not isinstance(module, FrozenConv) for module in attacked.modules())
    assert any("gradient" in note for note in fast.notes(model))


def test_a_used_search_can_be_pickled():
    model, fast = lived(small_cnn(width=4), GREY), AcceleratedCopy("bf16", "off")
    with fast(model, torch.rand(2, *GREY)):
        pass
    again = pickle.loads(pickle.dumps(fast))
    assert repr(again) == repr(fast)
    assert again.notes(model) == ()


def test_what_hooks_know_is_not_copied():
    class Trainer:
        def __init__(self):
            self.seen = 0

        def look(self, *_):
            self.seen += 1

    model, trainer = lived(small_cnn(width=4), GREY), Trainer()
    model.body.register_forward_hook(trainer.look)
    with AcceleratedCopy("fp32")(model, torch.rand(2, *GREY)) as attacked:
        trainer.seen = 0
        attacked(torch.rand(2, *GREY))
    assert trainer.seen == 1


def test_a_copy_still_has_what_an_attack_may_know_of_the_model():
    model = Defended().eval()
    with AcceleratedCopy("fp32")(model, torch.rand(2, 1, 4, 4)) as attacked:
        assert attacked is not model
        assert attacked.defence
        with pytest.raises(AttributeError):
            _ = attacked.nothing


def test_a_hook_on_a_container_hinders_nothing():
    model = lived(small_cnn(width=4), GREY)
    seen = count(model.body)
    assert len(sites(model)) == 4
    assert seen.forwards == 0


def test_a_hook_on_a_layer_still_sees_it():
    model, seen = lived(small_cnn(width=4), GREY), []
    model.body[2].register_forward_hook(lambda *_: seen.append(1))
    with AcceleratedCopy("fp32")(model, torch.rand(2, *GREY)) as attacked:
        seen.clear()
        attacked(torch.rand(2, *GREY))
    assert seen


def test_what_is_asked_of_the_fast_path_is_checked():
    with pytest.raises(UserError, match=r"precision = 'fp16' is not one of auto, fp32, bf16"):
        AcceleratedCopy("fp16")
    with pytest.raises(UserError, match=r"compile = 'yes' is not one of auto, on, off, max-autotune"):
        AcceleratedCopy(compile="yes")
    assert AcceleratedCopy("fp32").dtype(torch.device("cpu")) == torch.float32
    assert AcceleratedCopy("bf16").dtype(torch.device("cpu")) == torch.bfloat16
    assert isinstance(computes_bf16(torch.device("cpu")), bool)


def test_bf16_is_not_chosen_where_onednn_may_not_use_its_instructions():
    code = "import torch; from sparring.acceleration import computes_bf16; print(computes_bf16(torch.device('cpu')))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


# -- compiled


def test_a_batch_is_filled_up_to_one_of_four_sizes(monkeypatch):
    sizes = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: lambda x: sizes.append(len(x)) or module(x))
    net = Compiled(nn.Flatten(), pytest.fail)
    for n in (64, 40, 32, 9, 8, 1, 0):
        x = torch.rand(n, 1, 2, 2, requires_grad=True)
        out = net(x)
        assert torch.equal(out, x.flatten(1))
        assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.ones_like(x))
    assert sizes == [64, 64, 32, 16, 8, 8]


def test_compiled_code_is_kept_apart_for_each_kind_of_processor(monkeypatch, tmp_path):
    """torch finds code by the graph alone, and code for vectors of another width computes garbage."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that what it was is put back
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    has = dict(torch.cpu.get_capabilities())
    others = {**has, "amx_tile": not has.get("amx_tile", False)}
    folders = []
    for able, used in ((has, "AVX512"), (has, "AVX2"), (others, "AVX512"), ({**has, "num_sockets": 9}, "AVX512")):
        os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda used=used: used)
        keep_compiled_code()
        folders.append(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]))
    assert all(folder.parent == tmp_path / "sparring" / "compiled" for folder in folders)
    assert len(set(folders)) == 3
    assert folders[3] == folders[0], "the same processor in a machine with more of them"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
    keep_compiled_code()
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) not in folders
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
    assert Path(cache_dir()).parent != folders[0].parent, "torch sets a folder itself"
    keep_compiled_code()
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).parent == folders[0].parent
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = "mine"
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"


def test_a_model_that_cannot_be_compiled_runs_as_it_is_and_a_note_says_why(monkeypatch):
    def fails(module, **_):
        def run(x):
            raise RuntimeError("no compiler here\nand much more")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    model, x, fast = lived(small_cnn(width=4), GREY), torch.rand(4, *GREY), AcceleratedCopy("fp32", "on")
    with fast(model, x) as attacked:
        assert torch.allclose(attacked(x), model(x), atol=1e-5)
    assert any("not compiled: it cannot be compiled (RuntimeError: no compiler here)" in n for n in fast.notes(model))


def test_a_model_whose_batch_norm_takes_the_statistics_of_the_batch_is_not_compiled(monkeypatch):
    """The rows that fill a batch would change them."""
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    fast, x = AcceleratedCopy("fp32", "on"), torch.rand(16, 1, 4, 4)
    with fast(model, x[:8]) as attacked:
        for count in (16, 12, 3):
            assert torch.allclose(attacked(x[:count]), model(x[:count]), atol=1e-5)
    assert any("is not compiled: " in note and "of the batch" in note for note in fast.notes(model))


def test_max_autotune_is_asked_of_the_compiler(monkeypatch):
    modes, cpu = [], torch.device("cpu")
    monkeypatch.setattr(torch, "compile", lambda module, mode, **_: modes.append(mode) or module)
    model, x = lived(small_cnn(width=4), GREY), torch.rand(4, *GREY)
    for asked in ("on", "max-autotune"):
        with AcceleratedCopy("fp32", asked)(model, x):
            pass
    assert modes == [None, "max-autotune-no-cudagraphs"]
    assert (
        repr(AcceleratedCopy.resolved(cpu, "fp32", "max-autotune"))
        == "AcceleratedCopy(precision='fp32', compile='max-autotune')"
    )
    assert AcceleratedCopy("fp32", "max-autotune").describe(cpu) == "attacks in fp32, compiled with max-autotune"
    assert AcceleratedCopy.resolved(cpu, "fp32").compile == "off"


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_equals_eager():
    """The real compiler, on a net small enough for a test; whole nets are compared in benchmarks."""
    torch.manual_seed(0)
    conv, block = nn.Conv2d(1, 4, 3, padding=1), (nn.BatchNorm2d(4), nn.ReLU())
    model = nn.Sequential(conv, *block, nn.AvgPool2d(1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    model, x, y, fast = (
        lived(model, (1, 4, 4)),
        torch.rand(8, 1, 4, 4),
        torch.arange(8) % 3,
        AcceleratedCopy("fp32", "on"),
    )
    with fast(model, x) as attacked:
        for n in (8, 5):
            for found, wanted in zip(gradient(attacked, x[:n], y[:n]), gradient(model, x[:n], y[:n]), strict=True):
                assert torch.allclose(found, wanted, atol=1e-5)
    assert not fast.notes(model)


# -- training and evaluation


def step(backend, patience=None):
    torch.manual_seed(0)
    model, x, rows = preact_resnet18(width=1 / 16, num_classes=3), torch.rand(8, *COLOUR), torch.arange(8)
    method = Method(PGD(Linf(0.03), 3, patience=patience), CrossEntropy())
    state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1))
    for number in range(2):
        train_step(method, state, Batch(x, rows % 3, rows), Progress(number, 5, 1), backend=backend)
        state.step += 1
    return model


@pytest.mark.slow
@pytest.mark.parametrize("patience", [None, 0])
def test_a_step_on_a_copy_in_float32_moves_the_weights_as_one_on_the_model(patience):
    plain, fast = step(OriginalModel(), patience), step(AcceleratedCopy("fp32"), patience)
    for (name, wanted), found in zip(plain.state_dict().items(), fast.state_dict().values(), strict=True):
        assert torch.allclose(found.float(), wanted.float(), atol=2e-3), name
    assert all(p.requires_grad for p in fast.parameters())


def test_training_twice_on_the_fast_path_gives_the_same_bits():
    first, second = (step(AcceleratedCopy("bf16")).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


class Lying(nn.Module):
    """Takes every image for another class: an attack that searches on it stops at once."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return -self.model(x)


class Liar(OriginalModel):
    """As its own finer version, too."""

    @contextmanager
    def __call__(self, model, few, kind=None):
        yield Lying(model)


@pytest.fixture(scope="module")
def learned():
    """A net that has learned something, and images, of which some can be attacked."""
    torch.manual_seed(0)
    data, model = toy_data(), nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    x, optimizer = pixels(data.x), torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x), data.y).backward()
        optimizer.step()
    return model.eval(), data


ATTACK = {"pgd": WhiteBox(PGD(Linf(0.1), 10, patience=0))}


class Flat(nn.Module):
    """Answers as a model does, but gradients lead nowhere."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).detach() + 0 * x.flatten(1)[:, :1]


class Blunt(OriginalModel):
    """Gives something on which no attack by gradients finds anything."""

    @contextmanager
    def __call__(self, model, few, kind=None):
        yield Flat(model)


BEGUN = {"pgd": WhiteBox(PGD(Linf(0.1), 10, start=CleanStart())), "targets": MultiTargeted(APGD(Linf(0.1), 5), Margin)}


@pytest.mark.parametrize("name", BEGUN)
def test_a_search_that_is_weaker_is_found_out_in_the_end_and_made_good(learned, name):
    wanted = evaluate(*learned, {name: BEGUN[name]}, backend=OriginalModel())
    found = evaluate(*learned, {name: BEGUN[name]}, backend=Blunt())
    assert 0 < wanted.robust[name].sum() < wanted.robust["clean"].sum() - 5
    assert np.array_equal(found.robust[name], wanted.robust[name])
    (note,) = [note for note in found.notes if "broken when the attack runs on the model itself" in note]
    assert "so all robust examples were attacked again there" in note
    assert not any("broken when" in note for note in wanted.notes)


def test_a_gain_within_chance_is_noted_and_counts(learned, monkeypatch):
    monkeypatch.setattr(sys.modules["sparring.evaluation.runner"], "BEYOND_CHANCE", 17)
    wanted = evaluate(*learned, ATTACK, backend=OriginalModel()).robust
    found = evaluate(*learned, ATTACK, backend=Blunt())
    (note,) = [note for note in found.notes if "broken when the attack runs on the model itself" in note]
    gained = int(note.split(", ")[1].split()[0])
    assert 0 < gained <= 16
    assert "which may be chance" in note
    assert found.robust["pgd"].sum() == wanted["clean"].sum() - gained


def test_an_evaluation_that_was_cut_short_goes_on_with_its_second_look(learned, tmp_path):
    """Whatever part of the state is lost, the result is the same."""
    whole = evaluate(*learned, ATTACK, backend=Blunt(), batch_size=16, state=tmp_path / "state")
    parts = sorted((tmp_path / "state").glob("*.npz"))
    assert len(parts) > 4
    for part in parts[::2]:
        part.unlink()
    again = evaluate(*learned, ATTACK, backend=Blunt(), batch_size=16, state=tmp_path / "state")
    assert np.array_equal(again.robust["pgd"], whole.robust["pgd"])
    assert again.notes == whole.notes


def test_where_only_the_copy_is_fooled_the_attack_runs_again_on_the_model(learned):
    wanted = evaluate(*learned, ATTACK, backend=OriginalModel())
    found = evaluate(*learned, ATTACK, backend=Liar())
    assert 0 < wanted.robust["pgd"].sum() < wanted.robust["clean"].sum()
    assert np.array_equal(found.robust["pgd"], wanted.robust["pgd"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_copy_as_much_is_found_as_on_the_model(learned, precision):
    wanted = evaluate(*learned, ATTACK, backend=OriginalModel()).robust["pgd"]
    found = evaluate(*learned, ATTACK, backend=AcceleratedCopy(precision)).robust["pgd"]
    assert (found != wanted).mean() <= (0 if precision == "fp32" else 0.04)


class FromFour(OriginalModel):
    """Wants batches filled from four of them."""

    def batches_in_flight(self, device):
        return 4


def test_a_loss_is_called_by_its_name_however_it_is_divided(many):
    model, data = many
    adversary = WhiteBox(FAB(Linf(0.1)), CE).dividing(8)
    assert adversary == WhiteBox(FAB(Linf(0.1)), CE)
    with pytest.raises(UserError, match=r"use Margin, not CE"):
        adversary(model, pixels(data.x), data.y, make_rng(0))


def test_a_loss_that_serves_no_part_of_its_examples_is_not_divided(many):
    model, data = many

    class Whole:
        def __init__(self, forward, y):
            self.inner = CE(forward, y)

        def __call__(self, x):
            return self.inner(x)

    z = WhiteBox(PGD(Linf(0.1), 2), Whole).dividing(8)(model, pixels(data.x), data.y, make_rng(0))
    assert torch.equal(z, WhiteBox(PGD(Linf(0.1), 2))(model, pixels(data.x), data.y, make_rng(0)))


@pytest.fixture(scope="module")
def many(learned):
    """Images under so much noise that an attack breaks about half."""
    return learned[0], toy_data(96, seed=1)


MANY = {
    "pgd": WhiteBox(PGD(Linf(0.1), 10, patience=0)),
    "apgd": WhiteBox(APGD(Linf(0.1), 10)),
    "targets": MultiTargeted(APGD(Linf(0.1), 5), Margin),
    "fab": WhiteBox(FAB(Linf(0.1), 5), Margin),
    "square": WhiteBox(Square(Linf(0.1), 20), Margin),
    "twice": WhiteBox(Restarts(PGD(Linf(0.1), 3), 2), draws=2),
    "view": SurrogateGradient(SmoothBackward(1.0), WhiteBox(PGD(Linf(0.1), 5))),
}


@pytest.mark.parametrize("name", MANY)
def test_batches_that_are_filled_from_several_change_nothing(many, name):
    wanted = evaluate(*many, {name: MANY[name]}, batch_size=8, backend=OriginalModel())
    found = evaluate(*many, {name: MANY[name]}, batch_size=8, backend=FromFour())
    clean, before, after = wanted.robust["clean"], wanted.robust[name], found.robust[name]
    assert 0 < before.sum() < clean.sum()
    # FAB ends at the decision boundary: rounding, which differs by processor and by the place in memory, decides there
    assert (before != after).sum() <= (name == "fab")
    ours, theirs, broken = found.margin[name], wanted.margin[name], clean & ~before & ~after
    assert (ours[broken] < 0).all() and (theirs[broken] < 0).all()
    same = ~clean | (before & after) if name == "fab" else np.ones_like(broken)
    assert np.allclose(ours[same], theirs[same], atol=1e-5)


def test_batches_stay_full_while_examples_leave(many):
    model, data = many

    def sizes(backend):
        seen = []
        handle = model.register_forward_hook(lambda _, __, out: seen.append(len(out)) if out.requires_grad else None)
        evaluate(model, data, {"pgd": WhiteBox(PGD(Linf(0.2), 10, 0.02, patience=0))}, batch_size=8, backend=backend)
        handle.remove()
        return seen

    alone, filled = sizes(OriginalModel()), sizes(FromFour())
    assert max(filled) == max(alone) == 8, "no more at a time than was asked for"
    assert abs(sum(filled) - sum(alone)) < 5, "the same work, but for the last bit of who is fooled when"
    assert sum(n < 8 for n in filled) <= 3 * 10 < sum(n < 8 for n in alone), "one of each step and 32 images at most"
    assert len(filled) < len(alone)


def test_an_adversary_of_ones_own_is_given_one_batch_at_a_time(many):
    seen = []

    def mine(model, x, y, rng):
        seen.append(len(x))
        return x

    evaluate(*many, {"mine": mine}, batch_size=8, backend=FromFour())
    assert max(seen) == 8


@pytest.mark.slow
def test_smallest_distances_are_the_same_from_several_batches(many):
    nearest = {"nearest": MinimumNorm.of(L2(1.0), steps=5)}
    wanted = evaluate(*many, nearest, batch_size=8, backend=OriginalModel()).distance
    found = evaluate(*many, nearest, batch_size=8, backend=FromFour()).distance
    assert np.isfinite(wanted).any()
    assert np.allclose(found, wanted, atol=1e-5)


def test_compiled_batches_are_filled_from_four():
    for device in (torch.device("cpu"), torch.device("cuda")):
        assert AcceleratedCopy("fp32", "off").batches_in_flight(device) == 1
        assert AcceleratedCopy("fp32", "auto").batches_in_flight(device) == 1
        assert AcceleratedCopy("fp32", "on").batches_in_flight(device) == 4


@pytest.mark.parametrize(
    ("device", "seconds", "normalised", "wanted"),
    [
        ("cpu", 901, True, True),
        ("cpu", 901, False, False),
        ("cpu", 899, True, False),
        ("cuda", 301, False, True),
        ("cuda", 299, True, False),
        ("mps", 1e6, True, False),
    ],
)
def test_what_is_compiled_repays_it(device, seconds, normalised, wanted):
    model = small_cnn(10, (1, 8, 8), width=2, batch_norm=normalised)
    assert worth_compiling(model, torch.device(device), seconds) is wanted


# -- the process


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_the_allocator_keeps_memory_unless_somebody_else_decides():
    """In a process of its own, since an allocator that keeps memory does so to the end."""
    assert ended(started(check_allocator)) == 0


def check_allocator():
    for name in ("SPARRING_ALLOCATOR", "GLIBC_TUNABLES", "LD_PRELOAD"):
        os.environ.pop(name, None)
    assert tune_process().allocator == "kept"
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.mmap_max=9"
    assert tune_process().allocator == "default: LD_PRELOAD or GLIBC_TUNABLES sets it"
    os.environ["SPARRING_ALLOCATOR"] = "default"
    assert tune_process().allocator == "default: SPARRING_ALLOCATOR says so"


def test_a_process_takes_no_more_threads_than_it_has_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(64)
        assert tune_process().threads == min(64, usable_cores())
        monkeypatch.setenv("OMP_NUM_THREADS", "3")  # somebody has chosen
        torch.set_num_threads(64)
        assert tune_process().threads == 64
    finally:
        torch.set_num_threads(before)


def test_an_attack_on_the_fast_path_stays_in_its_ball():
    model, x, y = lived(small_cnn(width=4), GREY), torch.rand(4, *GREY), torch.arange(4)
    with eval_mode(model), AcceleratedCopy("bf16")(model, x) as attacked:
        z = PGD(Linf(0.1), 5)(CE(attacked.__call__, y), x, make_rng(0))
    assert z.dtype == torch.float32
    assert float((z - x).abs().max()) <= 0.1 + 1e-6
    assert 0 <= float(z.min()) <= float(z.max()) <= 1
