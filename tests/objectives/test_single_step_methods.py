"""Single-step methods against their formulas in plain torch, in double precision."""

import copy
import math
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparring import FGSM, PGD, CleanStart, CrossEntropy, Linf, Method, Progress, State, Sum, UserError, train_step
from sparring.acceleration import OriginalModel
from sparring.attacks import Restarts, SignStart
from sparring.core.rng import make_rng
from sparring.core.types import Batch, TensorData
from sparring.data import Batches, Crop, Flip
from sparring.models import small_cnn
from sparring.objectives import ATTA, ELLE, FGSMMEP, GAT, TDAT, NuAT
from sparring.testing import check_objective

EPS = 0.1
BALL = Linf(EPS)
X = torch.rand(12, 3, 8, 8, generator=make_rng(0)).double()
Y = torch.arange(12) % 3
BATCH = Batch(X, Y, torch.arange(12))


class Watching:
    """Takes no step, and keeps the points and the terms of the step."""

    def __call__(self, model, optimizer, closure):
        self.terms = {name: term.detach() for name, term in closure().items()}
        return self.terms


def begun(method):
    torch.manual_seed(0)
    model = small_cnn(3, (3, 8, 8), width=4).double().eval()
    data = TensorData(X, Y, ("a", "b", "c"))
    return State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1), data, seed=5)


def points(state):
    """The points at which the model is asked in the steps that follow."""
    seen = []
    state.model.register_forward_hook(lambda module, args, out: seen.append(args[0].detach().clone()))
    return seen


def step(method, state, progress, batch=BATCH):
    watching = Watching()
    train_step(method, state, batch, progress, watching, OriginalModel())
    return watching.terms


def close(a, b, atol=1e-10):
    return torch.allclose(a, b, rtol=0, atol=atol)


