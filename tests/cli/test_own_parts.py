"""A model, data, a method and recipes of the user's own, from the shell."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import bits, stop_at
from torch import nn

from sparring import FGSM, L2, PGD, Linf, UserError, fit
from sparring.attacks import NFGSM
from sparring.cli import listing, structure
from sparring.cli import run as shell
from sparring.cli.new import written
from sparring.cli.structure import Structure, changed, model_named, own_recipe, recipe_of_config, taken
from sparring.core import foreign
from sparring.core.public_names import CALLS
from sparring.core.schedules import Cosine, ExponentialDecay, Linear, MultiStep, WarmUp
from sparring.data.named import _KNOWN
from sparring.evaluation.named import ADVERSARIES
from sparring.objectives import TRADES
from sparring.recipes import find
from sparring.records import RunFolder
from sparring.runs.external_models import LIBRARIES
from sparring.runs.methods import METHODS
from sparring.runs.parts import ATTACKS, OPTIMIZERS, SCHEDULES
from sparring.training import Interrupted
from sparring.training.optimizers import Adam, AdamW

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "05_a_method_of_your_own.py"

CODE = """
from dataclasses import dataclass, replace

import torch
from torch import nn

from sparring import PGD, CrossEntropy, Linf, Method, Objective
from sparring.attacks.gradients import input_grad
from sparring.recipes.small import quickstart


def build(width: int = 4, num_classes: int = 3):
    body = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(36 * width, num_classes))


def tiny(eps: float = 0.1):
    '''A recipe of my own.'''
    return replace(quickstart(eps), epochs=1, method=Method(PGD(Linf(eps), 1), CrossEntropy()))


def failing(num_classes: int = 3):
    raise RuntimeError("no weights there")


def pretrained(num_classes: int = 3):
    made = build(2, num_classes)
    made(torch.rand(4, 1, 8, 8)).sum().backward()
    return made


def needing(eps):
    return tiny(eps)


@dataclass(frozen=True)
class Signs:
    threat: Linf
    steps: int = 3

    def __call__(self, loss, x, rng):
        z = x
        for _ in range(self.steps):
            z = self.threat.project(z + self.threat.eps * input_grad(loss, z).sign(), x)
        return z


def nothing():
    return 1


def text(threat):
    return "pgd"


