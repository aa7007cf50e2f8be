import sys

import numpy as np
import pytest
import torch
from conftest import toy_data, toy_net
from torch import nn

from sparring import Data, UserError
from sparring.core import pixels
from sparring.data import load_test
from sparring.foreign import fitting, imported_model, named_model, normalized
from sparring.models import Normalize, preact_resnet18, small_cnn


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


def test_a_function_may_import_from_the_present_folder_itself(module, tmp_path):
    (tmp_path / "other.py").write_text("def build():\n    from theirs import build as inner\n\n    return inner()\n")
    assert isinstance(imported_model("other:build"), nn.Sequential)
    sys.modules.pop("other")


def test_weights_load_into_an_architecture_by_its_name(tmp_path):
    torch.manual_seed(0)
    model, data = small_cnn(7, (1, 8, 8), width=4), Data(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), ("a", "b"))
    model.normalize = Normalize([0.3], [0.7])
    torch.save(model.state_dict(), tmp_path / "w.pt")
    again = named_model("small_cnn:width=4", tmp_path / "w.pt", data)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(again(x), model(x)), "as many classes as the weights have, not as the images"


def test_robustbench_names_load_too(tmp_path):
    torch.manual_seed(0)
    model, data = preact_resnet18(10, (3, 8, 8), width=0.05), Data(torch.zeros(2, 3, 8, 8), torch.arange(2), ("a", "b"))
    state = {n.removeprefix("body.").replace("head.", "linear."): t for n, t in model.state_dict().items()}
    torch.save({"state_dict": {"module." + n: t for n, t in state.items()}}, tmp_path / "w.pt")
    again = named_model("preact_resnet18:width=0.05", tmp_path / "w.pt", data).eval()
    x = torch.rand(3, 3, 8, 8)
    assert torch.equal(again(x), model.eval()(x))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet81", "no architecture 'resnet81': did you mean"),
        ("small_cnn:deep=3", "small_cnn:deep=3: .*deep"),
        ("small_cnn:width=8", "another architecture"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused(tmp_path, spec, message):
    torch.save(small_cnn(3, (1, 8, 8), width=4).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=message):
        named_model(spec, tmp_path / "w.pt", Data(torch.zeros(2, 1, 8, 8), torch.arange(2), ("a", "b")))


def test_normalisation_can_be_given():
    model, x = toy_net().eval(), torch.rand(3, 1, 4, 4)
    assert torch.allclose(normalized(model, [0.5], [0.25])(x), model((x - 0.5) / 0.25))
    with pytest.raises(UserError, match="mean and std have as many numbers"):
        normalized(model, [0.5], [0.25, 0.25])


def test_a_test_set_need_not_hold_every_class(tmp_path):
    data = toy_data(10)
    np.savez(tmp_path / "t.npz", x_test=pixels(data.x).numpy(), y_test=np.zeros(10, dtype=np.int64))
    assert len(fitting(toy_net().eval(), f"npz:{tmp_path / 't.npz'}").classes) == 3


def test_images_of_another_shape_are_refused(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.zeros((4, 9, 9), np.uint8), y=np.arange(4))
    with pytest.raises(UserError, match=r"the model cannot take images of shape \(1, 9, 9\)"):
        fitting(toy_net().eval(), f"npz:{tmp_path / 't.npz'}")


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
    with pytest.raises(UserError, match="there is no file"):
        load_test("npz:nowhere.npz")
    with pytest.raises(UserError, match="no data called 'cifar': did you mean cifar10"):
        load_test("cifar")