def grad_of(loss, z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(loss(z), z)[0]


def inside(z):
    return torch.minimum(torch.maximum(z, X - EPS), X + EPS).clamp(0, 1)


def test_fgsm_mep_is_its_formula_over_three_epochs():
    method = Method(FGSM(BALL), FGSMMEP(BALL, weight=10.0, momentum=0.3, true=0.6, reset=3))
    state = begun(method)
    model, seen = copy.deepcopy(state.model), points(state)
    label = 0.2 + 0.4 * F.one_hot(Y, 3).double()

    def loss(z):
        return -(label * model(z).log_softmax(1)).sum()

    momentum, start = torch.zeros_like(X), None
    for epoch in range(3):
        seen.clear()
        terms = step(method, state, Progress(epoch, 1, 9))
        begin, x_adv = seen[-2:]
        if epoch == 0:
            assert close(((begin - X).abs() - EPS)[(X > EPS) & (X < 1 - EPS)], torch.tensor(0.0).double())
            start = begin
        assert close(begin, start)
        grad = grad_of(loss, start)
        assert close(x_adv, inside(start + EPS * grad.sign()))
        momentum = grad / grad.abs().mean((1, 2, 3), keepdim=True) + 0.3 * momentum
        kept = (inside(start + EPS * momentum.sign()) - X).float().double()
        momentum = momentum.float().double()
        assert close(terms["ce"], loss(x_adv) / 12)
        assert close(terms["moved"], 10 * (model(x_adv) - model(start)).square().mean())
        start = inside(X + kept)
    seen.clear()
    step(method, state, Progress(3, 1, 9))
    assert not close(seen[-2], start, 0.01), "the fourth epoch begins anew, and so does its momentum"
    grad = grad_of(loss, seen[-2])
    momentum = (grad / grad.abs().mean((1, 2, 3), keepdim=True)).float().double()
    assert close(state.memory.momentum.rows.double().view_as(X), momentum)


def test_fgsm_mep_keeps_its_contract_and_refuses_other_attacks():
    check_objective(FGSMMEP(BALL, reset=2), FGSM(BALL))
    with pytest.raises(UserError, match=r"FGSMMEP begins in Linf\(eps=0.3\), and its attack stays in Linf\(eps=0.1\)"):
        Method(FGSM(BALL), FGSMMEP(Linf(0.3)))
    method = Method(PGD(BALL, 2), FGSMMEP(BALL))
    state = begun(method)
    with pytest.raises(UserError, match="keeps the gradient of one step"):
        step(method, state, Progress(0, 1, 9))


def test_a_sign_start_moves_every_pixel_by_its_share_of_eps():
    x = torch.full((4, 3, 8, 8), 0.5)
    moved = SignStart(0.5)(BALL, x, make_rng(0)) - x
    assert torch.allclose(moved.abs(), torch.tensor(0.05)) and 0.4 < (moved > 0).float().mean() < 0.6


def test_atta_goes_on_where_it_ended_through_crops_and_flips():
    method = Method(PGD(BALL, 1, 0.03, CleanStart()), Sum((CrossEntropy(), ATTA(reset=3))))
    state = begun(method)
    model, seen = copy.deepcopy(state.model), points(state)
    kept = torch.zeros(12, 3, 8, 8).double()
    batches = Batches(TensorData(X, Y, ("a", "b", "c")), 12, (Crop(2), Flip()), 3, places=True)
    for epoch in range(4):
        seen.clear()
        batch = next(batches.rest_of_epoch(epoch))
        batch = replace(batch, x=batch.x.double())
        step(method, state, Progress(epoch, 1, 9), batch)
        if epoch % 3 == 0:
            kept.zero_()
        start, x_adv = seen[-2:]
        delta = torch.zeros_like(start)
        for i, row, h, w, place in moved(batch):
            delta[i, :, h, w] = kept[row, :, place // 8, place % 8]
            assert close(batch.x[i, :, h, w], X[row, :, place // 8, place % 8], 1e-6)
        assert close(start, batch.x + delta)
        grad = grad_of(lambda z, y=batch.y: F.cross_entropy(model(z), y, reduction="sum"), start)
        z = start + 0.03 * grad.sign()
        z = torch.minimum(torch.maximum(z, batch.x - EPS), batch.x + EPS).clamp(0, 1)
        assert close(x_adv, z)
        for i, row, h, w, place in moved(batch):
            kept[row, :, place // 8, place % 8] = (z - batch.x)[i, :, h, w].float().double()
    assert close(state.memory[1].rows.double().view_as(kept), kept) and bool(kept.any())


def moved(batch):
    """Row of the batch, number of the image, and new and old place of each pixel that is not padding."""
    for i, h, w in product(range(12), range(8), range(8)):
        if (place := int(batch.places[i, h, w])) >= 0:
            yield i, int(batch.index[i]), h, w, place


def test_atta_keeps_its_contract():
    check_objective(Sum((CrossEntropy(), ATTA(reset=2))), FGSM(BALL))


def test_elle_is_the_squared_difference_of_the_loss_from_a_linear_one():
    objective = ELLE(BALL, 7.0)
    method = Method(FGSM(BALL), Sum((CrossEntropy(), objective)))
    state = begun(method)
    model, seen = copy.deepcopy(state.model), points(state)
    terms = step(method, state, Progress(0, 1, 9))
    a, b, c = next(z for z in seen if len(z) == 36).chunk(3)
    assert bool((torch.stack([a, b]) - X).abs().max() <= EPS) and not close(a, b, 0.05)
    share = ((c - a) * (b - a)).sum((1, 2, 3)) / (b - a).square().sum((1, 2, 3))
    assert close(c, a + share.view(-1, 1, 1, 1) * (b - a)) and bool(((share > 0) & (share < 1)).all())
    at = [F.cross_entropy(model(z), Y, reduction="none") for z in (a, b, c)]
    assert close(terms["nonlinearity"], 7 * (at[2] - (1 - share) * at[0] - share * at[1]).square().mean())


def test_elle_a_raises_its_weight_when_the_error_is_high():
    method = Method(FGSM(BALL), Sum((CrossEntropy(), ELLE(BALL, 7.0, adaptive=True, sensitivity=0.5, decay=0.9))))
    plain = Method(FGSM(BALL), Sum((CrossEntropy(), ELLE(BALL, 1.0))))
    state, other = begun(method), begun(plain)
    weight, errors, raised = 0.0, [], 0
    for number in range(12):
        progress = Progress(number, 12, 9)
        error = float(step(plain, other, progress)["nonlinearity"])
        if len(errors) > 2 and error > np.mean(errors) + 0.5 * np.std(errors):
            weight, raised = 7.0, raised + 1
        else:
            weight *= 0.9
        errors.append(error)
        found = step(method, state, progress)["nonlinearity"]
        assert float(found) == pytest.approx(weight * error, rel=1e-5)
    assert 0 < raised < 9


def test_elle_keeps_its_contract():
    check_objective(Sum((CrossEntropy(), ELLE(BALL, adaptive=True))), FGSM(BALL))


@pytest.mark.parametrize("number", [0, 1])
def test_gat_is_its_formula_and_relaxes_every_second_step(number):
    method = Method(FGSM(BALL, start=SignStart(0.5)), GAT(60.0))
    state = begun(method)
    state.model.head.weight.data.mul_(30)  # so that predictions differ
    model, seen = copy.deepcopy(state.model), points(state)
    terms = step(method, state, Progress(4 + number, 4, 9))
    (start, x_adv), clean = seen[-3:-1], model(X).softmax(1).detach()
    assert close(((start - X).abs() - EPS / 2)[(X > EPS) & (X < 1 - EPS)], torch.tensor(0.0).double())

    def loss(z, share):
        apart = (model(z).softmax(1) - clean).square().sum()
        return F.cross_entropy(model(z), Y, reduction="sum") + 60 * share * apart

    points_by = [inside(start + EPS * grad_of(partial(loss, share=share), start).sign()) for share in (0, 1)]
    assert close(x_adv, points_by[number]) and not close(*points_by)
    assert close(terms["ce_clean"], F.cross_entropy(model(X), Y))
    assert close(terms["distance"], 60 * (model(x_adv).softmax(1) - clean).square().sum(1).mean())


def test_gat_keeps_its_contract():
    check_objective(GAT(), FGSM(BALL, start=SignStart(0.5)))


@pytest.mark.parametrize(("number", "share"), [(4, 1 / 6), (9, 2 / 6), (35, 1.0)])
def test_nuat_is_its_formula_and_its_weight_rises_from_epoch_to_epoch(number, share):
    method = Method(FGSM(BALL, start=SignStart(0.5)), NuAT(6.0, last=3))
    state = begun(method)
    model, seen = copy.deepcopy(state.model), points(state)
    terms = step(method, state, Progress(number, 4, 9))
    (start, x_adv), clean = seen[-3:-1], model(X).detach()

    def nuclear(z):
        return 6 * share * torch.linalg.matrix_norm(model(z) - clean, "nuc")

    def loss(z):
        return F.cross_entropy(model(z), Y, reduction="sum") + (nuclear(z) if number % 2 else 0)

    assert close(x_adv, inside(start + EPS * grad_of(loss, start).sign()))
    assert close(terms["ce_clean"], F.cross_entropy(model(X), Y))
    assert close(terms["nuclear"], nuclear(x_adv) / 12)


def test_nuat_keeps_its_contract_and_attacks_whole_batches():
    check_objective(NuAT(), FGSM(BALL, start=SignStart(0.5)))
    method = Method(Restarts(FGSM(BALL)), NuAT())
    state = begun(method)
    with pytest.raises(UserError, match="takes some rows out of a batch whose changes of logits have one nuclear norm"):
        step(method, state, Progress(1, 4, 9))


@pytest.mark.parametrize(("momentum", "epoch"), [(0.75, 0), (0.0, 7)])
def test_tdat_is_its_formula_and_begins_where_the_batch_before_ended(momentum, epoch):
    method = Method(FGSM(BALL), TDAT(BALL, weight=0.65, beta=0.6, least=0.15, momentum=momentum))
    state = begun(method)
    model, seen = copy.deepcopy(state.model), points(state)
    true = max(0.15, 0.6 * math.tan(1 - epoch / 9))
    hard = F.one_hot(Y, 3).double()
    label = true * hard + (1 - true) / 2 * (1 - hard)
    smooth = true * hard + (1 - true) / 3
    delta = None
    for number in range(3):
        seen.clear()
        terms = step(method, state, Progress(epoch * 3 + number, 3, 9))
        start, x_adv = seen[-2:]
        delta = start - X if delta is None else delta
        assert close(start, inside(X + delta))

        def loss(z):
            return -(label * model(z).log_softmax(1)).sum()

        assert close(x_adv, inside(start + EPS * grad_of(loss, start).sign()))
        before, after = model(start), model(x_adv)
        assert close(terms["ce"], -(smooth * after.log_softmax(1)).sum(1).mean())
        right = before.softmax(1)[torch.arange(12), Y]
        moved = ((before - after).square().sum(1) * (1.0000001 - right).tanh()).mean()
        assert close(terms["moved"], 0.65 * moved)
        delta = momentum * delta + (1 - momentum) * (x_adv - X)


def test_tdat_asks_for_the_training_set():
    model, method = begun(Method(FGSM(BALL), CrossEntropy())).model, Method(FGSM(BALL), TDAT(BALL))
    with pytest.raises(UserError, match=r"give the training set to State\.start"):
        method.loss(model, BATCH, seed=1, backend=OriginalModel())


def test_tdat_keeps_its_contract_and_takes_batches_of_any_size():
    check_objective(TDAT(BALL), FGSM(BALL))
    method = Method(FGSM(BALL), TDAT(BALL))
    state = begun(method)
    for number, count in enumerate((6, 4, 12)):
        few = Batch(X[:count], Y[:count], torch.arange(count))
        step(method, state, Progress(number, 3, 9), few)
        assert len(state.memory.held) == (6, 6, 12)[number]