word = "no function"
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(foreign, "_TRUSTED", set())
    monkeypatch.setattr(foreign, "_GIVEN", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_parts.py").write_text(CODE)
    x = np.random.default_rng(0).integers(0, 256, (150, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", x_train=x, y_train=np.arange(150) % 3, x_test=x[:30], y_test=np.arange(30) % 3)
    yield tmp_path
    sys.modules.pop("own_parts", None)


OWN = ["train", "--model", "own_parts.py:build", "--data", "npz:own.npz"]


def test_a_model_and_data_of_ones_own_are_trained_and_evaluated(here, capsys):
    more = ["--method", "trades", "--eps", "8/255", "--epochs", "1", "--method.attack.steps", "1", "--model.width", "2"]
    assert shell([*OWN, *more, "--evaluation.examples", "9"]) == 0
    out = capsys.readouterr().out
    assert "runs/build-trades: trained 1 steps" in out
    assert "evaluate runs/build-trades --trust own_parts" in out
    monkey = foreign._TRUSTED, foreign._GIVEN
    for each in monkey:
        each.clear()
    assert shell(["evaluate", "runs/build-trades"]) == 2
    assert "--trust own_parts" in capsys.readouterr().err
    few = ["--evaluation.adversaries.pgd-50-10.attack.times", "1", "--evaluation.examples", "9"]
    assert shell(["evaluate", "runs/build-trades", "--trust", "own_parts", *few]) == 0
    out = capsys.readouterr().out
    assert "loss=CE" in out and "<class" not in out and "accuracy on 9 images" in out


def test_a_function_that_makes_a_model_may_train_it_and_may_fail(here, capsys):
    more = ["--data", "npz:own.npz", "--eps", "8/255", "--epochs", "1", "--method.attack.steps", "1"]
    assert shell(["train", "--model", "own_parts.py:pretrained", *more]) == 0
    assert shell(["train", "--model", "own_parts.py:failing", *more]) == 2
    assert "Build(failing) raised RuntimeError: no weights there" in capsys.readouterr().err


def test_a_recipe_of_ones_own_is_shown_and_trained(here, capsys):
    assert shell(["show", "own_parts.py:tiny"]) == 0
    assert "A recipe of my own." in capsys.readouterr().out
    assert shell(["train", "own_parts.py:tiny", "--eps", "0.2", "--evaluation.examples", "9"]) == 0
    assert "runs/own_parts-tiny: trained 20 steps" in capsys.readouterr().out


def test_a_recipe_goes_through_a_file_and_back(here, capsys):
    assert shell(["show", "quickstart", "--yaml"]) == 0
    text = capsys.readouterr().out
    path = here / "run.yaml"
    path.write_text(text.replace("epochs: 30", "epochs: 1"))
    assert recipe_of_config(path).epochs == 1 and recipe_of_config(path).plain() == yaml.safe_load(path.read_text())
    assert shell(["train", "--config", "run.yaml", "--method.attack.steps", "1"]) == 0
    assert "runs/run: trained 20 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [", "is no plain YAML"),
        ("!!python/object/apply:os.system ['true']", "is no plain YAML .could not determine a constructor"),
        ("- 1", "holds no recipe, but a list"),
        ("$: Recipe\nepoch: 3", "Recipe has no field 'epoch': did you mean epochs"),
        ("$: os:system", "names os:system, which is code of another package"),
    ],
)
def test_a_file_that_is_no_recipe_gets_a_sentence(here, text, message):
    (here / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        recipe_of_config(here / "bad.yaml")


def test_parts_of_a_recipe_are_exchanged(here):
    base = find("fashion_pgd")()
    new = changed(base, Structure(model="own_parts.py:build", data="npz:own.npz", method="trades"))
    assert new.method.objective == TRADES(6.0) and new.method.attack.steps == 5
    assert new.method.attack.threat == base.method.attack.threat
    assert new.update == base.update, "the clipping of the gradient stays"
    assert (new.selection, new.evaluation, new.epochs) == (base.selection, base.evaluation, base.epochs)
    assert isinstance(new.build_model(new.data.load()[0]), torch.nn.Sequential)
    within = changed(base, Structure(method="pgd", threat="l2:0.5"))
    assert "L2(eps=0.5)" in repr(within.selection) and "Linf" not in repr((within.method, within.evaluation))
    alone = changed(base, Structure(threat="l2:0.5"))
    assert alone.method.attack == replace(
        base.method.attack, threat=L2(0.5), step_size=base.method.attack.step_size * 5
    ), "a step keeps its share of eps, 0.1 before"
    assert "Linf" not in repr((alone.selection, alone.evaluation))
    assert model_named("wide_resnet:depth=16,width=2").options == {"depth": 16, "width": 2}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "--model", "own_parts.py:build"], "--data is missing: name a RECIPE to change, or both"),
        (["train", "--data", "npz:own.npz", "--eps", "0.1"], "--model is missing"),
        ([*OWN], "eps is missing"),
        ([*OWN, "--eps", "0.1", "--method", "tradess"], "no method 'tradess': did you mean trades"),
        (["train", "--model"], "--model needs a value"),
        (["train", "quickstart", "--config", "x.yaml"], "both the recipe quickstart and --config x.yaml are given"),
        (["train", "--config", "gone.yaml"], "gone.yaml cannot be read .No such file"),
        (["train", "quickstart", "--threat", "l3:1"], "l3"),
        (
            ["train", "cifar10_prn18_grad_align", "--threat", "l2:1"],
            "is decided in several places: name",
        ),
        (
            ["train", "quickstart", "--model", "own_parts.py:biuld"],
            "has no function 'biuld': did you mean build",
        ),
        (["train", "quickstart", "--model", "own_parts.py:word"], "has no function 'word'"),
        (["train", "quickstart", "--model", "gone.py:build"], "there is no file gone.py"),
        (["train", "quickstart", "--model", "smal_cnn"], "is not the name of a model, such as mymodels.py:build, or"),
        (["train", "quickstart", "--data", "npzz:x"], "no data called 'npzz:x'"),
        (["train", "no_module_of_mine:tiny"], "importing no_module_of_mine fails"),
        (["train", "own_parts.py:build"], "gives a Sequential: wanted is a Recipe"),
        (["show", "own_parts.py:build"], "gives a Sequential: wanted is a Recipe"),
        (["show", "own_parts.py:needing"], "needing has a parameter 'eps' without a default"),
        (["train", "--config", "some.yaml", "--eps", "0.1"], "with --config, write --threat linf:0.1"),
        (["list", "--trust"], "--trust needs the name of a module"),
    ],
)
def test_a_mistake_gets_a_sentence(here, capsys, args, message):
    assert shell(args) == 2
    assert message.replace(".No", "(No") in capsys.readouterr().err


