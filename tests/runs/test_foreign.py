import sys

import numpy as np
import pytest
import torch
from conftest import toy_data, toy_net
from torch import nn

from sparring import TensorData, UserError
from sparring.core.types import pixels
from sparring.data import load_test
from sparring.models import Normalize, preact_resnet18, small_cnn
from sparring.models.classifier import normalized
from sparring.runs.external_models import _ARCHITECTURES, fitting, imported_model, named_model, options_of

pytestmark = pytest.mark.slow


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))\n"
        "ready = build()\n"
        "def number():\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    yield "theirs"
    sys.modules.pop("theirs", None)


def test_a_model_is_built_by_a_path_from_the_present_folder(module):
    assert isinstance(imported_model("theirs:build"), nn.Sequential)
    assert isinstance(imported_model("theirs:ready"), nn.Sequential)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("theirs:buidl", "theirs:buidl cannot be found .*write module:function"),
        ("nobody:build", "nobody:build cannot be found"),
        (":build", ":build cannot be found"),
        ("theirs:number", "gives a int: wanted is a torch.nn.Module"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(module, spec, message):
    with pytest.raises(UserError, match=message):
        imported_model(spec)


NET = "import torch\nclass Net(torch.nn.Module):\n    def __init__(self, width): ..."
FAULTS = [
    (NET, r"needs arguments \(missing a required argument: 'width'\): write a function without any that returns"),
    ("def Net(width, *, deep): ...", r"needs arguments \(missing a required argument: 'width'\)"),
    ("Net = lambda x: x", r"needs arguments \(missing a required argument: 'x'\)"),
    ("def Net():\n    1 / 0", r"raised ZeroDivisionError: .* in line 2 of theirs\.py when it was called: mend it"),
    ("def Net():\n    raise SystemExit(3)", r"raised SystemExit: 3 in line 2 of theirs\.py when it was called"),
    ("def Net():\n    [].a", r"raised AttributeError: .* in line 2 of theirs\.py when it was called"),
    ("def Net(:", r"cannot be found, for importing theirs raised SyntaxError: .*theirs\.py, line 1\): mend it"),
    (
        "def Net(): ...\n[][1]",
        r"cannot be found, for importing theirs raised IndexError: list .* in line 2 of theirs\.py: mend it",
    ),
    ("raise SystemExit", r"cannot be found, for importing theirs raised SystemExit in line 1 of theirs\.py: mend it"),
]


@pytest.mark.parametrize(("code", "sentence"), FAULTS, ids=[code.partition("\n")[0] for code, _ in FAULTS])
def test_code_that_gives_no_model_is_refused_with_the_reason_and_its_cause(module, tmp_path, code, sentence):
    (tmp_path / "theirs.py").write_text(code)
    path = list(sys.path)
    with pytest.raises(UserError, match=f"^theirs:Net {sentence}") as error:
        imported_model("theirs:Net")
    assert "\n" not in str(error.value) and error.value.__cause__ is not None
    assert sys.path == path


def test_a_class_in_place_of_a_model_is_refused(module, tmp_path):
    (tmp_path / "theirs.py").write_text("class Net: ...\ndef build(): return Net")
    with pytest.raises(UserError, match=r"gives the class Net: wanted is a torch\.nn\.Module that gives logits"):
        imported_model("theirs:build")


def test_a_function_may_import_from_the_present_folder_itself(module, tmp_path):
    (tmp_path / "other.py").write_text("def build():\n    from theirs import build as inner\n\n    return inner()\n")
    assert isinstance(imported_model("other:build"), nn.Sequential)
    sys.modules.pop("other")


def test_weights_load_into_an_architecture_by_its_name(tmp_path):
    torch.manual_seed(0)
    model, data = (
        small_cnn(7, (1, 8, 8), width=4),
        TensorData(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), ("a", "b")),
    )
    model.normalize = Normalize([0.3], [0.7])
    torch.save(model.state_dict(), tmp_path / "w.pt")
    again = named_model("small_cnn:width=4", tmp_path / "w.pt", data)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(again(x), model(x)), "as many classes as the weights have, not as the images"


def test_robustbench_names_load_too(tmp_path):
    torch.manual_seed(0)
    model, data = (
        preact_resnet18(10, (3, 8, 8), width=0.05),
        TensorData(torch.zeros(2, 3, 8, 8), torch.arange(2), ("a", "b")),
    )
    state = {n.removeprefix("body.").replace("head.", "linear."): t for n, t in model.state_dict().items()}
    torch.save({"state_dict": {"module." + n: t for n, t in state.items()}}, tmp_path / "w.pt")
    again = named_model("preact_resnet18:width=0.05", tmp_path / "w.pt", data).eval()
    x = torch.rand(3, 3, 8, 8)
    assert torch.equal(again(x), model.eval()(x))


# what RobustBench calls the last layer; small_cnn is none of its architectures
PUBLISHED = {
    "preact_resnet18:width=0.05": "linear.",
    "preact_resnet18:width=0.05,final_norm=True,shortcut=activated": "linear.",
    "resnet18:width=0.05": "linear.",
    "wide_resnet:depth=10,width=1": "fc.",
    "resnet50:width=0.05": "linear.",
    "dm_wide_resnet:depth=10,width=1": "logits.",
    "dm_preact_resnet18:width=0.05": "logits.",
    "ra_wide_resnet:blocks=(1,1,1),channels=(4,8,8,8)": "logits.",
    "robust_wide_resnet:blocks=(1,1,1),widths=(1,1,1)": "fc.",
}
SPECS = (*PUBLISHED, "small_cnn:width=4")


