import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Linear, toy_data, toy_net
from torch import nn

from sparring import (
    FAB,
    FGSM,
    L1,
    L2,
    PGD,
    AcceleratedCopy,
    Benign,
    CleanStart,
    Linf,
    OriginalModel,
    Restarts,
    TensorData,
    UserError,
    WhiteBox,
    Worst,
    evaluate,
    make_rng,
    perturb,
)
from sparring.core.modes import ComposedMode, eval_mode, train_mode
from sparring.core.types import pixels
from sparring.evaluation import Ensemble, MinimumNorm, SurrogateGradient
from sparring.evaluation.cost import passes
from sparring.models import SmoothBackward


def linear_data(n=200):
    """Bytes near the middle, labelled by the linear model itself but for every tenth."""
    x = torch.randint(118, 138, (n, 1, 4, 4), generator=make_rng(0)).to(torch.uint8)
    y = Linear()(pixels(x)).argmax(1)
    y[::10] = 1 - y[::10]
    return TensorData(x, y, ("a", "b"))


def test_robust_accuracy_of_a_linear_model_is_its_closed_form():
    """An example stands if its margin is larger than 2 eps |w|_1."""
    model, data = Linear(), linear_data()
    logits = model(pixels(data.x)).detach()
    margin = logits.gather(1, data.y[:, None])[:, 0] - logits.gather(1, 1 - data.y[:, None])[:, 0]
    eps = float(margin[margin > 0].quantile(0.4) / (2 * model.w.detach().abs().sum()))
    found = evaluate(model, data, {"fgsm": WhiteBox(FGSM(Linf(eps)))})
    assert np.array_equal(found.robust["clean"], (margin > 0).numpy())
    assert np.array_equal(found.robust["fgsm"], (margin > 2 * eps * model.w.abs().sum()).detach().numpy())
    assert 0 < found.table()["fgsm"].value < found.table()["clean"].value == 0.9


@pytest.mark.parametrize(("threat", "copies"), [(Linf(0.1), 1), (L2(0.5), 2)])
def test_a_copy_is_made_and_verified_once_for_each_precision_that_attacks_need(threat, copies):
    asked = []

    class Asked(AcceleratedCopy):
        def _searched(self, *args):
            asked.append(self.precision)
            return super()._searched(*args)

        def in_float32(self):
            return Asked("fp32") if self.precision != "fp32" else self

    evaluate(Linear(), linear_data(), WhiteBox(FGSM(threat)), backend=Asked())
    assert asked == ["auto", "fp32"][:copies]


def test_with_an_eps_too_small_to_matter_robust_accuracy_is_clean_accuracy():
    found = evaluate(Linear(), linear_data(), {"pgd": WhiteBox(PGD(Linf(1e-12), steps=5))})
    assert np.array_equal(found.robust["pgd"], found.robust["clean"])


class Helpful:
    """Moves every image to where the model is right."""

    def __call__(self, model, x, y, rng):
        return pixels(toy_data().x[y])


def test_an_attack_cannot_put_right_what_was_wrong():
    data = toy_data()
    misclassified = TensorData(data.x, (data.y + 1) % 3, data.classes)
    model = toy_net().eval()
    found = evaluate(model, misclassified, {"helpful": Helpful()})
    assert not (found.robust["helpful"] & ~found.robust["clean"]).any()


def test_wrong_examples_are_not_attacked():
    seen = []

    class OverfittingMonitor(nn.Module):
        def __call__(self, model, x, y, rng):
            seen.append(len(x))
            return x

    evaluate(Linear(), linear_data(100), {"watch": OverfittingMonitor()}, batch_size=50, backend=OriginalModel())
    assert seen == [50, 40], "what stands is packed anew"


def test_a_model_that_gives_nan_under_attack_counts_as_fooled():
    class Fragile(nn.Module):
        def forward(self, x):
            out = torch.stack([x.flatten(1).sum(1) * 0 + 2, x.flatten(1).sum(1) * 0], 1)
            return out.where(x.amax((1, 2, 3))[:, None] < 0.9, torch.nan)

    data = TensorData(torch.full((4, 1, 2, 2), 0.8), torch.tensor([0, 0, 0, 0]), ("a", "b"))

    class Brighten:
        def __call__(self, model, x, y, rng):
            return x + 0.15

    with pytest.warns(UserWarning, match="4 examples count as broken because the model gives NaN .* under a"):
        found = evaluate(Fragile(), data, {"a": Brighten()})
    assert found.table()["a"].correct == 0
    assert any("under a" in note for note in found.notes)
    assert any("nothing bounds a" in note for note in found.notes)


