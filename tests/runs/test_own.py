"""A model, data and a method of the user's own: the same run as a recipe's."""

import importlib
import json
import math
import os
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import toy_data
from forked import ended, started
from helpers import bits, stop_at
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sparring
from sparring import L2, MART, PGD, TRADES, Build, Classifier, CrossEntropy, Linf, Method, RunFolder, UserError, fit
from sparring.core import foreign
from sparring.core.schedules import Cyclic
from sparring.core.serialization import from_plain, to_plain
from sparring.data.given import as_source
from sparring.models import Normalize, small_cnn
from sparring.recipes.small import quickstart
from sparring.runs.given import GivenModel, as_model
from sparring.runs.load import evaluate_run, load_model
from sparring.runs.methods import METHODS, method_named
from sparring.runs.own import recipe_for
from sparring.runs.recipe import Evaluation, recipe_from_plain
from sparring.training import Free, Saving

pytestmark = pytest.mark.slow

X = np.random.default_rng(0).random((300, 8, 8)).astype(np.float32)
Y = (X.mean((1, 2)) > 0.5).astype(int) + (X[:, :4].mean((1, 2)) > X[:, 4:].mean((1, 2)))
SHORT = {"epochs": 2, "steps": 2, "batch_size": 50, "held_out": 0.2}
FEW = {**SHORT, "progress": False}


class Net(nn.Module):
    """A network as people write them: it knows nothing of this package."""

    def __init__(self, classes=3):
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 36, classes)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.convolution(x))).flatten(1))


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(foreign, "_TRUSTED", set())
    monkeypatch.setattr(foreign, "_GIVEN", set())


def test_three_lines_train_evaluate_and_attack(capsys):
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = fit(model, (X, Y), method="trades", eps="8/255", epochs=1, steps=2)
    loader = DataLoader(TensorDataset(torch.from_numpy(X[:, None]), torch.from_numpy(Y)), batch_size=64)
    found = sparring.evaluate(model, loader, "pgd", eps="8/255")
    x_adv = sparring.perturb(model, torch.from_numpy(X[:9, None]), torch.from_numpy(Y[:9]), PGD(Linf("8/255"), 2))
    assert x_adv.shape == (9, 1, 8, 8)
    assert run.path.as_posix() == "runs/net-trades" and run.finished()
    assert "runs/net-trades: trained 2 steps; best after step 2, held-out accuracy" in repr(run)
    assert repr(found).startswith("accuracy on 300 images, with 95 % intervals\nclean  ") and "\npgd    " in repr(found)
    assert "epoch 1/1  step 2/2" in capsys.readouterr().err, "progress is shown unless it is turned off"
    best = load_model(run.path, recipe_for(model, (X, Y), method="trades", eps="8/255", epochs=1, steps=2))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), best.state_dict().values(), strict=True))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training, "in the mode in which it was given"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_a_network_of_ones_own(name):
    model = Classifier.split(net(), torch.from_numpy(X[:2, None])) if name == "fare" else net()  # it asks for features
    run = fit(model, (X[:150], Y[:150]), method=name, eps=0.1, folder="r", **{**FEW, "epochs": 1})
    assert np.isfinite([value for row in run.metrics() for value in row.get("terms", {}).values()]).all()


