"""The networks of RobustBench, and what is known of its models.

`robustbench_names.txt` holds names and shapes of the state dicts of small variants, as RobustBench's own classes give
them; `benchmarks/robustbench_reference.py` compares logits with those classes.
"""

import importlib.util
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparring import Classifier, UserError
from sparring.models import (
    MeanSparse,
    Normalize,
    StandardizeImage,
    dm_preact_resnet18,
    dm_wide_resnet,
    load_robustbench,
    preact_resnet18,
    published,
    published_models,
    ra_wide_resnet,
    resnet18,
    resnet50,
    robust_wide_resnet,
    wide_resnet,
)
from sparring.models.deepmind import SameConv, SqueezeExcitation
from sparring.models.mixtures import BiT, MixedNUTS, MixingNet, bit_names
from sparring.models.resnet import Bottleneck, ResNetBody
from sparring.models.robustbench import fit_names, our_names
from sparring.models.sodef import ODE, _orthogonal, fill_sodef, sodef
from sparring.models.timm_small import ChannelNorm, resnest152
from sparring.testing import check_model

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
SMALL = {"blocks": (1, 2, 1), "channels": (4, 8, 12, 16)}


def small_resnet50():
    return Classifier(ResNetBody((64, 128, 256, 512), 3, "relu", Bottleneck, (1, 1, 1, 1)), nn.Linear(2048, 10))


VARIANTS = {
    "dm_wide_resnet": lambda: dm_wide_resnet(10, 1),
    "dm_wide_resnet mean_sparse": lambda: dm_wide_resnet(10, 1, mean_sparse=True),
    "ra_wide_resnet": lambda: ra_wide_resnet(**SMALL),
    "dm_preact_resnet18": dm_preact_resnet18,
    "wide_resnet": lambda: wide_resnet(10, 1),
    "wide_resnet pssilu": lambda: wide_resnet(10, 1, activation="pssilu"),
    "robust_wide_resnet": lambda: robust_wide_resnet((1, 2, 1), (2, 2, 2)),
    "robust_wide_resnet silu": lambda: robust_wide_resnet((1, 2, 1), (2, 2, 2), activation="silu"),
    "resnet18": resnet18,
    "resnet50": small_resnet50,
    "preact_resnet18 final_norm": lambda: preact_resnet18(final_norm=True, shortcut="activated"),
    "resnest": lambda: resnest152(depths=(1, 1, 1, 1)),
    "bit": lambda: BiT(10, (1, 2, 1, 1), 1),
    "mixing": lambda: MixingNet((768, 1536)),
}


def recorded():
    """Tensors without numbers under the names of RobustBench, by variant."""
    found = {}
    for line in Path(__file__).with_name("robustbench_names.txt").read_text().splitlines():
        if line.startswith("# "):
            state = found.setdefault(line[2:], {})
        else:
            name, shape = line.split()
            state[name] = torch.zeros([int(size) for size in shape.split("x")], device="meta")
    return found


RECORDED = recorded()


def test_every_recorded_variant_is_built():
    assert set(RECORDED) == set(VARIANTS)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("resnest", "bit")])
def test_a_state_dict_of_robustbench_fits_with_nothing_missing_or_left(variant):
    state = {name: t for name, t in RECORDED[variant].items() if name not in ("mu", "sigma")}
    with torch.device("meta"):
        model = VARIANTS[variant]()
    fit_names(model, state if variant == "mixing" else our_names(state))


@needs_timm
def test_so_do_those_of_networks_that_come_from_timm():
    for variant in ("resnest", "bit"):
        model, state = VARIANTS[variant](), {name: torch.zeros(t.shape) for name, t in RECORDED[variant].items()}
        fit_names(model, bit_names(state) if variant == "bit" else our_names(state))


