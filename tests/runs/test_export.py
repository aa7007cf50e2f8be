"""Exports of runs: what is written, that it is read again, and what is refused."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import sparring
from sparring import AutoAttack, Benign, Build, CrossEntropy, Linf, Method, UserError
from sparring.acceleration.fingerprint import global_hooks
from sparring.cli import run
from sparring.data import CIFAR10, NPZ, ExtraData, GeneratedImages
from sparring.data.given import GivenData
from sparring.models import (
    Normalize,
    dm_preact_resnet18,
    dm_wide_resnet,
    load_robustbench,
    preact_resnet18,
    ra_wide_resnet,
    resnet18,
    resnet50,
    robust_wide_resnet,
    small_cnn,
    wide_resnet,
)
from sparring.models.robustbench_export import for_robustbench
from sparring.recipes.small import quickstart
from sparring.records import EvaluationResult, RunFolder
from sparring.runs.export import _additional, export
from sparring.runs.external_models import imported_model
from sparring.training.checkpoint import save_weights

CLASSES = tuple("0123456789")


def images(folder):
    rng = np.random.default_rng(0)
    x = {name: rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8) for name in ("x_train", "x_test")}
    np.savez(folder / "images.npz", **x, y_train=np.arange(20) % 10, y_test=np.arange(20) % 10)
    return NPZ(str(folder / "images.npz"))


@pytest.mark.slow
def test_a_model_whose_data_were_objects_is_exported(trained, tmp_path):
    """No file holds its test images; the program is compared on noise."""
    folder, model, recipe = trained
    given = replace(recipe, data=GivenData("20 images 3x32x32", "0" * 16))
    folder.begin(given.plain())
    save_weights(
        folder.weights("best"), model, {"recipe": given.plain(), "classes": list(CLASSES), "shape": [3, 32, 32]}
    )
    exported = export(folder.path, "torch-export", tmp_path / "out")
    assert exported.files and all(path.exists() for path in exported.files)


@pytest.fixture
def trained(tiny, tmp_path):
    """A run folder with weights of a wide ResNet for 32-pixel images, which was not evaluated."""
    recipe = replace(tiny, data=images(tmp_path), model=Build(wide_resnet, depth=10, width=1))
    torch.manual_seed(0)
    model = recipe.build_model(recipe.data.load()[0])
    model(torch.rand(8, 3, 32, 32))
    folder = RunFolder(tmp_path / "robust")
    folder.begin(recipe.plain())
    folder.set_status({"finished": True, "step": 6, "best": {}})
    about = {"recipe": recipe.plain(), "classes": list(CLASSES), "shape": [3, 32, 32]}
    save_weights(folder.weights("best"), model, about)
    return folder, model.eval(), recipe


def evaluated(folder, recipe, which=("best", "last"), record=None):
    """Pretend that the run was evaluated under AutoAttack on 10 of its 20 test images; the record is of `record`."""
    right = np.arange(10) < 6
    attacks = {"autoattack": AutoAttack(Linf("8/255")), "pgd": recipe.selection}
    result = EvaluationResult({"clean": np.arange(10) < 9, "pgd": right, "autoattack": right}, np.arange(10), CLASSES)
    for each in which:
        folder.write_flags(each, result)
    adversaries = {**recipe.evaluation.adversaries, "autoattack": attacks["autoattack"]}
    plain = replace(recipe, evaluation=replace(recipe.evaluation, adversaries=adversaries)).plain()["evaluation"]
    folder.write_evaluation({**{each: {} for each in record or which}, "how": {"evaluation": plain}})


def test_robustbench_gets_a_state_dict_of_its_class_the_facts_and_a_card(trained, tmp_path):
    folder, model, recipe = trained
    evaluated(folder, recipe)
    found = export(folder.path, "robustbench", tmp_path / "out")
    assert [path.name for path in found.files] == ["robust.pt", "robust.json", "README.md"]
    state = torch.load(tmp_path / "out" / "robust.pt", weights_only=True)
    again = load_robustbench(wide_resnet(10, 1), state).eval()
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(again(x), model(x))
    info = json.loads((tmp_path / "out" / "robust.json").read_text())
    wanted = "link name authors additional_data number_forward_passes dataset venue architecture eps clean_acc reported"
    assert list(info) == [*wanted.split(), "autoattack_acc", "footnote", "unreliable"]
    assert info["architecture"] == "WideResNet-10-1" and info["eps"] == "8/255"
    assert (info["clean_acc"], info["autoattack_acc"], info["dataset"]) == ("90.00", "60.00", None)
    assert info["footnote"] == "Measured on the first 10 of 20 test images."
    card = (tmp_path / "out" / "README.md").read_text()
    assert "model = normalize_model(WideResNet(depth=10, widen_factor=1, num_classes=10), (" in card
    assert 'torch.load("robust.pt", weights_only=True)' in card


def test_other_images_that_trained_the_model_are_told():
    own = replace(quickstart(0.1), data=CIFAR10())
    more = replace(own, extra_data=ExtraData(GeneratedImages("drawn.npz")))
    recipes = own, more, replace(own, init_from="other"), quickstart(0.1)
    assert [_additional(SimpleNamespace(recipe=recipe)) for recipe in recipes] == [False, True, None, None]


def test_a_run_that_is_not_finished_is_not_exported(trained, tmp_path):
    folder, *_ = trained
    folder.set_status({"finished": False, "step": 3, "best": {}})
    with pytest.raises(UserError, match=r"holds an unfinished run: train it to its end, or export .*best.safetensors"):
        export(folder.path, "robustbench", tmp_path / "out")


def test_what_was_not_measured_is_null(trained, tmp_path):
    folder, *_ = trained
    export(folder.path, "robustbench", tmp_path / "out")
    info = json.loads((tmp_path / "out" / "robust.json").read_text())
    assert info["clean_acc"] is info["autoattack_acc"] is info["footnote"] is None
    assert "It has not been evaluated yet." in (tmp_path / "out" / "README.md").read_text()


def test_best_weights_that_were_evaluated_alone_have_their_numbers(trained, tmp_path):
    folder, _, recipe = trained
    evaluated(folder, recipe, which=("best",))
    export(folder.path, "robustbench", tmp_path / "out")
    info = json.loads((tmp_path / "out" / "robust.json").read_text())
    assert (info["autoattack_acc"], info["eps"]) == ("60.00", "8/255")


def test_the_threat_of_a_later_evaluation_of_other_weights_is_not_that_of_the_numbers(trained, tmp_path):
    folder, _, recipe = trained
    evaluated(folder, recipe, record=("last",))
    export(folder.path, "robustbench", tmp_path / "out")
    info = json.loads((tmp_path / "out" / "robust.json").read_text())
    assert info["eps"] is info["autoattack_acc"] is None and info["clean_acc"] == "90.00"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "evaluated against" not in card and "| autoattack | 60.00 %" in card


@pytest.mark.parametrize(("attack", "how"), [(Benign(), "without an adversary"), (None, "by adversarial training")])
def test_a_card_says_how_the_model_was_trained_and_no_threat_that_was_not_evaluated(attack, how, trained, tmp_path):
    _, model, recipe = trained
    recipe = recipe if attack is None else replace(recipe, method=Method(attack, CrossEntropy()))
    about = {"recipe": recipe.plain(), "classes": list(CLASSES), "shape": [3, 32, 32]}
    save_weights(tmp_path / "alone.safetensors", model, about)
    export(tmp_path / "alone.safetensors", "hub", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"of 10 classes, trained {how}.\n" in card and "It has not been evaluated yet." in card


def test_the_card_for_the_hub_begins_with_its_front_matter_and_the_weights_load_by_themselves(trained, tmp_path):
    folder, model, recipe = trained
    evaluated(folder, recipe)
    found = export(folder.path, "hub", tmp_path / "out")
    assert found.difference == 0 and found.images == 16
    _, matter, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(matter)
    assert front["library_name"] == "sparring" and front["pipeline_tag"] == "image-classification"
    metrics = front["model-index"][0]["results"][0]["metrics"]
    assert {each["name"]: each["value"] for each in metrics}["accuracy, autoattack"] == 60.0
    assert "evaluated against Linf perturbations up to 8/255" in text
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(sparring.load(tmp_path / "out" / "model.safetensors")(x), model(x))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_classes"] == 10


def test_an_exported_model_is_loaded_from_the_hub_by_name(trained, tmp_path, monkeypatch):
    folder, model, _ = trained
    commit = tmp_path / "abc123"
    export(folder.path, "hub", commit)
    asked = []

    def file(name, what):
        asked.append(name)
        return commit / what

    monkeypatch.setattr("sparring.models.libraries.hub_file", file)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(imported_model("hub:me/robust")(x), model(x))
    assert asked == ["me/robust", "me/robust@abc123"], "both files are of one commit"


@pytest.mark.slow
def test_an_exported_program_takes_any_number_of_images(trained, tmp_path):
    folder, model, _ = trained
    found = export(folder.path, "torch-export", tmp_path / "out", images=4)
    assert found.difference <= 1e-5 and found.images == 4
    program = torch.export.load(found.files[0]).module()
    x = torch.rand(7, 3, 32, 32)
    assert torch.allclose(program(x), model(x), atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_onnx_program_gives_the_same_logits(trained, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder, model, _ = trained
    found = export(folder.path, "onnx", tmp_path / "out", images=4)
    assert found.difference <= 1e-5
    session = runtime.InferenceSession(str(found.files[0]), providers=["CPUExecutionProvider"])
    x = torch.rand(7, 3, 32, 32)
    assert np.allclose(session.run(None, {"images": x.numpy()})[0], model(x).detach().numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_program_that_differs_is_refused_and_deleted(trained, tmp_path, monkeypatch):
    folder, *_ = trained
    kept = torch.export.export
    monkeypatch.setattr("torch.export.export", lambda model, *a, **o: kept(Shifted(model), *a, **o))
    with pytest.raises(UserError, match=r"logits of robust.pt2 differ by 0\.5 .* more than 0\.0001 of the largest"):
        export(folder.path, "torch-export", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


class Shifted(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) + 0.5


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 10)

    def forward(self, x):
        return self.layer(x.flatten(1)) if x.sum() > 0 else self.layer(-x.flatten(1))


def test_a_model_that_cannot_be_traced_is_refused_in_a_sentence(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("sparring.runs.export.load_model", lambda *_: Branching())
    with pytest.raises(UserError, match=r"torch\.export cannot trace this model .*: export it as --to hub"):
        export(trained[0].path, "torch-export", tmp_path / "out")
    assert not global_hooks(), "torch 2.11 leaves one"


def test_without_the_library_one_is_told_what_to_install(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'sparring\[onnx\]'"):
        export(trained[0].path, "onnx", tmp_path / "out")


THEIRS = [
    (resnet18, "ResNet-18", "ResNet(BasicBlock, [2, 2, 2, 2], num_classes=10)"),
    (resnet50, "ResNet-50", "ResNet(Bottleneck, [3, 4, 6, 3], num_classes=10)"),
    (
        lambda **o: preact_resnet18(final_norm=True, shortcut="activated", **o),
        "PreActResNet-18",
        "PreActResNet(PreActBlock, [2, 2, 2, 2], num_classes=10, bn_before_fc=True, out_shortcut=True)",
    ),
    (lambda **o: wide_resnet(16, 2, **o), "WideResNet-16-2", "WideResNet(depth=16, widen_factor=2, num_classes=10)"),
    (
        lambda **o: robust_wide_resnet((1, 2, 3), (2, 1, 1), activation="silu", **o),
        "WideResNet-16",
        "PreActResNet(num_classes=10, channel_configs=[16, 32, 32, 64], depth_configs=[1, 2, 3], "
        "activations=('SiLU',) * 3, use_init=False)",
    ),
    (
        lambda **o: dm_wide_resnet(16, 2, **o),
        "WideResNet-16-2",
        "DMWideResNet(num_classes=10, depth=16, width=2, activation_fn=nn.SiLU, mean=(0.5, 0.5, 0.5), "
        "std=(0.25, 0.25, 0.25))",
    ),
    (
        dm_preact_resnet18,
        "PreActResNet-18",
        "DMPreActResNet(num_classes=10, depth=18, activation_fn=nn.SiLU, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))",
    ),
]


@pytest.mark.parametrize(("build", "architecture", "call"), THEIRS, ids=[call[:24] for *_, call in THEIRS])
def test_each_class_of_robustbench_is_called_as_it_has_to_be_and_our_reader_takes_its_names(build, architecture, call):
    with torch.device("meta"):
        model = build(normalize=Normalize([0.5] * 3, [0.25] * 3).to_empty(device="meta"))
    model.normalize = Normalize([0.5] * 3, [0.25] * 3)
    theirs = for_robustbench(model)
    assert theirs.architecture == architecture
    wrapped = f"normalize_model({call}, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))"
    assert theirs.call == (call if call.startswith("DM") else wrapped)
    with torch.device("meta"):
        load_robustbench(build(), {name: t for name, t in theirs.state.items() if not name.startswith("normalize.")})


UNFIT = [
    (lambda: small_cnn(10, (3, 32, 32)), "its body is a"),
    (lambda: resnet18(width=0.5), "its first convolution gives 32 channels and not 64"),
    (lambda: resnet18(activation="silu"), "its activation is SiLU and not ReLU"),
    (lambda: wide_resnet(10, 1, activation="gelu"), "its activation is GELU and not ReLU or SiLU"),
    (lambda: dm_wide_resnet(10, 1, mean_sparse=True), "squeeze and excitation or MeanSparse"),
    (lambda: ra_wide_resnet((1, 1, 1), (8, 16, 32, 64)), "squeeze and excitation or MeanSparse"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "it is a Sequential and not a body with a linear head"),
]


@pytest.mark.parametrize(("build", "why"), UNFIT, ids=[why[:30] for _, why in UNFIT])
def test_a_model_that_robustbench_has_no_class_for_is_refused_with_the_reason(build, why):
    with pytest.raises(UserError, match=f"RobustBench has no class for this model, since .*{why}.*: export it as"):
        for_robustbench(build())


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match=r"its images are of shape \(1, 28, 28\) and not \(3, 32, 32\)"):
        for_robustbench(wide_resnet(10, 1, shape=(1, 28, 28)), (1, 28, 28))


def test_the_shell_writes_where_it_says_and_refuses_an_unknown_target(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["export", "robust", "--to", "robustbench"]) == 0
    assert "wrote exported/robust-robustbench/robust.pt" in capsys.readouterr().out
    assert run(["export", "robust", "--to", "hub", "--out", "here", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["largest difference"] == 0
    with pytest.raises(UserError, match="to = 'keras' is not one of robustbench, hub, onnx, torch-export"):
        export("robust", "keras", "there")
    assert run(["export", "nothing", "--to", "hub"]) == 2
