"""FARE: an encoder is fine-tuned so that its features stay those of the original."""

import shutil
from dataclasses import replace

import pytest
import torch
from helpers import bits, stop_at
from torch import nn

from sparring import PGD, Classifier, Linf, Method, State, UserError, fit, load_model, train_step
from sparring.core.rng import make_rng
from sparring.core.teachers import ORIGINAL, Teacher
from sparring.core.types import Batch, Context, ForwardCache, GivenStart, Progress
from sparring.data import Digits
from sparring.models import small_cnn
from sparring.objectives import FARE
from sparring.training import Interrupted

X = (0.1 + 0.8 * torch.rand(12, 1, 8, 8, generator=make_rng(0))).double()
NEAR = X + 0.001 * torch.randn(X.shape, generator=make_rng(2)).double()
Y = torch.arange(12) % 3
BALL = Linf(0.05)


def encoder(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 5)).double()


def model(seed=0):
    return Classifier(encoder(seed), nn.Linear(5, 3).double())


def context(student, objective):
    return Context(ForwardCache(student), Batch(X, Y, torch.arange(12)), objective.init(None), Progress(0, 1, 1))


def crafted(student, objective):
    return PGD(BALL, 4, 0.02, GivenStart(NEAR))(objective.inner(context(student, objective)), X, make_rng(0))


def test_fare_is_the_squared_distance_to_what_the_original_gives_for_the_clean_image():
    student, original = model(0), model(1)
    objective = FARE(Teacher.of(original))
    wanted = original.body(X).detach()

    def apart(z):
        return ((student.body(z) - wanted) ** 2).sum() / 12

    z = NEAR
    for _ in range(4):
        z = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(apart(z), z)
        z = (z + 0.02 * grad.sign()).clamp(X - 0.05, X + 0.05).clamp(0, 1)
    found = crafted(student, objective)
    assert torch.allclose(found, z.detach(), rtol=0, atol=1e-10)
    terms = objective.outer(context(student, objective), found)
    assert terms.keys() == {"distance"}
    assert torch.allclose(terms["distance"], apart(found), rtol=0, atol=1e-10)


def test_the_encoder_is_trained_and_its_head_is_not_nor_decayed():
    student = model(0)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    method = Method(PGD(BALL, 2), FARE(Teacher.of(model(1))))
    state = State.start(method, student, torch.optim.SGD(student.parameters(), lr=0.1, weight_decay=0.1))
    train_step(method, state, Batch(X, Y, torch.arange(12)), Progress(0, 2, 1))
    moved = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.startswith("body.")}


def test_under_attack_a_tuned_encoder_stays_nearer_to_the_original_than_the_original():
    student, original = model(0), model(0)
    objective = FARE(Teacher.of(original))
    method = Method(PGD(BALL, 3), objective)
    state = State.start(method, student, torch.optim.Adam(student.parameters(), lr=0.003))
    for step in range(60):
        train_step(method, state, Batch(X, Y, torch.arange(12)), Progress(step, 60, 1))
    found, wanted = (
        objective.inner(context(each, objective))(crafted(each, objective)).value.mean().detach()
        for each in (student, original)
    )
    assert found < 0.7 * wanted


def test_a_model_without_features_cannot_be_an_encoder():
    objective = FARE(Teacher.of(encoder()))
    with pytest.raises(UserError, match=r"features are asked of a Sequential.*wrap it as sparring\.Classifier"):
        objective.inner(context(model(), objective))


def test_in_a_loop_of_ones_own_the_original_is_given():
    with pytest.raises(UserError, match=r"the teacher '\{original\}' is not loaded"):
        FARE().inner(context(model(), FARE()))
    objective, student = FARE(Teacher.of(model())), model()
    memory = objective.init(None)
    assert Method(PGD(BALL, 2), objective).loss(student, (X, Y), seed=0, memory=memory) > 0


@pytest.mark.slow
def test_the_original_is_the_model_that_a_run_begins_with_also_when_it_is_resumed(tiny, tmp_path):
    fit(replace(tiny, epochs=1), tmp_path / "first")
    recipe = replace(tiny, init_from="first", method=Method(PGD(Linf(0.1), 2), FARE()), epochs=2)
    assert recipe.method.objective.original == ORIGINAL
    whole = fit(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "cut", on_progress=stop_at(3))
    shutil.copytree(tmp_path / "cut", tmp_path / "again")
    assert bits(fit(recipe, tmp_path / "cut")) == bits(whole)

    first, tuned, other = (load_model(tmp_path / "first"), load_model(whole.path), small_cnn(10, (1, 8, 8), width=4))
    x = Digits().load()[1].x[:100] / 255
    with torch.no_grad():
        wanted, found, random = (each.eval().features(x) for each in (first, tuned, other))
    assert (found - wanted).norm() < 0.3 * (random - wanted).norm()

    shutil.rmtree(tmp_path / "first")
    with pytest.raises(UserError, match="which has no best weights: train that run first"):
        fit(recipe, tmp_path / "again")
