import dataclasses
import inspect
import json
from dataclasses import replace

import pytest
from conftest import toy_data
from torch import nn

from sparring import L2, PGD, Benign, Build, CleanStart, GaussianStart, Linf, Method, Progress, Recipe, UserError
from sparring.core.modes import eval_mode, train_mode
from sparring.core.schedules import Cycle, MultiStep
from sparring.core.serialization import differences, from_plain, to_plain
from sparring.core.types import at
from sparring.data import Crop, Flip, Jitter
from sparring.models import conv_stem, efficientnet, imagenet_resnet, preact_resnet18, small_cnn, zero_shot_model
from sparring.objectives import MixUp
from sparring.recipes import entries, find
from sparring.runs.recipe import recipe_from_plain
from sparring.studies.moat import study as study_of_moat
from sparring.training import RMSProp

NAMES = sorted(entries())


def test_the_recipes_that_were_promised_are_there():
    assert {
        "quickstart",
        "fashion_pgd",
        "fashion_trades",
        "cifar10_rn18_pgd",
        "cifar10_rn18_trades",
        "cifar10_wrn34_10_trades",
        "cifar10_rn18_mart",
        "cifar10_prn18_awp",
        "cifar10_prn18_swa",
        "cifar10_prn18_free",
        "cifar10_prn18_grad_align",
        "cifar10_prn18_moat",
        "fashion_moat",
    } <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_survives_the_disk(name):
    recipe = find(name)()
    again = recipe_from_plain(json.loads(json.dumps(recipe.plain())))
    assert again == recipe


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_in_one_line_what_it_is(name):
    assert 20 < len(entries()[name].summary) <= 110
    assert entries()[name].summary.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_the_eps_of_a_recipe_reaches_training_selection_and_evaluation_alike(name):
    plain = json.dumps(find(name)(eps=0.0123).plain())
    assert plain.count('"eps": 0.0123') == plain.count('"eps"') >= 2


def test_recipes_that_cite_numbers_without_having_run_say_so():
    for name, entry in entries().items():
        assert entry.tested != name.startswith(("cifar", "imagenet", "svhn"))


NETS = {
    "fgsm_rs": (True, "raw"),  # locuslab/fast_adversarial
    "free": (True, "raw"),  # the same
    "moat": (True, "raw"),  # the same, for want of a code of its own
    "n_fgsm": (True, "raw"),  # pdejorge/N-FGSM
    "grad_align": (False, "raw"),  # tml-epfl/understanding-fast-adv-training
    "zero_grad": (True, "activated"),  # rohban-lab/catastrophic_overfitting
    "multi_grad": (True, "activated"),  # the same
    "pgd_long": (True, "activated"),  # locuslab/robust_overfitting
    "consistency": (True, "activated"),  # the same; the net of its own code is not built here
    "awp": (True, "activated"),  # csdongxian/AWP
    "trades_awp": (True, "activated"),  # the same
    "swa": (True, "activated"),  # VITA-Group/Alleviate-Robust-Overfitting
}
"""Norm before the pooling, and what shortcuts read, in the code of each paper, which was read."""


def test_a_preact_resnet_in_a_recipe_is_that_of_the_code_of_its_paper():
    found = {name.removeprefix("cifar10_prn18_"): find(name)().model for name in NAMES if "prn18" in name}
    assert all(build.function is preact_resnet18 for build in found.values())
    bodies = {name: build(width=0.05).body for name, build in found.items()}
    told = {n: (isinstance(b.bn, nn.BatchNorm2d), b.layer2[0].reads_activated) for n, b in bodies.items()}
    assert told == {name: (norm, shortcut == "activated") for name, (norm, shortcut) in NETS.items()}


@pytest.mark.parametrize(
    ("field", "wrong", "said"),
    [
        ("lr", "cosine", "Recipe.lr is 'cosine', wanted is Union[float, Schedule[float]]"),
        ("method", "trades", "Recipe.method is 'trades', wanted is Method | Free"),
        ("model", "resnet18", "Recipe.model is 'resnet18', wanted is Union[Build[Module], GivenModel]"),
        ("epochs", 2.5, "Recipe.epochs is 2.5, wanted is int"),
        ("augment", [], "Recipe.augment is [], wanted is tuple[Augment | TargetAugment, ...]"),
        ("selection", None, "Recipe.selection is None, wanted is Attack"),
    ],
)
def test_a_field_of_a_recipe_is_of_its_type(tiny, field, wrong, said):
    with pytest.raises(UserError) as caught:
        replace(tiny, **{field: wrong})
    assert str(caught.value).startswith(said)