def test_a_method_is_also_a_value_or_an_objective():
    assert recipe_for(net(), (X, Y), method=MART(), eps=0.1).method == Method(PGD(Linf(0.1), 10, 0.025), MART())
    method = Method(PGD(L2(0.5), 3), TRADES())
    assert recipe_for(net(), (X, Y), method=method).method is method
    assert recipe_for(net(), (X, Y), method=method).selection.threat == L2(0.5)
    assert recipe_for(net(), (X, Y), method=Free(Linf(0.1))).method == Free(Linf(0.1))
    assert recipe_for(net(), (X, Y), threat="l2:0.5").method == Method(PGD(L2(0.5), 10, 0.125), CrossEntropy())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "eps is missing"),
        ({"eps": 8}, "did you mean 8/255"),
        ({"eps": 0.1, "threat": "l2:1"}, "give one of them"),
        ({"eps": 0.1, "method": "trade"}, "no method 'trade': did you mean trades"),
        ({"eps": 0.1, "method": 7}, "give the name of a method"),
        (
            {"eps": 0.3, "method": Method(PGD(Linf(0.1), 2), CrossEntropy())},
            r"stays in Linf\(eps=0.1\), and Linf",
        ),
        ({"threat": "l2:1", "method": "n-fgsm"}, "n-fgsm is defined for Linf, not for L2"),
    ],
)
def test_a_method_that_cannot_be_meant_gets_a_sentence(how, message):
    with pytest.raises(UserError, match=message):
        fit(net(), (X, Y), **how)


def test_what_a_recipe_says_is_not_said_beside_it(tiny, tmp_path):
    for how, named in (
        ({"seed": 1}, "seed"),
        ({"eps": 0.1, "lr": 0.5}, "eps and lr"),
        ({"folder": "runs/a"}, "folder"),
    ):
        with pytest.raises(UserError, match=f"^{named} beside a recipe"):
            fit(tiny, tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (lambda: nn.Linear(3, 3), (X, Y), r"cannot take images of shape \(1, 8, 8\) \(RuntimeError: mat1"),
        (lambda: Net(10), (X, Y), "the model gives 10 classes, but the data have 3"),
        (lambda: nn.Sequential(Net(), nn.Softmax(1)), (X, Y), "gives probabilities"),
        (lambda: 7, (X, Y), "the model is a int: give a torch.nn.Module"),
        (lambda: {"state": 1}, (X, Y), "the model is a dict"),
        (net, X, "data is a ndarray: give"),
        (net, (X[:20], Y[:20]), "batches of 50 do not go with 16 training images"),
    ],
)
def test_a_model_or_data_that_do_not_fit_get_a_sentence(model, data, message):
    with pytest.raises(UserError, match=message):
        fit(model(), data, eps=0.1, **FEW)


def test_functions_are_named_and_objects_described():
    data = as_source((X, Y))
    assert as_model(net, data, 0) == Build(net) and as_model(Net, data, 0) == Build(Net)
    found = as_model(lambda: net(1), data, 0)
    assert isinstance(found, GivenModel) and found.kind == "Net with 483 weights"
    assert found == as_model(Net(), data, 0) != as_model(Net(4), data, 0)
    plain = json.loads(json.dumps(to_plain(found)))
    assert from_plain(plain) == found
    with pytest.raises(UserError, match=r"as an object \(Net with 483 weights\).*hand it over again"):
        from_plain(plain)()
    with pytest.raises(UserError, match="gives a int: wanted is a torch"):
        as_model(lambda: 3, data, 0)


def test_a_function_may_take_the_number_of_classes_and_the_shape():
    made = recipe_for(net, (X, Y), eps=0.1)
    assert isinstance(made.build_model(toy_data()), Net)
    ours = recipe_for(small_cnn, (X, Y), eps=0.1)
    assert ours.build_model(ours.data.load()[0]).head.out_features == 3


def test_a_function_without_a_name_is_called_as_one_with_a_name_from_the_seed():
    def closure(num_classes, shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_classes))

    made = [recipe_for(closure, (X, Y), eps=0.1, seed=seed).model().state_dict() for seed in (3, 3, 4)]
    assert made[0]["1.weight"].shape == (3, 64)
    assert torch.equal(made[0]["1.weight"], made[1]["1.weight"])
    assert not torch.equal(made[0]["1.weight"], made[2]["1.weight"])
    torch.manual_seed(3)
    assert torch.equal(made[0]["1.weight"], closure(3, (1, 8, 8))[1].weight), "as the same function with a name"


