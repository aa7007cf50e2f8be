"""Recipes whose networks are timm's, on tiny pictures and with tiny networks, where timm can be imported."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import sparring
from sparring import Build, Linf, Progress, UserError, WhiteBox, evaluate_run, fit, load_model
from sparring.attacks import APGD
from sparring.cli import run as shell
from sparring.core.types import at
from sparring.data import ImageStream
from sparring.models import ZeroShotHead, zero_shot_model
from sparring.recipes import find

pytestmark = pytest.mark.slow


def loads(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):
        return False
    return True


needs_timm = pytest.mark.skipif(not loads("timm"), reason="timm is not installed")
needs_peft = pytest.mark.skipif(not loads("peft"), reason="peft is not installed")


@pytest.fixture
def pictures(tmp_path):
    """Dark and bright pictures, in folders as ImageNet's."""
    rng = np.random.default_rng(0)
    for part, name, count in ((p, n, c) for p, c in (("train", 10), ("val", 3)) for n in ("a", "b")):
        (tmp_path / "in" / part / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = np.clip(rng.normal(60 if name == "a" else 190, 30, (40, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / "in" / part / name / f"{i}.jpg")
    return str(tmp_path / "in")


def small(recipe, **changes):
    return replace(
        recipe,
        data=ImageStream(recipe.data.folder, size=32, workers=1),
        epochs=1,
        batch_size=8,
        held_out=0.2,
        evaluation=replace(recipe.evaluation, adversaries={"apgd-3": WhiteBox(APGD(Linf(4 / 255), 3))}, examples=4),
        **changes,
    )


@needs_timm
@pytest.mark.parametrize("name", ["imagenet_convnext_t_cvst", "imagenet_vit_s_cvst"])
def test_nets_with_a_stem_of_convolutions_are_trained_by_the_recipe_of_their_paper(
    name, pictures, tmp_path, monkeypatch
):
    shallow = {"depths": (1,) * 4, "dims": (96,) * 4} if "convnext" in name else {"depth": 1}
    make = sparring.models.timm_small._timm_model
    monkeypatch.setattr(
        sparring.models.timm_small, "_timm_model", lambda *given, **more: make(*given, **more, **shallow)
    )
    recipe = small(find(name)(folder=pictures))
    run = fit(recipe, tmp_path / "run", device="cpu")
    assert set(evaluate_run(run, recipe, device="cpu")["best"].robust) == {"clean", "apgd-3"}
    stem = load_model(run.path).body.stem if "convnext" in name else load_model(run.path).body.patch_embed.proj
    assert type(stem).__name__ == "ConvStem"


def test_the_rate_of_the_paper_falls_to_its_smallest_after_a_warm_up():
    recipe = find("imagenet_convnext_t_cvst")()
    rates = [at(recipe.lr, Progress(epoch, 1, 300)) for epoch in range(300)]
    assert rates[0] < 1e-4 and max(rates) == rates[19] == pytest.approx(1e-3, rel=0.01)
    assert 5e-6 < rates[-1] < 6e-6


@needs_timm
@pytest.mark.parametrize("name", ["imagenet_clip_fare", "imagenet_clip_tecoa"])
def test_an_encoder_is_fine_tuned_with_texts_from_a_file_that_its_weights_do_not_need_afterwards(
    name, pictures, tmp_path
):
    texts = tmp_path / "texts.npy"
    np.save(texts, np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32))
    recipe = find(name)(folder=pictures, texts=str(texts))
    options = {**recipe.model.options, "name": "test_vit", "pretrained": False}
    recipe = small(recipe, model=Build(zero_shot_model, **options), lr=1e-4)
    run = fit(recipe, tmp_path / "run", device="cpu")
    texts.unlink()
    found = load_model(run.path)
    assert isinstance(found.head, ZeroShotHead) and found.head.weight.norm(dim=1).tolist() == pytest.approx([100, 100])
    assert set(evaluate_run(run, recipe, device="cpu")["best"].robust) == {"clean", "apgd-3"}


@needs_timm
@needs_peft
def test_adapters_are_trained_by_a_number_and_exported_as_weights(pictures, tmp_path, capsys):
    texts = tmp_path / "texts.npy"
    np.save(texts, np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32))
    recipe = find("imagenet_clip_fare")(folder=pictures, texts=str(texts), lora_rank=2)
    options = {**recipe.model.options, "name": "test_vit", "pretrained": False}
    run = fit(small(recipe, model=Build(zero_shot_model, **options), lr=1e-3), tmp_path / "run", device="cpu")
    found = load_model(run.path)
    assert any("lora_A" in name for name in found.state_dict())
    assert shell(["export", str(run.path), "--to", "torch-export", "--out", str(tmp_path / "out")]) == 0
    program = torch.export.load(tmp_path / "out" / "run.pt2")
    assert not any("lora" in name for name in program.state_dict)
    x = torch.rand(3, 3, 32, 32)
    assert torch.allclose(program.module()(x), found(x), atol=1e-3)


@needs_timm
def test_features_are_the_image_embeddings_of_the_encoder_itself():
    import timm

    torch.manual_seed(0)
    found = zero_shot_model("test_vit", "", num_classes=4).eval()
    torch.manual_seed(0)
    plain = timm.create_model("test_vit").eval()
    x = torch.rand(2, 3, 160, 160)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (plain.default_cfg["mean"], plain.default_cfg["std"]))
    with torch.no_grad():
        assert torch.allclose(found.features(x), plain((x - mean) / std), atol=1e-5)
    assert found.preprocessing.size == 160


@needs_timm
@pytest.mark.parametrize(
    ("shape", "classes", "reason"),
    [
        ((2, 999), 2, r"embeddings of shape \(2, 999\), and wanted are \(2, 1000\)"),
        ((3, 1000), 2, r"embeddings of shape \(3, 1000\), and wanted are \(2, 1000\)"),
        ((3, 1000), None, None),
    ],
)
def test_texts_that_do_not_fit_are_refused(shape, classes, reason, tmp_path):
    np.save(tmp_path / "texts.npy", np.ones(shape, np.float32))
    if reason is None:
        assert zero_shot_model("test_vit", str(tmp_path / "texts.npy")).head.weight.shape == shape
        return
    with pytest.raises(UserError, match=reason):
        zero_shot_model("test_vit", str(tmp_path / "texts.npy"), num_classes=classes)


@needs_timm
def test_a_file_that_is_no_array_is_refused(tmp_path):
    (tmp_path / "texts.npy").write_text("a photo of a dog")
    with pytest.raises(UserError, match=r"texts\.npy cannot be read.*write the text embeddings with numpy\.save"):
        zero_shot_model("test_vit", str(tmp_path / "texts.npy"))