def test_every_architecture_that_has_a_name_is_tried_below():
    assert {spec.partition(":")[0] for spec in SPECS} == set(_ARCHITECTURES) - {"imagenet_resnet"}, "that needs timm"


def published(model, head):
    """A state dict as RobustBench's models have it, with what some of their wide ResNets carry and never run."""
    state = {n.removeprefix("body.").replace("head.", head): t for n, t in model.state_dict().items()}
    mean, std = state.pop("normalize.mean"), state.pop("normalize.std")
    copies = {f"sub_{n}": torch.randn_like(t.float()) for n, t in state.items() if n.startswith("block1.")}
    return {"mu": mean, "sigma": std, **state, **copies}


def lived_in(spec):
    """The model of `spec`, with weights and statistics that are not those of a new one."""
    torch.manual_seed(0)
    name, _, options = spec.partition(":")
    model = _ARCHITECTURES[name](num_classes=7, shape=(3, 16, 16), **options_of(options))
    model.normalize = Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.25])
    for _ in range(3):
        model(torch.rand(8, 3, 16, 16))
    return model.eval()


@torch.no_grad()
def gap(spec, state, model, folder):
    """The largest difference between logits of `model` and of the architecture `spec` filled with `state`."""
    torch.save(state, folder / "w.pt")
    x, data = torch.rand(4, 3, 16, 16), TensorData(torch.zeros(2, 3, 16, 16), torch.arange(2), ("a", "b"))
    return float((named_model(spec, folder / "w.pt", data).eval()(x) - model(x)).abs().max())


@pytest.mark.parametrize("spec", SPECS)
def test_every_named_architecture_gives_the_logits_of_the_module_that_its_weights_came_from(tmp_path, spec):
    model = lived_in(spec)
    assert gap(spec, model.state_dict(), model, tmp_path) <= 1e-6


@pytest.mark.parametrize("spec", PUBLISHED)
def test_so_it_does_under_the_names_of_robustbench(tmp_path, spec):
    model = lived_in(spec)
    state = published(model, PUBLISHED[spec])
    assert ("sub_block1.layer.0.conv1.weight" in state) == (PUBLISHED[spec] == "fc.")
    assert gap(spec, state, model, tmp_path) <= 1e-6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet81", "no architecture 'resnet81': did you mean"),
        ("small_cnn:deep=3", "small_cnn:deep=3 cannot be built .*deep"),
        ("small_cnn:width=8", "another architecture"),
        ("small_cnn:width", "small_cnn:width cannot be built"),
        ("small_cnn:width=-1", "small_cnn:width=-1 cannot be built .*change its options"),
        ("small_cnn:width={[]:1}", "cannot be built"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused(tmp_path, spec, message):
    torch.save(small_cnn(3, (1, 8, 8), width=4).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=message):
        named_model(spec, tmp_path / "w.pt", TensorData(torch.zeros(2, 1, 8, 8), torch.arange(2), ("a", "b")))


def test_normalisation_can_be_given():
    model, x = toy_net().eval(), torch.rand(3, 1, 4, 4)
    assert torch.allclose(normalized(model, [0.5], [0.25])(x), model((x - 0.5) / 0.25))
    assert torch.allclose(normalized(model, 0.5, [0.25])(x), model((x - 0.5) / 0.25)), "a number is for all channels"
    assert normalized(model, np.float32(0.5), [0.1, 0.2, 0.3])[0].mean.flatten().tolist() == [0.5] * 3
    for std in ([0.25, 0.25], [0.0] * 3, [float("nan")]):
        with pytest.raises(UserError, match="mean and std need as many numbers"):
            normalized(model, [0.5] * 3, std)


def test_a_test_set_need_not_hold_every_class(tmp_path):
    data = toy_data(10)
    np.savez(tmp_path / "t.npz", x_test=pixels(data.x).numpy(), y_test=np.zeros(10, dtype=np.int64))
    assert len(fitting(toy_net().eval(), load_test(f"npz:{tmp_path / 't.npz'}")).classes) == 3


def test_images_of_another_shape_are_refused(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.zeros((4, 9, 9), np.uint8), y=np.arange(4))
    with pytest.raises(UserError, match=r"the model cannot take images of shape \(1, 9, 9\)"):
        fitting(toy_net().eval(), load_test(f"npz:{tmp_path / 't.npz'}"))


def test_whatever_a_foreign_model_raises_on_images_is_named(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.zeros((4, 4, 4), np.uint8), y=np.arange(4))
    model = nn.Module()  # without a forward
    with pytest.raises(UserError, match=r"cannot take images of shape \(1, 4, 4\) \(NotImplementedError: "):
        fitting(model, load_test(f"npz:{tmp_path / 't.npz'}"))


def test_test_images_have_names(tmp_path):
    x, y = np.zeros((4, 5, 5), np.uint8), np.arange(4)
    np.savez(tmp_path / "a.npz", x_test=x, y_test=y)
    np.savez(tmp_path / "b.npz", x=x, y=y)
    np.savez(tmp_path / "c.npz", images=x)
    for name in "ab":
        found = load_test(f"npz:{tmp_path / name}.npz")
        assert found.x.shape == (4, 1, 5, 5)
        assert len(found.classes) == 4
    assert len(load_test("digits")) == 360
    with pytest.raises(UserError, match=r"holds images: wanted are x_test and y_test, or x and y"):
        load_test(f"npz:{tmp_path / 'c.npz'}")
    with pytest.raises(UserError, match="No such file"):
        load_test("npz:nowhere.npz")
    with pytest.raises(UserError, match="no data called 'cifar': did you mean cifar10"):
        load_test("cifar")