def test_nan_on_clean_images_counts_as_wrong_and_is_reported():
    class Dark(nn.Module):
        def forward(self, x):
            out = torch.stack([x.flatten(1).sum(1), -x.flatten(1).sum(1)], 1)
            return out.where(x.amax((1, 2, 3))[:, None] > 0.3, torch.nan)

    x = torch.cat([torch.full((3, 1, 2, 2), 0.8), torch.full((2, 1, 2, 2), 0.1)])
    data = TensorData(x, torch.zeros(5, dtype=torch.long), ("a", "b"))
    with pytest.warns(UserWarning, match="2 of 5 clean images give NaN or infinite logits: they count as wrong"):
        found = evaluate(Dark(), data, {"b": WhiteBox(Benign())})
    assert found.robust["b"].tolist() == [True, True, True, False, False]
    assert found.margin["clean"][3] == -np.inf
    assert any("NaN or infinite" in note for note in found.notes)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5), L1(2.0)], ids=repr)
def test_a_gradient_that_is_nan_is_not_taken_for_robustness(threat):
    """sign(NaN) is 0 in torch: an attack would stand still, and the model would look robust."""

    class Rooted(nn.Module):
        def forward(self, x):
            total = (x.sqrt() - x.sqrt()).flatten(1).sum(1)  # 0, with the gradient inf - inf at black pixels
            return torch.stack([2 + total, -total], 1)

    data = TensorData(torch.zeros(4, 1, 3, 3), torch.zeros(4, dtype=torch.long), ("a", "b"))
    pgd = PGD(threat, steps=2, start=CleanStart())
    for attack in (pgd, replace(pgd, patience=0), Restarts(pgd, 2), Worst((Benign(), pgd))):
        with pytest.raises(
            UserError, match=r"pgd gives NaN or infinite pixels for 4 images, first for index 0: the gradient"
        ):
            evaluate(Rooted(), data, {"pgd": WhiteBox(attack)})


def test_the_wrong_number_of_classes_is_refused():
    with pytest.raises(UserError, match="gives 2 classes, but the data have 3"):
        evaluate(toy_net(classes=2), toy_data(), {"b": WhiteBox(Benign())})


def test_a_few_images_need_not_have_the_highest_class():
    images, model = torch.rand(4, 1, 4, 4), toy_net(classes=5)
    few = (images, torch.tensor([0, 2, 1, 2]))
    found = evaluate(model, few, {"b": WhiteBox(Benign())})
    assert found.classes == tuple("01234")
    named = TensorData(images, few[1], ("cat", "dog", "cow"))
    with pytest.raises(UserError, match="gives 5 classes, but the data have 3"):
        evaluate(model, named, {"b": WhiteBox(Benign())})


def test_evaluation_leaves_the_model_as_it_was_and_repeats_itself():
    model, data = toy_net().train(), toy_data()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    attack = {"pgd": WhiteBox(PGD(Linf(0.1), steps=3))}
    one, two = (evaluate(model, data, attack, seed=5).robust["pgd"] for _ in range(2))
    assert np.array_equal(one, two)
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_the_pictures_show_examples_that_the_last_attack_broke():
    model, data = Linear(), linear_data()
    found = evaluate(model, data, {"weak": WhiteBox(Benign()), "fgsm": WhiteBox(FGSM(Linf(0.2)))}, batch_size=64)
    shown = found.examples
    assert 0 < len(shown.label) <= 8
    assert (shown.clean_prediction == shown.label).all()
    assert (shown.adversarial_prediction != shown.label).all()
    assert np.abs(shown.adversarial - shown.clean).max() <= 0.2 + 1e-6


def test_an_unbreakable_model_has_no_pictures():
    assert evaluate(Linear(), linear_data(), {"none": WhiteBox(Benign())}).examples is None


