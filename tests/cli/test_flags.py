import re
from dataclasses import dataclass, replace

import pytest

from sparring import EMA, L1, PGD, TRADES, Benign, Build, Linf, Method, Worst
from sparring.attacks import Split
from sparring.cli import flags
from sparring.cli import run as shell
from sparring.cli.flags import parameters, parse
from sparring.core.schedules import Cosine
from sparring.models import preact_resnet18
from sparring.recipes import PARAMETERS, entries, find
from sparring.recipes.cifar10 import cifar10_rn18_pgd
from sparring.runs.recipe import Recipe
from sparring.training import AdamW


@dataclass(frozen=True, kw_only=True)
class Options:
    loud: bool = False
    """Shout."""


def read(value, *args, **rest):
    return parse(Options, value, rest.pop("extra", {}), list(args), "prog", "What it is.", **rest)


@pytest.fixture
def recipe():
    return cifar10_rn18_pgd()


def test_without_flags_the_value_itself_comes_back(recipe):
    options, same, _ = read(recipe)
    assert same is recipe
    assert not options.loud


def test_flags_reach_scalars_at_any_depth(recipe):
    options, new, _ = read(
        recipe,
        *["--loud", "--method.attack.threat.eps", "4/255", "--method.attack.patience", "2", "--augment.0.padding", "2"],
        *[
            "--augment.0.mode",
            "constant",
            "--lr.milestones",
            "50",
            "75.5",
            "--model.width",
            "0.5",
            "--optimizer.nesterov",
        ],
        *[
            "--evaluation.adversaries.pgd-50-10.attack.attack.steps",
            "7",
            "--evaluation.examples",
            "None",
            "--seed",
            "3",
        ],
    )
    assert options.loud
    assert new.method.attack == replace(recipe.method.attack, threat=Linf("4/255"), patience=2)
    assert (new.augment[0].padding, new.augment[0].mode) == (2, "constant")
    assert new.augment[1] is recipe.augment[1]
    assert new.lr.milestones == (50.0, 75.5)
    assert new.model == Build(new.model.function, width=0.5)
    assert new.optimizer.nesterov
    assert new.evaluation.adversaries["pgd-50-10"].attack.attack.steps == 7
    assert new.evaluation.adversaries["fgsm"] is recipe.evaluation.adversaries["fgsm"]
    assert new.seed == 3
    assert new.data is recipe.data


def test_flags_follow_the_structure_that_the_recipe_has(recipe):
    attack = Split(((0.25, Benign()), (0.75, Worst((PGD(L1(2.0)), PGD(Linf(0.1)))))))
    built = replace(
        recipe,
        method=Method(attack, TRADES()),
        lr=0.1,
        averaging=EMA(),
        optimizer=AdamW(),
        model=Build(preact_resnet18, activation="silu"),
    )
    _, new, _ = read(
        built,
        *["--method.attack.parts.1.1.parts.0.threat.share", "0.5", "--lr", "0.3", "--averaging.decay", "0.9"],
        *["--optimizer.betas", "0.8", "0.9", "--model.activation", "gelu", "--method.objective.beta", "3"],
    )
    assert new.method.attack.parts[1][1].parts[0].threat == L1(2.0, share=0.5)
    assert new.method.attack.parts[0] is built.method.attack.parts[0]
    assert (new.lr, new.averaging.decay, new.optimizer.betas) == (0.3, 0.9, (0.8, 0.9))
    assert new.model.options == {"activation": "gelu"}
    assert new.method.objective == TRADES(3.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ["--optimizer.momentum", "a lot"],
        ["--augment.0.mode", "mirror"],
        ["--seed", "1.5"],
        ["--method.attack.stepsize", "1"],
        ["--method.inner-view", "train_mode"],  # structure is chosen in Python
        ["--loud", "maybe"],
    ],
)
def test_what_does_not_fit_is_refused_by_name(recipe, args, capsys):
    with pytest.raises(SystemExit) as stop:
        read(recipe, *args)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "", "errors go to standard error"
    assert args[0].removeprefix("--").split(".")[-1] in captured.err or args[1] in captured.err


@pytest.mark.slow
def test_a_pair_of_numbers_stays_a_pair(recipe, capsys):
    with pytest.raises(SystemExit):
        read(replace(recipe, optimizer=AdamW()), "--optimizer.betas", "0.9", "0.99", "0.999")
    assert "0.999" in capsys.readouterr().err


def test_fields_can_be_limited(recipe):
    with pytest.raises(SystemExit):
        read(recipe, "--epochs", "3", fields=("seed",))
    assert read(recipe, "--seed", "3", fields=("seed",))[1].seed == 3


def test_parameters_of_a_function_are_flags_of_their_own(recipe):
    extra = parameters(cifar10_rn18_pgd)
    assert extra == {"eps": 8 / 255, "moved": "update"}
    _, same, given = read(recipe, "--eps", "4/255", "--moved", "released", extra=extra)
    assert given == {"eps": 4 / 255, "moved": "released"}
    assert same is recipe, "what they decide is for the caller to say"


def test_a_schedule_in_place_of_another_has_its_own_flags(recipe):
    _, new, _ = read(replace(recipe, lr=Cosine(0.1)), "--lr.final", "0.01")
    assert new.lr == Cosine(0.1, 0.01)


@pytest.mark.slow
def test_every_flag_of_every_recipe_is_described():
    def undescribed(value, about, path):
        for name, (part, hint) in flags._parts(value).items():
            if flags._scalar(part, hint) is not None:
                if not about.get(name) and not isinstance(value, tuple):
                    yield f"{path}.{name}"
            else:
                thing = part.function if isinstance(part, Build) else type(part)
                yield from undescribed(part, flags._described(thing), f"{path}.{name}")

    missing = []
    for name, entry in entries().items():
        make = find(name)
        missing += undescribed(make(), flags._described(Recipe), name)
        known = {**PARAMETERS, **flags._arguments(entry.text)}
        missing += [f"{name}: {each}" for each in flags.parameters(make) if each not in known]
    assert not missing


def test_the_help_describes_fields_and_parameters(capsys):
    with pytest.raises(SystemExit):
        shell(["train", "quickstart", "--help"])
    told = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert "--epochs INT Number of epochs. (default: 30)" in told
    assert "--eps FLOAT Radius of the perturbations in training, selection and evaluation" in told
    assert "This flag turns it off." in told
