"""The examples that an evaluation keeps with their images, and examples that are evaluated alone."""

import copy
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import count, toy_data, toy_net
from helpers import labelled_by

from sparring import PGD, Linf, UserError, WhiteBox, evaluate
from sparring.acceleration import OriginalModel
from sparring.attacks import FGSM, RandomStart
from sparring.evaluation import Ensemble
from sparring.records.gallery import chosen, gallery_size
from sparring.records.run_folder import read_evaluated, write_evaluated
from sparring.runs.load import evaluate_models
from sparring.runs.recipe import Evaluation

THREAT = Linf(0.08)
ATTACK = {
    "both": Ensemble({"fgsm": WhiteBox(FGSM(THREAT)), "pgd": WhiteBox(PGD(THREAT, steps=5, start=RandomStart()))}),
}


@pytest.fixture(scope="module")
def found():
    net = toy_net().eval()
    return net, evaluate(net, labelled_by(toy_net().eval().double()), ATTACK, backend=OriginalModel())


def test_an_evaluation_that_examines_nothing_gives_the_same_verdicts_in_fewer_passes(found):
    net, examined = copy.deepcopy(found[0]), found[1]
    data, seen = labelled_by(toy_net().eval().double()), count(net)
    quick = evaluate(net, data, ATTACK, backend=OriginalModel(), examine=False)
    few = seen.examples
    evaluate(net, data, ATTACK, backend=OriginalModel())
    assert seen.examples - 2 * few == 5 * 60 + 4 + 2 * len(examined.gallery.row)
    assert quick.gallery is None
    for ours, theirs in ((quick.robust, examined.robust), (quick.margin, examined.margin)):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_to_examine_a_randomised_model_changes_nothing_that_it_draws(found):
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = toy_net()

        def forward(self, x):
            return self.net(x) + 0.3 * torch.randn(len(x), 3)

    def verdicts(examine):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = evaluate(Noisy().eval(), toy_data(), ATTACK, backend=OriginalModel(), examine=examine)
        return result.margin["both"], torch.rand(1)

    (with_it, after), (without, later) = verdicts(True), verdicts(False)
    assert np.array_equal(with_it, without)
    assert torch.equal(after, later)


def test_the_images_of_a_gallery_are_what_the_result_says(found):
    net, result = found
    gallery, data = result.gallery, labelled_by(toy_net().eval().double())
    fate = result.broken_by("both")[gallery.row]
    clean, adversarial = (torch.from_numpy(each.astype(np.float32)) for each in (gallery.clean, gallery.adversarial))
    assert torch.allclose(clean, data.x[gallery.row].float() / 255, atol=1e-3)
    assert (adversarial - clean).abs().amax() <= THREAT.eps + 1e-3
    broken = ~np.isin(fate, ["", "clean"])
    assert broken.any() and (fate == "clean").any() and (fate == "").any()
    unchanged = (adversarial == clean).flatten(1).all(1).numpy()
    assert (unchanged == ~broken).all()
    with torch.no_grad():
        sure = net(adversarial).softmax(1).amax(1)
    assert np.allclose(sure, gallery.adversarial_confidence, atol=0.02)
    assert (net(adversarial).argmax(1).numpy() == result.predicted["both"][gallery.row])[broken].mean() > 0.9


def test_predictions_are_the_label_where_an_example_is_right_and_another_class_where_not(found):
    _, result = found
    for name in ("clean", "both"):
        assert ((result.predicted[name] == result.label) == result.robust[name]).all()


def test_stages_have_passes_and_seconds(found):
    _, result = found
    assert result.passes.keys() == result.seconds.keys() == {"both/fgsm", "both/pgd"}
    assert result.passes["both/pgd"] == pytest.approx(5 * 2.8)
    assert all(each > 0 and math.isfinite(each) for each in result.seconds.values())


def test_a_resumed_evaluation_does_not_say_how_long_it_ran(tmp_path):
    given = {"state": tmp_path, "backend": OriginalModel()}
    first = evaluate(toy_net().eval(), toy_data(), ATTACK, **given)
    again = evaluate(toy_net().eval(), toy_data(), ATTACK, **given)
    assert "both/fgsm" in first.seconds and "both/fgsm" not in again.seconds
    assert again.gallery.row.tolist() == first.gallery.row.tolist()


