"""ImageNet's networks, where timm can be imported; a sentence where it cannot."""

import importlib
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sparring import EMA, FGSM, AcceleratedCopy, Build, Linf, UserError, eval_mode, evaluate_run, fit, perturb
from sparring.core.modes import unchanged
from sparring.data import ImageStream
from sparring.models import SmoothReLU, efficientnet, imagenet_resnet, recomputed, repeated_blocks, swap_activation
from sparring.models.imagenet import SIZES, size_of
from sparring.recipes import find
from sparring.testing import check_model


def loads() -> bool:
    try:
        importlib.import_module("timm.models.resnet")
    except (ImportError, RuntimeError):
        return False
    return True


needs_timm = pytest.mark.skipif(not loads(), reason="timm is not installed")


def size(model):
    return sum(p.numel() for p in model.parameters())


@needs_timm
def test_the_networks_of_imagenet_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        assert size(imagenet_resnet(50)) == 25_557_032
        assert size(imagenet_resnet(101)) == 44_549_160
        assert size(imagenet_resnet(152)) == 60_192_808
        assert size(imagenet_resnet(50, groups=32, group_width=4)) == 25_028_904
        assert size(efficientnet()) == 5_288_548
        assert size(efficientnet(2.0, 3.1)) == 66_347_960


@needs_timm
@pytest.mark.parametrize("activation", ["silu", "smooth_relu", "relu"])
@pytest.mark.parametrize("build", [imagenet_resnet, efficientnet], ids=lambda f: f.__name__)
def test_they_keep_the_contract_of_a_model_and_take_any_activation(build, activation):
    torch.manual_seed(0)
    options = {"depth": 26} if build is imagenet_resnet else {}
    model = build(num_classes=7, shape=(3, 64, 64), activation=activation, **options)
    check_model(model, (3, 64, 64), 7)
    kinds = {type(m).__name__ for m in model.modules()}
    assert {"silu": "SiLU", "smooth_relu": "SmoothReLU", "relu": "ReLU"}[activation] in kinds
    assert len({"SiLU", "SmoothReLU", "ReLU"} & kinds) == 1
    assert ("Sigmoid" in kinds) == (build is efficientnet), "gates stay"
    assert float(model.normalize(torch.ones(1, 3, 1, 1))[0, 0, 0, 0]) == 1.0
    assert float(model.normalize(torch.zeros(1, 3, 1, 1))[0, 0, 0, 0]) == -1.0


@needs_timm
def test_a_swap_in_a_network_of_timm_leaves_its_weights_loadable():
    torch.manual_seed(0)
    plain, other = (imagenet_resnet(26, num_classes=4, shape=(3, 32, 32)) for _ in range(2))
    swap_activation(other, "smooth_relu")
    missing, unexpected = other.load_state_dict(plain.state_dict(), strict=False)
    sites = sum(isinstance(m, SmoothReLU) for m in other.modules())
    assert sites == 1 + 3 * 8 and not unexpected and len(missing) == sites
    assert size(other) == size(plain) + sites


@needs_timm
def test_the_fast_path_and_attacks_take_them():
    torch.manual_seed(0)
    model, x = imagenet_resnet(26, num_classes=4, shape=(3, 32, 32), activation="silu").eval(), torch.rand(4, 3, 32, 32)
    with eval_mode(model), AcceleratedCopy("fp32", "off")(model, x) as attacked, torch.no_grad():
        assert attacked is not model
        assert torch.allclose(attacked(x), model(x), atol=1e-3)
    z = perturb(model, x, torch.arange(4), FGSM(Linf(0.01)))
    assert float((z - x).abs().max()) == pytest.approx(0.01, abs=1e-6)


