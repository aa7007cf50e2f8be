"""Models of timm, torchvision and the Hub by their names. No weights are downloaded."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sparring import Classifier, UserError
from sparring.cli import run
from sparring.core.serialization import Build, from_plain, to_plain
from sparring.data import load_test
from sparring.data.looks import CentralSquare
from sparring.models import Preprocessing, imagenet_resnet, timm_model, torchvision_model
from sparring.models.robustbench import our_names
from sparring.runs.external_models import library_model, named_model


def loads(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):
        return False
    return True


needs_timm = pytest.mark.skipif(not loads("timm"), reason="timm is not installed")
needs_torchvision = pytest.mark.skipif(not loads("torchvision"), reason="torchvision is not installed")


@needs_timm
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_a_model_of_timm_takes_pixels_and_has_features(name):
    import timm

    torch.manual_seed(0)
    found = library_model(f"timm:{name},pretrained=False").eval()
    assert isinstance(found, Classifier)
    config = timm.get_pretrained_cfg(name)
    assert found.preprocessing.mean == tuple(config.mean)
    assert found.preprocessing.share == config.crop_pct
    torch.manual_seed(0)
    plain = timm.create_model(name).eval()
    x = torch.rand(2, 3, *config.input_size[1:])
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (config.mean, config.std))
    with torch.no_grad():
        assert torch.allclose(found(x), plain((x - mean) / std), atol=1e-5)
        assert found.features(x).shape == (2, plain.num_features)


@needs_timm
def test_a_model_of_timm_is_built_for_other_images_and_classes():
    for name in ("resnet18", "vit_tiny_patch16_224"):
        found = timm_model(name, num_classes=7, shape=(1, 32, 32)).eval()
        assert found(torch.rand(2, 1, 32, 32)).shape == (2, 7)
    build = Build(timm_model, name="resnet18", pretrained=False)
    assert from_plain(to_plain(build)) == build, "a recipe names it"


@needs_timm
def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="timm has no model 'resnet19': did you mean"):
        timm_model("resnet19")
    with pytest.raises(UserError, match="timm takes no option pretraned"):
        library_model("timm:resnet18,pretraned=False")


@needs_torchvision
def test_a_model_of_torchvision_takes_pixels_and_may_get_another_head():
    found = torchvision_model("resnet18").eval()
    assert isinstance(found, Classifier)
    assert found.preprocessing == Preprocessing(
        224, 224 / 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    assert found.head.out_features == 1000
    assert torchvision_model("resnet18", num_classes=5)(torch.rand(2, 3, 64, 64)).shape == (2, 5)
    with pytest.raises(UserError, match="torchvision has no classifier 'resnet19'"):
        torchvision_model("resnet19")
    with pytest.raises(UserError, match="does not take images of 1x32x32"):
        torchvision_model("resnet18", shape=(1, 32, 32))


@needs_timm
def test_a_model_of_the_hub_is_read_from_two_files_at_one_commit(tmp_path, monkeypatch):
    import timm
    from huggingface_hub import constants
    from safetensors.torch import save_file

    torch.manual_seed(0)
    plain = timm.create_model("resnet10t", num_classes=4).eval()
    folder = hub_folder(tmp_path, "org/mine", "a" * 40)
    save_file(plain.state_dict(), folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody reads")
    config = {"architecture": "resnet10t", "num_classes": 4, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = library_model("hub:org/mine")
    assert not found.training
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(found(x), plain((x - 0.5) / 0.5), atol=1e-5)
    assert torch.equal(library_model(f"hub:org/mine@{'a' * 40}")(x), found(x))
    with pytest.raises(UserError, match=r"model\.safetensors of hub:org/other cannot be had"):
        library_model("hub:org/other")
    with pytest.raises(UserError, match="'mine' names no model of the Hub: write hub:ORGANISATION/NAME"):
        library_model("hub:mine")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match=r"config\.json of hub:org/mine has no architecture"):
        library_model("hub:org/mine")


def hub_folder(cache, name: str, commit: str):
    """A repository in the cache of huggingface_hub, as it lays them out."""
    top = cache / ("models--" + name.replace("/", "--"))
    (top / "refs").mkdir(parents=True)
    (top / "refs" / "main").write_text(commit)
    folder = top / "snapshots" / commit
    folder.mkdir(parents=True)
    return folder


@needs_timm
def test_checkpoints_of_the_robustness_library_are_read(tmp_path):
    torch.manual_seed(0)
    known = imagenet_resnet(depth=26, num_classes=10).eval()
    theirs = {}
    for name, tensor in known.state_dict().items():
        if name.startswith("normalize."):
            continue
        inner = name.removeprefix("body.").replace("head.", "fc.")
        theirs[f"module.model.{inner}"] = tensor
        theirs[f"module.attacker.model.{inner}"] = tensor
    for where in ("module.normalizer", "module.attacker.normalize"):
        theirs[f"{where}.new_mean"] = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        theirs[f"{where}.new_std"] = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.save({"model": theirs, "epoch": 90}, tmp_path / "robust.pt")
    np.savez(tmp_path / "t.npz", x=np.zeros((4, 64, 64, 3), np.uint8), y=np.arange(4))
    found = named_model("imagenet_resnet:depth=26", tmp_path / "robust.pt", load_test(f"npz:{tmp_path / 't.npz'}"))
    x = torch.rand(2, 3, 64, 64)
    mean, std = (theirs[f"module.normalizer.new_{each}"] for each in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(found.eval()(x), known.head(known.body((x - mean) / std)), atol=1e-5)


def test_names_of_the_robustness_library():
    state = {
        "module.normalizer.new_mean": torch.zeros(3),
        "module.model.layer1.0.conv1.weight": torch.zeros(1),
        "module.model.fc.bias": torch.zeros(1),
        "module.attacker.model.fc.bias": torch.zeros(1),
    }
    assert list(our_names(state)) == ["normalize.mean", "body.layer1.0.conv1.weight", "head.bias"]


def test_without_the_library_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"comes from timm, which .*: pip install 'sparring\[imagenet\]'"):
        library_model("timm:resnet18")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"comes from huggingface_hub, .*pip install 'sparring\[hub\]'"):
        library_model("hub:a/b")


# -- pictures as a model wants them


@pytest.fixture
def pictures(tmp_path):
    """Pictures of two classes without a training part: a frame of red around green."""
    for kind in ("ant", "bee"):
        (tmp_path / "p" / "val" / kind).mkdir(parents=True)
        for i in range(2):
            picture = np.zeros((60, 100, 3), np.uint8)
            picture[:, :, 0] = 255
            picture[6:54, 26:74] = (0, 255, 0)
            Image.fromarray(picture).save(tmp_path / "p" / "val" / kind / f"{i}.png")
    return tmp_path / "p"


def test_pictures_are_cut_as_the_model_wants_them(pictures):
    whole = load_test(f"folder:{pictures}+size=20")[:].x
    assert whole.shape == (4, 3, 20, 20)
    assert int(whole[0, 0, 0, 0]) == 255, "the frame is seen"
    cut = load_test(f"folder:{pictures}", CentralSquare(20, 0.8, "bilinear"))[:].x
    assert cut.shape == (4, 3, 20, 20)
    assert int(cut[0, 0, 1:-1, 1:-1].max()) == 0, "the central 80 % of the shorter side are green"
    assert load_test(f"folder:{pictures}+size=10", CentralSquare(20, 0.8)).shape[-1] == 10, "the name decides"
    with pytest.raises(UserError, match=r"share = 1\.5 of the shorter side"):
        CentralSquare(20, 1.5)
    with pytest.raises(UserError, match="interpolation = 'cubic' is neither"):
        CentralSquare(20, 1.0, "cubic")


@pytest.mark.slow
def test_a_pretrained_model_is_evaluated_on_pictures_from_the_shell(pictures, monkeypatch, capsys):
    class Wanting(nn.Sequential):
        preprocessing = Preprocessing(16, 0.8, "bilinear", (0.5,), (0.5,))

    def made(name, **options):
        assert (name, options) == ("tiny", {"pretrained": True})
        return Wanting(nn.Flatten(), nn.Linear(3 * 256, 2)).eval()

    monkeypatch.setattr("sparring.runs.external_models.LIBRARIES", {"timm": wrapped(made)})
    data = ["--data", f"folder:{pictures}"]
    assert run(["evaluate", "timm:tiny", *data, "--threat", "linf:0.001", "--autoattack", "rand", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["model"]["clean"]["examples"] == 4
    assert "the model wants pictures of 16 x 16 pixels, bilinear, from the central 80 % of the shorter side" in err


def wrapped(function):
    def builder(name, num_classes=None, shape=None, normalize=None, pretrained=False):
        return function(name, pretrained=pretrained)

    return builder