def test_a_gallery_comes_back_from_the_disk(found, tmp_path):
    _, result = found
    write_evaluated(tmp_path / "a.npz", result)
    again = read_evaluated(tmp_path / "a.npz")
    for name, values in result.gallery.arrays().items():
        assert np.array_equal(again.gallery.arrays()[name], values), name
    assert again.passes == result.passes


@pytest.mark.parametrize(
    "harm",
    [
        {"row": np.array([9999])},
        {"adversary": "nothing"},
        {"clean": np.zeros((1, 3))},
        {"clean_confidence": np.array(["a"])},
    ],
)
def test_a_gallery_of_something_else_is_refused(found, harm, tmp_path):
    _, result = found
    write_evaluated(tmp_path / "a.npz", replace(result, gallery=replace(result.gallery, **harm)))
    with pytest.raises(UserError, match="evaluate again"):
        read_evaluated(tmp_path / "a.npz")


def test_of_robust_examples_those_nearest_to_being_broken_are_chosen():
    fates = np.array(["", "pgd", "", "clean", "", "pgd", "pgd"])
    margin = np.array([3.0, -1, 1, -2, 2, -3, -9])
    assert chosen(np.arange(7), fates, margin, 2).tolist() == [1, 2, 3, 4, 5]
    assert chosen(np.array([6, 0]), fates, margin, 2).tolist() == [0, 6]
    assert chosen(np.array([], np.int64), fates, margin, 2).tolist() == []


def test_a_gallery_of_large_images_is_smaller():
    assert gallery_size((3, 32, 32)) == 24 == gallery_size((1, 64, 64))
    assert gallery_size((3, 224, 224)) == 8


# -- examples alone


def alone(only, out=None):
    evaluation = Evaluation(ATTACK)
    given = {"backend": OriginalModel(), "only": only, "out": out}
    return evaluate_models({"model": lambda: toy_net().eval()}, toy_data(), evaluation, **given)["model"]


def test_an_example_alone_has_the_result_that_it_has_among_all():
    whole, few = alone(()), alone((41, 7))
    assert few.index.tolist() == [7, 41]
    for name, flags in whole.robust.items():
        assert flags[[7, 41]].tolist() == few.robust[name].tolist()
    assert np.allclose(whole.margin["both"][[7, 41]], few.margin["both"], atol=1e-5)
    assert whole.image_hash[[7, 41]].tolist() == few.image_hash.tolist()


def test_an_example_alone_has_its_own_corrupted_images():
    """Not those of the first rows, as the images chosen are not the first."""
    data, asked = toy_data(), []

    class Corrupted:
        def load(self, test):
            asked.append(len(test))
            return {"fog-1": replace(test, x=test.x // 2)}

    evaluation = replace(Evaluation(ATTACK, examples=50), corruptions=Corrupted())
    given = {"backend": OriginalModel()}
    whole = evaluate_models({"model": lambda: toy_net().eval()}, data, evaluation, **given)["model"]
    assert 0 < whole.corrupted["fog-1"].sum() < 50
    for rows in ((41, 7), (1, 2, 3), (48,)):
        few = evaluate_models({"model": lambda: toy_net().eval()}, data, evaluation, **given, only=rows)["model"]
        assert few.corrupted["fog-1"].tolist() == whole.corrupted["fog-1"][sorted(rows)].tolist()
    assert asked == [50] * 4


@pytest.mark.parametrize("only", [(60,), (-1,), (3, 3)])
def test_examples_that_are_not_there_cannot_be_chosen(only):
    with pytest.raises(UserError, match="give each once, from 0 to 59"):
        alone(only)


def test_single_examples_are_not_written_to_a_folder(tmp_path):
    from sparring.records.run_folder import RunFolder

    with pytest.raises(UserError, match="leave out --out"):
        alone((1,), RunFolder(tmp_path))