def test_a_recipe_that_is_given_tensors_says_so_in_one_short_line(tiny):
    data = toy_data()
    with pytest.raises(UserError, match=r"Recipe\.data is of type tuple, wanted is Source: ") as caught:
        replace(tiny, data=(data, data))
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="no recipe 'quikstart': did you mean quickstart"):
        find("quikstart")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs = 0 is no whole number from 1 on"),
        ({"batch_size": 0}, "batch_size = 0 is no whole number from 1 on"),
        ({"held_out": -0.1}, r"held_out = -0.1 is not in \[0, 1\): a share of the images selects"),
        ({"held_out": 1.5}, r"held_out = 1.5 is not in \[0, 1\)"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        replace(find("quickstart")(), **change)


# -- values as plain data


def test_a_build_is_a_call_that_compares_prints_and_checks_its_options():
    build = Build(preact_resnet18, width=0.25)
    assert build == from_plain(to_plain(build))
    assert repr(build) == "Build(preact_resnet18, width=0.25)"
    assert build(num_classes=3).head.out_features == 3
    with pytest.raises(UserError, match="preact_resnet18 takes no 'widht': did you mean width"):
        Build(preact_resnet18, widht=1)


def test_a_recipe_whose_weights_follow_begins_with_none(tiny):
    options = {"name": "resnet18", "texts": "texts.npy", "scale": 50.0}
    recipe = replace(tiny, model=Build(zero_shot_model, **options, pretrained=True), init_from="first").unfilled()
    assert recipe.model == Build(zero_shot_model, **{**options, "texts": ""}, pretrained=False)
    assert recipe.init_from == "" and tiny.unfilled() == tiny


class Unread:
    """A training set of which nothing may be decoded."""

    shape, classes = (3, 8, 8), ("a", "b")

    def __getitem__(self, rows):
        raise AssertionError("an image was read")


def with_its_own(num_classes, shape):
    return small_cnn(num_classes, shape, width=2)


@pytest.mark.parametrize("function", [imagenet_resnet, efficientnet, with_its_own], ids=lambda f: f.__name__)
def test_statistics_of_pictures_are_not_computed_for_a_model_that_has_its_own(function):
    assert not Build(function).takes("normalize")
    recipe = replace(find("quickstart")(), model=Build(with_its_own))
    assert recipe.build_model(Unread()).head.out_features == 2
    with pytest.raises(AssertionError, match="an image was read"):
        find("quickstart")().build_model(Unread())


def whatever(**given):
    return small_cnn(**given)


def test_a_builder_that_takes_whatever_it_is_given_is_given_the_statistics():
    assert Build(small_cnn).takes("normalize") and Build(whatever).takes("normalize")


@pytest.mark.parametrize(
    "plain",
    [
        {"$": "os:system"},
        {"$name": "os:system"},
        {"$call": "os:system", "command": "true"},
        {"$": "..os:path"},
        {"$": "plain:importlib"},
        {"$name": "torch"},
        {"$": "__import__('os')"},
        {"$": "attacks.gradient:PGD"},  # as before format 2
        {"$": "recipe"},
        {"$": 7},
        {"$call": "PGD"},  # a class is no function to call later
    ],
)
def test_a_recipe_file_cannot_name_what_is_not_ours(plain):
    with pytest.raises(UserError, match=r"is no name of this package|code of another package|no name of a function"):
        from_plain(plain)


def test_a_recipe_file_of_another_version_is_refused_by_field():
    plain = to_plain(PGD(Linf(0.1)))
    with pytest.raises(UserError, match="has no field 'momentum'"):
        from_plain({**plain, "momentum": 0.9})
    with pytest.raises(UserError, match="is incomplete"):
        from_plain({"$": plain["$"], "steps": 3})
    with pytest.raises(UserError, match="this is a PGD, not a recipe"):
        recipe_from_plain(plain)


@pytest.mark.parametrize("value", [lambda x: x, object(), [1], {1, 2}, small_cnn()])
def test_what_has_no_name_is_not_written_down(value):
    with pytest.raises(UserError, match=r"has no place in a recipe|cannot be named in a file"):
        to_plain(value)


def test_differences_are_named_by_their_path():
    old = find("quickstart")()
    new = replace(old, seed=3, method=Method(replace(old.method.attack, steps=9), old.method.objective))
    assert differences(old.plain(), new.plain()) == ["method.attack.steps: 7 -> 9", "seed: 0 -> 3"]
    assert differences([1, 2], [1, 3], "a") == ["a.1: 2 -> 3"]


def test_a_derived_recipe_changes_what_it_says_and_nothing_else():
    pgd, trades = find("fashion_pgd")(), find("fashion_trades")()
    changed = {d.split(".")[0] for d in differences(pgd.plain(), trades.plain())}
    assert changed == {"method"}
    assert isinstance(trades, Recipe)
    assert trades.model == Build(small_cnn, width=16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benign": 0}, "whole steps, at least one each, not \\[0, 4, 1\\]"),
        ({"slot": 0}, "whole steps, at least one each"),
        ({"single": 1.5}, "whole steps, at least one each"),
        ({"order": "bxm"}, "order = 'bxm' must consist of b .benign., s .single step. and m"),
        ({"order": ""}, "order = '' must consist of"),
        ({"reading": "loud"}, "reading = 'loud' is not one of pure, mixed, mixup"),
        ({"reading": "mixed", "clean": 1.0}, "sum to 1, and clean = 1 is not"),
        ({"reading": "mixup", "alpha": 0.0}, "alpha = 0 of mixup is not above 0"),
    ],
)
def test_stages_that_make_no_sense_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        find("fashion_moat")(**change)