def test_the_help_names_what_there_is():
    assert structure.METHODS.split(", ") == list(METHODS)
    named = {each.partition(":")[0] for each in structure.MODELS.split(", ")} - {"..."}
    assert named - {"width=10"} <= {name for names in CALLS.values() for name in names} | set(LIBRARIES)
    parts, rest = taken(["--model=a:b", "--lr", "0.1", "--eps", "1"], of_recipe=True)
    assert (parts.model, parts.eps, rest) == ("a:b", None, ["--lr", "0.1", "--eps", "1"])
    with pytest.raises(UserError, match="--model is missing"):
        own_recipe(Structure())


def test_a_method_of_ones_own_is_named_as_a_model_is(here, capsys):
    (here / "mine.py").write_text(
        "from sparring import MART, PGD, CrossEntropy, Method\n\n\nclass Mine(MART):\n    pass\n\n\n"
        "def short(threat, steps):\n    return Method(PGD(threat, 1), CrossEntropy())\n"
    )
    base = find("fashion_pgd")()
    new = changed(base, Structure(method="mine.py:Mine"))
    assert type(new.method.objective).__name__ == "Mine"
    assert new.method.attack.threat == base.method.attack.threat
    assert changed(base, Structure(method="mine.py:short")).method.attack.steps == 1
    assert shell([*OWN, "--method", "mine.py:Mine", "--eps", "0.1", "--epochs", "1", "--model.width", "2"]) == 0
    assert "runs/build-mine-Mine: trained" in capsys.readouterr().out
    sys.modules.pop("mine", None)


def test_attack_optimiser_and_schedule_are_exchanged(here):
    base = find("fashion_pgd")()
    threat = base.method.attack.threat
    parts = {"attack": "pgd:steps=20", "optimizer": "adamw:weight_decay=0.05", "schedule": "cosine:peak=0.02"}
    new = changed(base, Structure(**parts))
    assert new.method == replace(base.method, attack=PGD(threat, 20, threat.eps / 4))
    assert new.optimizer == AdamW(weight_decay=0.05)
    assert new.lr == Cosine(0.02)
    assert (new.selection, new.evaluation) == (base.selection, base.evaluation), "they judge as before"
    kept = changed(base, Structure(attack="n_fgsm", schedule="multi-step"))
    assert kept.method.attack == NFGSM(threat)
    assert kept.lr == MultiStep(base.lr.peak, (base.epochs / 2, 3 * base.epochs / 4))
    assert changed(base, Structure(schedule="constant")).lr == base.lr.peak
    whole = own_recipe(
        Structure(model="own_parts.py:build", data="npz:own.npz", eps="0.1", attack="fgsm", optimizer="adam")
    )
    assert (whole.method.attack, whole.optimizer) == (FGSM(Linf(0.1)), Adam())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (Structure(attack="pdg"), "no attack 'pdg': did you mean pgd"),
        (Structure(attack="pgd:step=3"), "pgd has no option 'step': did you mean steps"),
        (Structure(optimizer="adamm"), "no optimizer 'adamm': did you mean adam"),
        (Structure(optimizer="sgd:momentun=1"), "sgd has no option 'momentun': did you mean momentum"),
        (Structure(optimizer="adamw:weight_decay=abc"), "adamw: weight_decay is a number, not 'abc'"),
        (Structure(schedule="cosin"), "no schedule 'cosin': did you mean cosine"),
        (Structure(attack="fgsm", method="free"), "the method of the recipe, Free, has no attack to exchange"),
    ],
)
def test_a_part_that_is_not_there_gets_a_sentence(here, parts, message):
    with pytest.raises(UserError, match=message):
        changed(find("quickstart")(), parts)


def test_the_largest_rate_must_be_known(here):
    recipe = replace(find("quickstart")(), lr=Linear(((0, 0.1), (5, 0.0))))
    with pytest.raises(UserError, match=r"largest learning rate is not known: name it, as cosine:peak=0\.1"):
        changed(recipe, Structure(schedule="cosine"))
    assert changed(recipe, Structure(schedule="cosine:peak=0.3")).lr == Cosine(0.3)