def test_a_model_is_not_normalised_twice_and_a_rate_is_a_number():
    inside = nn.Sequential(Normalize([0.5], [0.25]), net())
    with pytest.raises(UserError, match="the model has its own normalisation in front, and would be normalised twice"):
        fit(inside, (X, Y), eps=0.1, normalize=([0.5], [0.25]), folder="r", **FEW)
    with pytest.raises(UserError, match="mean and std need as many numbers each, and those of std above 0"):
        fit(net(), (X, Y), eps=0.1, normalize=([0.5], [0.0]), folder="r2", **FEW)
    with pytest.raises(UserError, match=r"pixels are in \[0, 1\], and so are their means, unlike \(128\.0,\)"):
        fit(net(), (X, Y), eps=0.1, normalize=(128, 64), folder="r3", **FEW)
    with pytest.raises(UserError, match="and so are their means"):  # also where the function normalises by itself
        fit(small_cnn, (X, Y), eps=0.1, normalize=(128, 64), folder="r6", **FEW)
    with pytest.raises(UserError, match="there are 3 means and images of 1 channels"):
        fit(net(), (X, Y), eps=0.1, normalize=([0.5] * 3, [0.2] * 3), folder="r4", **FEW)
    with pytest.raises(UserError, match="there are 3 means and images of 1 channels"):
        sparring.evaluate(net(), (X, Y), "fgsm", eps=0.1, normalize=([0.5] * 3, [0.2] * 3))
    with pytest.raises(UserError, match="no parameter of the model is trainable"):
        fit(net().requires_grad_(False), (X, Y), eps=0.1, folder="r5", **FEW)
    with pytest.raises(UserError, match=r"lr = -0\.05 is no learning rate"):
        replace(quickstart(), lr=-0.05)
    with pytest.raises(UserError, match="lr = -1 is no learning rate"):
        replace(quickstart(), lr=Cyclic(-1.0))


def test_normalisation_is_put_in_front_of_a_model_that_expects_it():
    model = net()
    run = fit(model, (X, Y), eps=0.1, normalize=([0.5], [0.25]), folder="r", **FEW)
    recipe = recipe_for(model, (X, Y), eps=0.1, normalize=([0.5], [0.25]), **SHORT)
    best = load_model(run.path, recipe)
    assert isinstance(best[0], Normalize)
    x = torch.from_numpy(X[:5, None])
    assert torch.allclose(best(x), model.eval()((x - 0.5) / 0.25), atol=1e-6), "the object itself stays bare"
    again = recipe_from_plain(json.loads(json.dumps(recipe.plain())))
    assert again == recipe


@pytest.mark.parametrize("kind", ["object", "function", "data set"])
def test_an_interrupted_run_goes_on_bit_for_bit(kind):
    model = net if kind == "function" else net()
    data = TensorDataset(torch.from_numpy(X[:, None]), torch.from_numpy(Y)) if kind != "object" else (X, Y)
    if kind == "data set":
        data = Shaken()
    whole = fit(model, data, eps=0.1, folder="whole", **FEW)
    model = net if kind == "function" else net()
    with pytest.raises(sparring.training.Interrupted):
        fit(model, data, eps=0.1, folder="half", on_progress=stop_at(3), **FEW)
    half = fit(model, data, eps=0.1, folder="half", **FEW)
    for which in ("best", "last"):
        assert bits(whole, which) == bits(half, which)


class Shaken(torch.utils.data.Dataset):
    """A data set with an augmentation that draws from torch's global generator."""

    targets = Y.tolist()

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return (torch.from_numpy(X[i])[None] + 0.1 * torch.rand(1)).clamp(0, 1), int(Y[i])


def test_another_model_or_other_data_do_not_go_on_with_a_run():
    with pytest.raises(sparring.training.Interrupted):
        fit(net(), (X, Y), eps=0.1, folder="r", on_progress=stop_at(3), **FEW)
    with pytest.raises(UserError, match=r"another recipe \(model.kind: Net with 483 weights -> Net with 628 weights"):
        fit(Net(4), (X, Y), eps=0.1, folder="r", **FEW)
    with pytest.raises(UserError, match=r"another recipe \(data.fingerprint"):
        fit(net(), (X + 0.001 * (X < 0.5), Y), eps=0.1, folder="r", **FEW)