def test_the_stages_of_moat_are_visited_in_their_order_and_over_again():
    recipe = find("fashion_moat")(benign=1, single=2, multi=1, slot=3, order="msb")
    names = [type(at(recipe.method.attack, Progress(s, 100, 8))).__name__ for s in range(24)]
    steps = [getattr(at(recipe.method.attack, Progress(s, 100, 8)), "steps", 0) for s in range(12)]
    assert steps == [5] * 3 + [1] * 6 + [0] * 3
    assert names[:12] == names[12:]


@pytest.mark.slow
def test_a_period_of_moat_is_an_epoch_and_training_ends_on_its_multi_step_stage():
    attack = find("cifar10_prn18_moat")().method.attack
    steps = [getattr(at(attack, Progress(s, 382, 110)), "steps", 0) for s in range(382 * 110)]
    for epoch in (0, 57, 109):  # 49,000 images in batches of 128 are 382 steps, which six slots do not divide
        assert steps[382 * epoch : 382 * (epoch + 1)] == [0] * 64 + [1] * 191 + [1] * 63 + [7] * 64
    mixed = find("fashion_moat")(reading="mixup", period=0.75)
    for s in range(459 * 8):
        now = Progress(s, 459, 8)
        assert isinstance(at(mixed.method.attack, now), Benign) == isinstance(at(mixed.method.objective, now), MixUp)
    with pytest.raises(UserError, match="epochs = 0 of a period is not above 0"):
        find("fashion_moat")(period=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu"])
def test_the_study_of_moat_ends_on_the_multi_step_stage_wherever_that_is_the_last(scale):
    recipes = {arm.name: arm.recipe for arm in study_of_moat(scale).arms if isinstance(arm.recipe.method, Method)}
    arms = {name: recipe for name, recipe in recipes.items() if isinstance(recipe.method.attack, Cycle)}
    assert len(arms) == 9
    for name, recipe in arms.items():
        end = Progress(recipe.epochs * 70 - 1, 70, recipe.epochs)
        last = at(recipe.method.attack, end)
        assert (getattr(last, "steps", 0) == 7) == (name not in ("MOAT without multi-step", "MOAT in reverse")), name


def test_the_l2_recipe_follows_the_robustness_library_in_what_it_says_and_claims_no_more():
    recipe, text = find("cifar10_rn18_l2")(), " ".join(entries()["cifar10_rn18_l2"].text.split())
    assert recipe.method.attack == PGD(L2(0.5), steps=7, start=CleanStart())
    assert recipe.augment == (Crop(4, "constant"), Flip(), Jitter(0.25, 0.25, 0.25, p=1.0))
    assert "not all of its defaults" in text
    assert all(word in text for word in ("rotates images", "of the highest", "ResNet-50"))


def test_temporal_ensembling_has_the_weight_of_the_released_code_on_each_data_set():
    for name, classes in (("cifar10_rn18_pgd_te", 10), ("cifar100_rn18_pgd_te", 100), ("svhn_rn18_pgd_te", 10)):
        recipe = find(name)()
        term = recipe.method.objective.parts[1]
        assert term.weight.peak * classes == 300 and not term.per_class
    svhn = find("svhn_rn18_pgd_te")()
    assert (svhn.augment, svhn.lr) == ((), MultiStep(0.01, (100, 150)))
    l2 = find("cifar10_rn18_pgd_te_l2")()
    assert l2.method.attack == PGD(L2(128 / 255), 10, "15/255", GaussianStart())
    assert l2.selection.threat == L2(128 / 255)


def test_stages_keep_pace_with_their_objectives():
    recipe = find("fashion_moat")(slot=2, reading="mixup")
    lengths = [[length for length, _ in part.stages] for part in (recipe.method.attack, recipe.method.objective)]
    assert lengths[0] == lengths[1] == [2, 8, 2]
    assert isinstance(at(recipe.method.objective, Progress(1, 100, 8)), MixUp)
    assert not isinstance(at(recipe.method.objective, Progress(2, 100, 8)), MixUp)


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_of_a_recipe_hides_no_field_on_the_command_line(name):
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert not fields & set(inspect.signature(find(name)).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_the_activation_is_a_field_of_every_recipe(name):
    function = find(name)().model.function
    if function not in (conv_stem, zero_shot_model):  # networks by their names in timm, with the activations they have
        assert "activation" in inspect.signature(function).parameters


@pytest.mark.parametrize(
    "name", ["fgsm_rs", "n_fgsm", "zero_grad", "multi_grad", "grad_align", "pgd_long", "awp", "swa"]
)
def test_recipes_of_papers_that_craft_in_training_mode_say_so_and_offer_it(name):
    name = f"cifar10_prn18_{name}"
    assert (find(name)().method.inner_mode, find(name)(craft="train").method.inner_mode) == (eval_mode, train_mode)
    assert 'craft="train"' in entries()[name].text
    with pytest.raises(UserError, match="craft = 'both' is not one of eval, train"):
        find(name)(craft="both")


def test_what_the_released_code_adds_to_smooth_training_is_a_field_and_off():
    recipe = find("imagenet_resnet_smooth")()
    assert recipe.method.objective.label_smoothing == 0
    assert recipe.method.attack.start.clean == 0
    assert not recipe.optimizer.nesterov and not recipe.optimizer.decay_vectors
    assert recipe.method.attack.steps == 1 and recipe.method.attack.step_size == recipe.method.attack.threat.eps
    assert [recipe.lr.at(Progress(e, 1, 100)) for e in (29, 30, 60, 90)] == pytest.approx([0.1, 0.01, 0.001, 0.0001])


@pytest.mark.parametrize("batch", [64, 256, 1024, 4096])
def test_the_rate_of_imagenet_is_scaled_with_the_batch_and_warmed_up_from_that_of_256_images(batch):
    recipe = find("imagenet_resnet_smooth")(global_batch=batch)
    peak = 0.1 * batch / 256
    assert recipe.batch_size == batch
    found = [recipe.lr.at(Progress(s, 4, 100)) for s in range(400)]
    begin = min(0.1, peak)
    assert found[:20] == pytest.approx([begin + (peak - begin) * (s + 1) / 20 for s in range(20)])
    assert [found[4 * e] for e in (5, 29, 30, 60, 90)] == pytest.approx(
        [peak, peak, peak / 10, peak / 100, peak / 1000]
    )


def test_an_efficientnet_has_the_training_of_the_released_code():
    recipe = find("imagenet_efficientnet_smooth")(global_batch=2048)
    assert (recipe.epochs, recipe.batch_size, recipe.method.objective.label_smoothing) == (350, 2048, 0.1)
    assert recipe.optimizer == RMSProp(alpha=0.9, momentum=0.9, epsilon=0.001, weight_decay=1e-5)
    assert recipe.lr.at(Progress(0, 626, 350)) == pytest.approx(0.128 / (5 * 626))
    later = [recipe.lr.at(Progress(626 * e, 626, 350)) for e in (6, 12, 349)]
    assert later == pytest.approx([0.128 * 0.97**2, 0.128 * 0.97**5, 0.128 * 0.97**145])
    assert "could not check whether" in " ".join(entries()["imagenet_efficientnet_smooth"].text.split())
    assert recipe.method.attack == find("imagenet_resnet_smooth")().method.attack