@pytest.mark.parametrize(
    ("named", "then"),
    [
        ("cosine", Cosine(1.6)),
        ("exponential:every=3", ExponentialDecay(1.6, every=3)),
        ("constant:peak=0.8", MultiStep(0.8)),
    ],
)
def test_a_warm_up_stays_when_the_schedule_behind_it_is_exchanged(named, then):
    recipe = find("imagenet_resnet_smooth")(global_batch=4096)
    assert changed(recipe, Structure(schedule=named)).lr == WarmUp(then, epochs=5, start=0.1)


@pytest.mark.parametrize("what", ["recipes", "methods", "attacks", "optimizers", "schedules", "models", "data"])
def test_what_there_is_is_listed(what, capsys):
    assert shell(["list", what, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found and all(text and not text.endswith("no data).") for text in found.values())
    assert shell(["list", what]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in found)
    if what == "recipes":
        assert out.startswith("on small data, for two cores:\n  ")
        assert "we have not trained these to their end:\n  cifar10_rn18_pgd " in out


def test_lists_agree_with_what_is_taken(capsys):
    assert shell(["list", "everything"]) == 2
    assert "no list of 'everything'" in capsys.readouterr().err
    assert structure.ATTACKS.split(", ") == list(ATTACKS)
    assert list(listing._attacks()) == list(dict.fromkeys([*ATTACKS, *ADVERSARIES]))
    assert structure.OPTIMIZERS.split(", ") == list(OPTIMIZERS)
    assert structure.SCHEDULES.split(", ") == list(SCHEDULES)
    assert set(listing._DATA) == {"npz", *_KNOWN}


SMALL = """

from sparring import FGSM, Build, WhiteBox
from sparring.models import small_cnn
from sparring.runs.recipe import Evaluation

SMALL = {"model": Build(small_cnn, width=4), "evaluation": Evaluation({"fgsm": WhiteBox(FGSM(Linf(0.1)))})}
"""


def test_a_new_method_is_a_file_that_trains_resumes_and_stands_in_a_study(here, capsys):
    assert shell(["new", "method", "MixedMomentum"]) == 0
    assert "mixedmomentum.py: next, python mixedmomentum.py" in capsys.readouterr().out
    text = (here / "mixedmomentum.py").read_text()
    assert text == written("MixedMomentum", "mixedmomentum")
    assert written("MixedMomentum", EXAMPLE.stem) == EXAMPLE.read_text(), "the example is what the command writes"
    (here / "mixedmomentum.py").write_text(text.replace("short = {", "short = {**SMALL, ") + SMALL)
    sys.path.insert(0, str(here))
    import mixedmomentum

    recipe = replace(mixedmomentum.recipe(), **mixedmomentum.SMALL, epochs=2, batch_size=400)
    whole = fit(recipe, here / "whole", progress=False)
    with pytest.raises(Interrupted):
        fit(recipe, here / "half", on_progress=stop_at(2))
    half = fit(recipe, here / "half", progress=False)
    assert bits(whole) == bits(half) and bits(whole, "best") == bits(half, "best")
    few = ["--scale", "smoke", "--seeds", "1", "--workers", "2"]
    assert shell(["study", "mixedmomentum.py:study", *few]) == 0
    assert "MixedMomentum" in (here / "results" / "mixedmomentum-smoke" / "table.md").read_text()
    sys.modules.pop("mixedmomentum")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["new", "recipe", "X"], "nothing new called 'recipe'"),
        (["new", "method", "my-method"], "is no name of a class"),
        (["new", "method", "Own_Parts"], "own_parts.py is already there"),
        (["study", "own_parts.py:gone"], "own_parts.py has no function 'gone'"),
    ],
)
def test_what_cannot_be_new_gets_a_sentence(here, capsys, args, message):
    assert shell(args) == 2
    assert message in capsys.readouterr().err