def test_a_run_is_evaluated_on_its_own_test_data():
    data = ((X[:200], Y[:200]), (X[200:], Y[200:]))
    run = fit(net(), data, eps=0.1, folder="r", **FEW)
    recipe = replace(recipe_for(net(), data, eps=0.1, **SHORT), evaluation=Evaluation({}))
    assert evaluate_run(str(run.path), recipe)["best"].table()["clean"].examples == 100
    alone = fit(net(), (X, Y), eps=0.1, folder="alone", **FEW)
    recipe = recipe_for(net(), (X, Y), eps=0.1, **SHORT)
    with pytest.raises(UserError, match="no test data were given"):
        evaluate_run(alone, recipe)


def train_theirs(folder):
    """In a process that has not seen the objects of this one."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    build = importlib.import_module("their_nets").build
    fit(build, (X[:100], np.arange(100) % 3), eps=0.1, epochs=1, steps=1, batch_size=30, folder="r")


def test_a_finished_run_is_read_where_its_module_is_trusted(tmp_path):
    (tmp_path / "their_nets.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    assert ended(started(train_theirs, tmp_path)) == 0
    with pytest.raises(UserError, match=r"recipe.model names their_nets:build, which is code of another package"):
        load_model("r")
    foreign.trust("their_nets")
    assert isinstance(load_model("r"), nn.Sequential)
    (tmp_path / "their_nets.py").write_text((tmp_path / "their_nets.py").read_text() + "# changed\n")
    foreign._hash.cache_clear()
    with pytest.warns(UserWarning, match="the source of their_nets:build has changed"):
        load_model("r")


def train_mine(folder, last):
    """Train a net of one's own, with a checkpoint after each step; the process is killed after step `last`."""
    how = {**SHORT, "epochs": 4, "batch_size": 30, "saving": Saving(steps=1), "progress": False}

    def kill(news):
        if news.progress.step >= last:
            os.kill(os.getpid(), signal.SIGKILL)

    fit(net(), (X[:200], Y[:200]), method="mart", eps=0.1, folder=folder, on_progress=kill, **how)


def test_a_run_of_ones_own_that_is_killed_ends_with_the_same_bits(tmp_path):
    train_mine(tmp_path / "whole", math.inf)
    assert [ended(started(train_mine, tmp_path / "killed", step)) for step in (2, 9, 15)] == 3 * [-signal.SIGKILL]
    assert not RunFolder("killed").finished()
    train_mine(tmp_path / "killed", math.inf)
    for which in ("best", "last"):
        assert bits(RunFolder("killed"), which) == bits(RunFolder("whole"), which)


def test_method_named_takes_the_names_of_the_field():
    assert method_named("TRADES", Linf(0.1))["method"].objective == TRADES(6.0)
    assert method_named("fgsm_rs", Linf(0.1))["method"].attack.step_size == pytest.approx(0.125)


class Darker(Linf):
    """A set of the user's own: pixels become darker only."""

    def project(self, z, x):
        return torch.minimum(super().project(z, x), x)


class Own:
    """The same set as a class that this package does not know."""

    eps = 0.1

    def sample(self, x, rng):
        return Darker(0.1).sample(x, rng)

    def project(self, z, x):
        return Darker(0.1).project(z, x)

    def ascent(self, grad):
        return Darker(0.1).ascent(grad)

    def norm(self, delta):
        return Darker(0.1).norm(delta)


def test_methods_by_name_take_a_set_of_ones_own():
    for name in ("pgd", "trades", "mart"):
        assert recipe_for(net, (X, Y), method=name, threat=Darker(0.1)).method.attack.threat == Darker(0.1)
    with pytest.raises(UserError, match="n-fgsm is defined for Linf, not for Own"):
        recipe_for(net, (X, Y), method="n-fgsm", threat=Own())