def test_a_missing_a_left_and_a_misshapen_tensor_are_refused():
    state = {name: torch.zeros(t.shape) for name, t in RECORDED["dm_wide_resnet"].items()}
    for wrong in (
        {name: t for name, t in state.items() if name != "logits.bias"},
        {**state, "layer.3.block.0.conv_0.weight": torch.zeros(1)},
        {**state, "logits.bias": torch.zeros(11)},
    ):
        with pytest.raises(UserError, match="another architecture: 1 of"):
            load_robustbench(dm_wide_resnet(10, 1), wrong)


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (dm_wide_resnet, {"depth": 10, "width": 1}),
        (dm_wide_resnet, {"depth": 10, "width": 1, "mean_sparse": True, "activation": "relu"}),
        (ra_wide_resnet, SMALL),
        (dm_preact_resnet18, {"width": 0.0625}),
        (resnet50, {"width": 0.0625}),
        (robust_wide_resnet, {"blocks": (1, 2, 1), "widths": (1, 2, 1)}),
        (wide_resnet, {"depth": 10, "width": 1, "activation": "pssilu"}),
    ],
)
def test_every_network_keeps_its_contract(build, options):
    torch.manual_seed(0)
    model = build(num_classes=7, shape=(3, 16, 16), normalize=Normalize([0.3] * 3, [0.5] * 3), **options)
    check_model(model, (3, 16, 16), 7)


def test_the_networks_have_the_published_numbers_of_parameters():
    def size(model):
        return sum(p.numel() for p in model.parameters())

    with torch.device("meta"):
        assert size(dm_wide_resnet(28, 10)) == size(wide_resnet(28, 10)), "they differ in padding alone"
        assert size(resnet50()) == 23_520_842
        assert size(robust_wide_resnet((5, 5, 5), (10, 10, 10))) == size(wide_resnet(34, 10))


def test_a_strided_convolution_pads_below_and_to_the_right():
    torch.manual_seed(0)
    conv, x = SameConv(2, 3, 2), torch.rand(1, 2, 8, 8)
    window = x[:, :, 2:5, 4:7]
    assert torch.allclose(conv(x)[0, :, 1, 2], (conv.weight * window).sum((1, 2, 3)), atol=1e-6)
    assert conv(x).shape == (1, 3, 4, 4)
    corner = F.pad(x, (0, 1, 0, 1))[:, :, 6:9, 6:9]
    assert torch.allclose(conv(x)[0, :, 3, 3], (conv.weight * corner).sum((1, 2, 3)), atol=1e-6)


def test_sides_on_which_the_padding_would_be_another_are_refused():
    with pytest.raises(UserError, match="images of 30 x 32 pixels: the sides must be divisible by 4"):
        dm_wide_resnet(10, 1, shape=(3, 30, 32))
    with pytest.raises(UserError, match="divisible by 8"):
        dm_preact_resnet18(shape=(3, 28, 28))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: dm_wide_resnet(11, 1), "the depth of a wide ResNet is 6 n"),
        (lambda: ra_wide_resnet((1, 1)), "give 3 numbers of blocks, and 4 of channels"),
        (lambda: robust_wide_resnet((1, 1, 1), (1, 1)), "3 numbers each, one for each group"),
    ],
)
def test_impossible_shapes_of_a_network_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_values_close_to_the_mean_of_their_channel_become_the_mean():
    layer = MeanSparse(2)
    layer.running_mean.copy_(torch.tensor([1.0, 0.0]))
    layer.running_var.copy_(torch.tensor([4.0, 1.0]))
    x = torch.tensor([[2.1, 0.4], [1.9, 0.6]]).view(2, 2, 1, 1).requires_grad_()
    assert torch.equal(layer(x), x), "the threshold is 0"
    layer.threshold.fill_(0.5)  # one deviation of the first channel is 2
    out = layer(x)
    assert out.flatten().tolist() == pytest.approx([2.1, 0.0, 1.0, 0.6])
    out.sum().backward()
    assert x.grad.flatten().tolist() == [1.0, 0.0, 0.0, 1.0]