def test_extra_data_are_named_and_their_share_is_a_flag(here, capsys):
    x = np.random.default_rng(1).integers(0, 256, (90, 8, 8), dtype=np.uint8)
    np.savez(here / "drawn.npz", image=x, label=np.arange(90) % 3)
    more = ["--eps", "8/255", "--epochs", "1", "--batch-size", "20", "--method.attack.steps", "1"]
    extra = ["--extra-data", "generated:drawn.npz", "--extra-data.share", "0.5", "--out", "run"]
    assert shell([*OWN, *more, *extra]) == 0
    recipe = json.loads((here / "run" / "recipe.json").read_text())["extra_data"]
    assert recipe["share"] == 0.5 and recipe["source"] == {"$": "GeneratedImages", "path": "drawn.npz"}
    assert shell([*OWN, *more, "--extra-data", "generated:none.npz", "--out", "other"]) == 2
    assert "none.npz" in capsys.readouterr().err


# -- attacks, and weights of a model of one's own


def test_an_attack_of_ones_own_trains_and_evaluates(here, capsys):
    assert (
        shell(
            ["train", "own_parts.py:tiny", "--attack", "own_parts.py:Signs:steps=1", "--epochs", "12", "--out", "mine"]
        )
        == 0
    )
    named = RunFolder(here / "mine").recipe()["method"]["attack"]
    assert named["steps"] == 1 and "own_parts:Signs" in json.dumps(named)
    capsys.readouterr()
    trust = ["--trust", "own_parts", "--weights", "best"]
    attacks = ["own_parts.py:Signs", "own_parts:Signs:steps=1", "fgsm"]
    assert shell(["evaluate", "mine", "--attack", *attacks, *trust, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["best"]
    right = {name: found[name]["accuracy"] for name in ("clean", "Signs", "Signs:steps=1", "fgsm")}
    assert right["Signs"] < right["Signs:steps=1"] == right["fgsm"] < right["clean"], "one step of it is FGSM"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_parts.py:Sign", "has no function 'Sign': did you mean Signs"),
        ("own_parts.py:Signs:step=1", "makes no attack of a set of perturbations"),
        ("own_parts.py:nothing", "let it take that first, as nothing(Linf(eps=0.1))"),
        ("own_parts.py:text", "'pgd' is no attack"),
        ("elsewhere.py:Signs", "elsewhere.py"),
        ("pdg:steps=1", "no attack 'pdg': did you mean pgd"),
        ("pgd:steps", "pgd: steps is a number, not ''"),
    ],
)
def test_what_is_no_attack_of_ones_own_is_a_sentence(spec, message, here, capsys):
    assert shell(["train", "own_parts.py:tiny", "--attack", spec, "--out", "mine"]) == 2
    assert message in capsys.readouterr().err


MIXED = """
from dataclasses import dataclass

from sparring import CrossEntropy


@dataclass(frozen=True)
class Mixed(CrossEntropy):
    weight: float = 0.5


def nothing():
    return CrossEntropy()
"""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mixed_of_mine.py:Mixed:weight=0.9", ""),
        (
            "mixed_of_mine.py:Mixed:wait=0.9",
            "makes no method (Mixed.__init__() got an unexpected keyword argument 'wait')",
        ),
        ("mixed_of_mine.py:nothing", "let it take the set of perturbations and the number of steps"),
        ("trades:beta=3", "options of a method are fields of the recipe, as --method trades --method.objective.beta 3"),
    ],
)
def test_options_of_a_method_of_ones_own_follow_its_name(spec, message, here, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "mixed_of_mine", raising=False)
    (here / "mixed_of_mine.py").write_text(MIXED)
    status = shell(["train", "own_parts.py:tiny", "--method", spec, "--out", "mine"])
    if message:
        assert (status, message in capsys.readouterr().err) == (2, True)
    else:
        assert status == 0
        assert RunFolder(here / "mine").recipe()["method"]["objective"]["weight"] == 0.9
    monkeypatch.delitem(sys.modules, "mixed_of_mine", raising=False)


def test_weights_of_a_model_that_a_function_of_ones_own_builds(here, capsys):
    body = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()
    torch.save(nn.Sequential(*body, nn.Linear(72, 10)).state_dict(), here / "weights.pt")
    command = ["evaluate", "weights.pt", "--data", "digits", "--attack", "fgsm", "--eps", "0.1", "--examples", "20"]
    assert shell([*command, "--model", "own_parts.py:build:width=2"]) == 0
    assert "fgsm" in capsys.readouterr().out
    assert shell([*command, "--model", "own_parts.py:build"]) == 2
    assert "does not fit the model that own_parts.py:build builds" in capsys.readouterr().err
    assert shell([*command, "--model", "own_parts.py:failing"]) == 2
    assert "raised RuntimeError: no weights there" in capsys.readouterr().err
