"""The forms in which an evaluation takes images, models and attacks, in Python and from the shell."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import toy_data, toy_net
from PIL import Image
from torch import nn

from sparring import PGD, Linf, TensorData, UserError, WhiteBox, audit, evaluate, fit, perturb
from sparring.cli import run as shell
from sparring.core.types import pixels
from sparring.data import NPZ, load_test
from sparring.evaluation import AuditBudget

pytestmark = pytest.mark.slow


@pytest.fixture
def forms(tmp_path):
    """The same 20 test images as a name, a source, a pair and arrays."""
    data, test = toy_data(60), toy_data(20, seed=1)
    x, y, x_test, y_test = (pixels(data.x), data.y, pixels(test.x), test.y)
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return {
        "arrays": (x_test, y_test),
        "name": f"npz:{path}",
        "source": NPZ(str(path)),
        "pair": ((x, y), (x_test, y_test)),
        "data": TensorData(x_test, y_test, ("a", "b", "c")),
    }


def test_an_evaluation_takes_the_test_part_of_whatever_training_takes(forms):
    model = toy_net().eval()
    found = {name: evaluate(model, data, "pgd", eps=0.1) for name, data in forms.items()}
    assert len({tuple(each.robust["pgd"].tolist()) for each in found.values()}) == 1
    assert found["name"].table()["clean"].examples == 20


def test_an_audit_does_too(forms):
    few = AuditBudget(steps=2, queries=5, surrogate_steps=2)
    model = toy_net().eval()
    found = [[each.plain() for each in audit(model, forms[name], eps="0.1", budget=few)] for name in ("name", "pair")]
    assert found[0] == found[1]
    with pytest.raises(UserError, match="an audit needs eps"):
        audit(model, forms["name"])
    with pytest.raises(UserError, match="eps is the radius in Linf, and threat names a set"):
        audit(model, forms["name"], "l2:1", eps=0.1)


def test_a_model_of_normalised_images_is_evaluated(forms):
    class Scaled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x * 0.25 + 0.5)

    plain, inner = toy_net().eval(), None
    inner = Scaled(plain)
    found = evaluate(inner, forms["arrays"], "pgd", eps=0.1, normalize=([0.5], [0.25]))
    assert found.table() == evaluate(plain, forms["arrays"], "pgd", eps=0.1).table()
    with pytest.raises(UserError, match="mean and std need as many numbers"):
        evaluate(plain, forms["arrays"], "pgd", eps=0.1, normalize=([0.5], [0.0]))


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "randomnets.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n\n\n"
        "def wide():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20))\n"
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("randomnets", None)


FEW = ["--data", "digits", "--examples", "30", "--json"]


def test_weights_that_are_drawn_are_drawn_from_the_seed(here, capsys):
    found = []
    for seed in ("0", "0", "1"):
        torch.rand(1)  # whatever was drawn before
        command = ["evaluate", "randomnets:build", *FEW, "--attack", "fgsm", "--eps", "0.01", "--seed", seed]
        assert shell(command) == 0
        found.append(json.loads(capsys.readouterr().out)["model"])
    assert found[0] == found[1] != found[2]
    assert set(found[0]) == {"clean", "fgsm", "summary"}


def test_a_model_of_more_classes_than_the_data_gets_a_note(here, capsys):
    assert shell(["evaluate", "randomnets:wide", *FEW, "--attack", "fgsm", "pgd", "--threat", "l2:0.1"]) == 0
    out, err = capsys.readouterr()
    assert set(json.loads(out)["model"]) == {"clean", "fgsm", "pgd", "summary"}
    assert "note: the model gives 20 classes and the data have 10: label k is compared with output k" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--attack", "pdg", "--eps", "0.1"], "no attack 'pdg': did you mean pgd"),
        (["--attack", "pgd"], "no recipe or flag gives the threat"),
        (["--threat", "l2:1", "--eps", "0.1"], "--eps is the radius in Linf, and --threat names a set with its own"),
    ],
)
def test_an_attack_that_is_not_clear_gets_a_sentence(here, args, message, capsys):
    assert shell(["evaluate", "randomnets:build", *FEW, *args]) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_gives_the_set_for_a_model_of_ones_own(here, capsys):
    command = ["evaluate", "randomnets:build", *FEW, "--attack", "fgsm", "--recipe", "quickstart"]
    assert shell(command) == 0
    assert set(json.loads(capsys.readouterr().out)["model"]) == {"clean", "fgsm", "summary"}


def test_a_run_is_evaluated_by_attacks_and_weights_of_ones_choice(tiny, tmp_path, capsys):
    run = fit(tiny, tmp_path / "r", progress=False)
    command = ["evaluate", str(run.path), "--attack", "fgsm", "pgd", "--weights", "best"]
    assert shell([*command, "--evaluation.examples", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"best"}
    assert set(found["best"]) == {"clean", "fgsm", "pgd", "summary"}


def test_the_first_pictures_of_a_folder_are_of_all_classes(tmp_path):
    for kind in ("ant", "bee", "cat"):
        (tmp_path / "test" / kind).mkdir(parents=True)
        for i in range(20):
            colours = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(colours).save(tmp_path / "test" / kind / f"{i}.png")
    y = load_test(f"folder:{tmp_path}").y
    assert len(y[:12].unique()) == 3
    assert torch.equal(y, load_test(f"folder:{tmp_path}").y)


def test_the_help_of_a_run_of_code_that_is_not_trusted_is_shown(tmp_path, capsys):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "recipe.json").write_text('{"$": "elsewhere:Thing"}')
    assert shell(["evaluate", str(tmp_path / "r"), "--help"]) == 0
    assert "usage: sparring evaluate TARGET" in capsys.readouterr().out


def test_what_names_no_attack_gets_a_sentence():
    with pytest.raises(UserError, match="no attack is named"):
        evaluate(toy_net().eval(), toy_data(), [])
    with pytest.raises(UserError, match="a set has no order: name the attacks in a list"):
        evaluate(toy_net().eval(), toy_data(), {"fgsm", "pgd"}, eps=0.1)
    with pytest.raises(UserError, match="WhiteBox is an adversary, which has its own loss: wanted is the attack alone"):
        perturb(toy_net().eval(), torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), WhiteBox(PGD(Linf(0.1))))


class Plain:
    """An attack of an ordinary class that gives what it is told to."""

    def __init__(self, give):
        self.threat, self.give = Linf(0.1), give

    def __call__(self, loss, x, rng):
        return self.give(x)


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (
            lambda x: x + 0.5,
            r"mine gives pixels in \[.*\], outside \[0, 1\]: let the attack bring its points back, as thr",
        ),
        (lambda x: x * float("nan"), "mine gives NaN or infinite pixels .* or the attack makes them itself"),
        (
            lambda x: x[:1],
            r"mine gives torch.float32 of shape \(1, .*: an attack gives floats of the shape that it takes",
        ),
        (lambda x: x.long(), r"mine gives torch.int64 of shape"),
        (lambda x: None, "mine gives a NoneType: an attack gives floats of the shape that it takes"),
    ],
)
def test_what_an_attack_gives_that_is_no_image_is_said_of_the_attack(give, message):
    with pytest.raises(UserError, match=message):
        evaluate(toy_net().eval(), toy_data(), {"mine": Plain(give)})