def test_squeeze_and_excitation_scales_channels_by_their_means():
    torch.manual_seed(0)
    layer, x = SqueezeExcitation(8, 0.25), torch.rand(2, 8, 3, 3)
    hidden = torch.relu(x.mean((2, 3)) @ layer.fc1.weight[:, :, 0, 0].T + layer.fc1.bias)
    gate = torch.sigmoid(hidden @ layer.fc2.weight[:, :, 0, 0].T + layer.fc2.bias)
    assert torch.allclose(layer(x), x * gate[:, :, None, None], atol=1e-6)


def test_images_are_standardised_one_by_one():
    x = torch.rand(3, 3, 4, 4)
    out = StandardizeImage()(x)
    assert torch.allclose(out.mean((1, 2, 3)), torch.zeros(3), atol=1e-6)
    assert torch.allclose(out.std((1, 2, 3)), torch.ones(3), atol=1e-5)
    assert not StandardizeImage()(torch.full((1, 3, 4, 4), 0.5)).any(), "a flat image becomes 0"


def test_the_norm_of_a_stem_is_over_the_channels_of_a_pixel():
    layer, x = ChannelNorm(6), torch.rand(2, 6, 3, 3)
    centred = x - x.mean(1, keepdim=True)
    assert torch.allclose(layer(x), centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt(), atol=1e-6)


def test_mixed_nuts_mixes_a_decision_with_sharpened_probabilities():
    logits = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.5, 1.0, 0.0]])
    accurate, robust = (nn.Linear(1, 3) for _ in range(2))
    for layer, bias in zip((accurate, robust), logits, strict=True):
        nn.init.zeros_(layer.weight)
        layer.bias.data.copy_(bias[0])
    mixed, x = MixedNUTS(accurate, robust, 2.0, 0.5, 3.0, 0.75), torch.zeros(1, 1)
    z = (logits[1] - logits[1].mean()) / logits[1].std()
    sharp = F.gelu(z + 0.5)
    want = 0.75 * (2 * sharp.abs() ** 3 * sharp.sign()).softmax(1) + 0.25 * torch.tensor([[1.0, 0.0, 0.0]])
    assert torch.allclose(mixed(x).exp(), want, atol=1e-6), (
        "where a gradient is needed, the decision is a steep softmax"
    )
    with torch.no_grad():
        assert torch.allclose(mixed(x).exp(), want, atol=1e-6)


def test_a_model_is_found_by_its_full_name_and_by_less_if_that_is_enough():
    full = "cifar10/Linf/Bartoldson2024Adversarial_WRN-94-16"
    for name in (full, f"robustbench:{full}", full.rpartition("/")[2], "cifar10/" + full.rpartition("/")[2]):
        assert published(name) is published_models()[full]
    assert published(full).threat == "linf:8/255" and published(full).key == full


def test_a_name_of_several_models_lists_them_and_an_unknown_one_the_nearest():
    with pytest.raises(UserError, match="names 3 models: write robustbench:cifar10/Linf/Wang2023Better_WRN-28-10 or "):
        published("Wang2023Better_WRN-28-10")
    assert published("L2/Wang2023Better_WRN-28-10").norm == "L2"
    with pytest.raises(UserError, match=r"no model 'Wang2023Beter_WRN-28-10': did you mean Wang2023Better_WRN-28-10"):
        published("Wang2023Beter_WRN-28-10")
    with pytest.raises(UserError, match="did you mean cifar10/L2/Rice2020Overfitting"):
        published("cifar10/L2/Rice2020Overfiting")


def test_the_leaderboards_are_in_their_order():
    boards = {}
    for model in published_models().values():
        boards.setdefault((model.dataset, model.norm), []).append(model)
    assert {board: len(models) for board, models in boards.items()} == {
        ("cifar10", "Linf"): 76,
        ("cifar10", "L2"): 21,
        ("cifar100", "Linf"): 38,
        ("imagenet", "Linf"): 30,
    }
    for models in boards.values():
        robust = [model.autoattack if model.external is None else model.external for model in models]
        assert robust == sorted(robust, reverse=True)
        assert all(model.clean >= accuracy >= 0 for model, accuracy in zip(models, robust, strict=True))