@needs_timm
def test_pictures_are_trained_on_by_the_recipe_of_the_paper(tmp_path):
    rng = np.random.default_rng(0)
    for part, name, count in ((p, n, c) for p, c in (("train", 10), ("val", 3)) for n in ("a", "b")):
        (tmp_path / "in" / part / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = np.clip(rng.normal(60 if name == "a" else 190, 30, (40, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / "in" / part / name / f"{i}.jpg")
    recipe = find("imagenet_resnet_smooth")(folder=str(tmp_path / "in"))
    small = replace(
        recipe,
        data=ImageStream(str(tmp_path / "in"), size=32, workers=1),
        model=Build(imagenet_resnet, depth=26, activation="silu"),
        epochs=1,
        batch_size=8,
        held_out=0.2,
    )
    small = replace(small, evaluation=replace(small.evaluation, examples=4))
    run = fit(small, tmp_path / "run", device="cpu")
    assert set(evaluate_run(run, small, device="cpu")["best"].robust) == {"clean", "pgd-10", "pgd-50", "pgd-200"}


def test_an_efficientnet_is_known_by_its_name():
    assert size_of("B3") == SIZES["b3"] == (1.2, 1.4, 300, 0.3)
    with pytest.raises(UserError, match="no EfficientNet 'b9': did you mean"):
        size_of("b9")
    recipe = find("imagenet_efficientnet_smooth")(variant="l1")
    assert (recipe.data.size, dict(recipe.model.options)["depth"]) == (600, 3.7)


def test_the_recipes_have_what_the_released_code_has():
    plain, averaged = (find("imagenet_efficientnet_smooth")(variant=v) for v in ("l1", "l1-enhanced"))
    assert plain.averaging is None and averaged.averaging == EMA(0.9999)
    assert averaged.model == plain.model and averaged.data == plain.data
    options = dict(plain.model.options)
    assert (options["survival"], options["padding"], plain.data.middle) == (0.8, "same", "efficientnet")
    assert find("imagenet_resnet_smooth")().data.middle == "resnet"


def test_a_probability_and_a_padding_that_are_none_are_refused():
    for survival in (0.0, 1.2, float("nan")):
        with pytest.raises(UserError, match=r"not a probability that a block stays: it must be above 0 and at most 1"):
            efficientnet(survival=survival)
    with pytest.raises(UserError, match="padding = 'valid' is neither symmetric nor same"):
        efficientnet(padding="valid")


@needs_timm
def test_blocks_of_an_efficientnet_are_left_out_in_training_alone_the_later_the_more():
    torch.manual_seed(0)
    model, x = efficientnet(num_classes=3, shape=(3, 64, 64), dropout=0.0, survival=0.2), torch.rand(4, 3, 64, 64)
    with_shortcut = [(i, b.drop_path.drop_prob) for i, b in enumerate(blocks(model)) if b.has_skip]
    assert with_shortcut == [(i, pytest.approx(0.8 * i / 16)) for i in (2, 4, 6, 7, 9, 10, 12, 13, 14)]
    assert not torch.equal(model(x), model(x)), "others are left out each time"
    model.eval()
    assert torch.equal(model(x), model(x))
    plain = efficientnet(num_classes=3, shape=(3, 64, 64), dropout=0.0)
    assert torch.equal(plain(x), plain(x))
    assert set(plain.state_dict()) == set(model.state_dict())


def blocks(model):
    return [block for stage in model.body.blocks for block in stage]


@needs_timm
@pytest.mark.parametrize(
    ("build", "kinds"),
    [
        (lambda: imagenet_resnet(26, num_classes=3, shape=(3, 32, 32)), {"Bottleneck": 8}),
        (
            lambda: efficientnet(num_classes=3, shape=(3, 32, 32), survival=0.5),
            {"Sequential": 1, "InvertedResidual": 15},
        ),
    ],
    ids=["resnet", "efficientnet"],
)
def test_their_blocks_compute_their_activations_again_to_the_same_bits(build, kinds):
    def gradients(mode):
        torch.manual_seed(0)
        model, x = build().train(), torch.rand(4, 3, 32, 32)
        with mode(model):
            F.cross_entropy(model(x), torch.arange(4) % 3).backward()
        return [p.grad for p in model.parameters()], list(model.buffers())

    assert Counter(type(block).__name__ for block in repeated_blocks(build())) == kinds
    for kept, again in zip(gradients(unchanged), gradients(recomputed), strict=True):
        assert all(torch.equal(p, q) for p, q in zip(kept, again, strict=True))


@needs_timm
def test_padding_as_in_tensorflow_is_below_and_to_the_right_and_leaves_the_weights_alone():
    torch.manual_seed(0)
    same, symmetric = (efficientnet(num_classes=3, shape=(3, 64, 64), padding=p).eval() for p in ("same", "symmetric"))
    symmetric.load_state_dict(same.state_dict())
    x = torch.rand(2, 3, 64, 64)
    z = same.normalize(x)
    wanted = F.conv2d(F.pad(z, (0, 1, 0, 1)), same.body.conv_stem.weight, stride=2)
    assert torch.allclose(same.body.conv_stem(z), wanted, atol=1e-6)
    assert not torch.allclose(same.body.conv_stem(z), symmetric.body.conv_stem(z), atol=1e-2)
    check_model(same, (3, 64, 64), 3)


def test_without_timm_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.models.resnet", None)
    with pytest.raises(UserError, match=r"pip install 'sparring\[imagenet\]'"):
        imagenet_resnet()
    if loads():
        monkeypatch.undo()
        with pytest.raises(UserError, match="depth = 34 is not one of 26, 50, 101, 152"):
            imagenet_resnet(34)


@pytest.mark.slow
def test_the_core_imports_neither_timm_nor_torchvision():
    look = "import sparring.models, sparring.recipes.smooth, sys; print({'timm', 'torchvision'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", look], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "set()"