def test_progress_is_told_batch_by_batch():
    told = []
    evaluate(
        Linear(),
        linear_data(100),
        {"b": WhiteBox(Benign())},
        batch_size=40,
        backend=OriginalModel(),
        on_progress=told.append,
    )
    assert [(news.done, news.todo) for news in told] == [(40, 90), (80, 90), (90, 90), (90, 90)]
    assert [news.stage_done for news in told] == [False, False, False, True]
    assert all(news.flags.sum() == 90 for news in told)
    assert told[0].seconds_left > 0 == told[-1].seconds_left


def test_one_step_of_perturb_is_fgsm_written_out():
    model, data = toy_net().eval(), toy_data(9)
    x = pixels(data.x).requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), data.y, reduction="sum"), x)
    wanted = (x + 0.03 * grad.sign()).clamp(0, 1).detach()
    assert torch.allclose(perturb(model, x.detach(), data.y, FGSM(Linf(0.03), start=CleanStart())), wanted, atol=1e-6)


class Dead(nn.Module):
    """Class 1 wins where a unit is alive that is dead at every image: its own gradient tells nothing."""

    def __init__(self):
        super().__init__()
        self.w, self.act = nn.Parameter(torch.ones(16)), nn.ReLU()

    def forward(self, x):
        score = self.act(x.flatten(1) @ self.w - 8.2)
        return torch.stack([torch.full_like(score, 0.1), 10 * score], 1)


@pytest.mark.parametrize(
    "backend", [OriginalModel(), AcceleratedCopy("fp32", "off"), AcceleratedCopy("bf16", "off")], ids=repr
)
def test_an_adversary_follows_the_gradient_of_a_view_and_is_judged_without_it(backend):
    model, data = Dead(), TensorData(torch.full((5, 1, 4, 4), 0.5), torch.zeros(5, dtype=torch.long), ("a", "b"))
    pgd = WhiteBox(PGD(Linf(0.1), 2, 0.05, start=CleanStart(), patience=0))
    both = {"plain": pgd, "smooth": SurrogateGradient(SmoothBackward(1.0), pgd), "again": pgd}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notes of the fast path on a model of two tensors
        found = evaluate(model, data, both, backend=backend)
    assert found.robust["plain"].all() and found.robust["again"].all()
    assert not found.robust["smooth"].any()
    assert found.norm["smooth"].max() <= 0.1 + 1e-6
    assert type(model.act) is nn.ReLU
    z = both["smooth"](model, data.x, data.y, make_rng(0))
    assert float((z - data.x).abs().max()) == pytest.approx(0.05), "it rests once it fools"


def test_what_cannot_look_through_a_view_is_refused():
    pgd = WhiteBox(PGD(Linf(0.1), 2))
    smooth = SmoothBackward(2.0)
    with pytest.raises(UserError, match=r"a SurrogateGradient cannot run under a view: .* several views as one"):
        SurrogateGradient(smooth, SurrogateGradient(smooth, pgd))
    with pytest.raises(UserError, match="a MinimumNorm cannot run under a view"):
        SurrogateGradient(smooth, MinimumNorm(Linf(0.1), (FAB(Linf(0.1)),)))
    with pytest.raises(UserError, match="train_mode is undone by the adversary"):
        SurrogateGradient(train_mode, pgd)
    both = SurrogateGradient(ComposedMode((eval_mode, smooth)), pgd)
    assert repr(both).startswith(
        "SurrogateGradient(ComposedMode((eval_mode, SmoothBackward(alpha=2.0, strict=True))), WhiteBox("
    )


def test_adversaries_in_turn_leave_what_stands_under_all_of_them():
    model, data = toy_net().eval(), toy_data()
    parts = {"fgsm": WhiteBox(FGSM(Linf(0.05))), "pgd": WhiteBox(PGD(Linf(0.05), 5, patience=0))}
    found = evaluate(model, data, {**parts, "worst": Ensemble(parts)})
    assert (found.robust["worst"] <= found.robust["fgsm"] & found.robust["clean"]).all()
    assert np.array_equal(found.robust["worst/fgsm"], found.robust["fgsm"])
    assert found.robust["worst"].sum() < found.robust["clean"].sum()
    with pytest.raises(UserError, match="has no adversaries: give it at least one"):
        Ensemble({})


def test_a_view_costs_what_its_adversary_costs():
    pgd = WhiteBox(PGD(Linf(0.1), 7))
    assert passes(SurrogateGradient(SmoothBackward(), pgd), 10) == passes(pgd, 10)