def test_all_but_a_few_architectures_are_built():
    counts = Counter((model.dataset, model.architecture is not None) for model in published_models().values())
    assert counts["cifar10", False] == 2 and counts["cifar100", False] == 0 and counts["imagenet", False] == 6
    with pytest.raises(UserError, match="is a Swin-L, an architecture that is not built here"):
        published("Xu2024MIMIR_Swin-L").build()


OURS = {"dm_wide_resnet", "dm_preact_resnet18", "preact_resnet18", "ra_wide_resnet", "resnet18", "resnet50"}
OURS |= {"robust_wide_resnet", "wide_resnet"}


@pytest.mark.slow
def test_every_model_without_a_library_is_built_with_its_classes_and_normalisation():
    built = set()
    for model in published_models().values():
        kind = (model.architecture, model.options.get("activation"), model.dataset)
        if kind in built or model.architecture not in OURS:
            continue
        built.add(kind)
        with torch.device("meta"):
            net = model.build()
        assert net.head.out_features == {"cifar10": 10, "cifar100": 100}[model.dataset]
        assert isinstance(net.normalize, nn.Identity) == (model.normalize is None)


def test_weights_without_statistics_keep_the_normalisation_of_the_code_and_others_replace_it():
    model = published("cifar10/L2/Rade2021Helper_R18_ddpm")
    net = model.build()
    state = {name: torch.zeros(t.shape) for name, t in RECORDED["dm_preact_resnet18"].items()}
    assert model.load(net, state) is net and not net.training
    assert net.normalize.mean.flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
    other = {"mu": torch.tensor([0.1, 0.2, 0.3]), "sigma": torch.ones(3)}
    model.load(net, {**state, **other})
    assert net.normalize.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


needs_ode = pytest.mark.skipif(importlib.util.find_spec("torchdiffeq") is None, reason="torchdiffeq is not installed")


def test_the_orthogonal_map_is_that_of_its_skew_symmetric_matrix():
    """In two dimensions it is a rotation by the angle below the diagonal."""
    rotated = _orthogonal(torch.eye(2).double(), torch.tensor([[9.0], [0.5]]).double())
    assert rotated[:, 0].tolist() == pytest.approx([math.cos(0.5), math.sin(0.5)], abs=1e-9)
    torch.manual_seed(0)
    base = torch.linalg.qr(torch.rand(6, 6)).Q
    found = _orthogonal(base, torch.rand(6, 3))
    assert torch.allclose(found.T @ found, torch.eye(3), atol=1e-5)


@needs_ode
def test_the_neural_ode_ends_where_small_steps_end():
    torch.manual_seed(0)
    layer, x = ODE(4), torch.rand(5, 4)
    layer.layer.weight.data.copy_(0.5 * torch.eye(4) + 0.1)
    z = x.clone()
    with torch.no_grad():
        for _ in range(500):
            z = z + 0.01 * torch.sin(-layer.layer(z))
        assert torch.allclose(layer(x), z, atol=1e-2)
    probe = x.clone().requires_grad_()
    layer(probe).sum().backward()
    assert probe.grad.abs().sum() > 0


@needs_ode
def test_weights_of_sodef_come_from_its_three_parts():
    torch.manual_seed(0)
    model = sodef(10, 1)
    state = {
        f"0.{name}": torch.zeros(t.shape) for name, t in RECORDED["dm_wide_resnet"].items() if "logits" not in name
    }
    weight = "1.fc0.linear.parametrizations.weight."
    state |= {weight + "original": torch.zeros(64, 64), weight + "0.base": torch.eye(64)}
    state |= {"2.0.odefunc.fc1._layer.weight": torch.ones(64, 64), "2.0.odefunc.fc1._layer.bias": torch.ones(64)}
    state |= {"2.1.fc0.weight": torch.ones(10, 64), "2.1.fc0.bias": torch.ones(10)}
    fill_sodef(model, state)
    assert torch.equal(model.body[1].weight, torch.eye(64)) and not model.body[0].init_conv.weight.any()
    assert model.body[2].layer.weight.all() and model.head.weight.all()
