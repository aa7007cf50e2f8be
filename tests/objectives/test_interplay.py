"""Objectives beside each other, in other modes, with other numbers of views, and where nothing attacks."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import toy_data
from torch import nn

from sparring import PGD, TRADES, Benign, CrossEntropy, Linf, Method, Sum, UserError, certify
from sparring.core.modes import batch_statistics, eval_mode, train_mode
from sparring.core.types import Batch, Classifier, Context, ForwardCache, Progress, pixels
from sparring.objectives import ELLE, GradAlign, LogitPairing, TemporalEnsembling
from sparring.objectives.acl import ACL
from sparring.objectives.batch_norm_statistics import BatchNormStatistics
from sparring.objectives.consistency import Consistency
from sparring.objectives.contrastive import ContrastiveAT, ContrastivePretraining
from sparring.objectives.instance_discrimination import InstanceDiscrimination
from sparring.objectives.rocl import RoCL
from sparring.training import train_step
from sparring.training.engine import State

DATA = toy_data(12)
X, Y = pixels(DATA.x), DATA.y


def net():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(X.shape[1], 6, 2), nn.BatchNorm2d(6), nn.Flatten(), nn.LazyLinear(8))
    body(X[:2])
    return Classifier(body, nn.Linear(8, len(DATA.classes)))


def trained(objective, attack, steps=3, mode=eval_mode):
    model = net()
    method = Method(attack, objective, inner_mode=mode)
    state = State.start(method, model, torch.optim.SGD(model.parameters(), 0.0), DATA)
    before = int(model.body[1].num_batches_tracked)
    for step in range(steps):
        train_step(method, state, Batch(X, Y, torch.arange(12)), Progress(step, steps, 1))
    return state, int(model.body[1].num_batches_tracked) - before


@pytest.mark.parametrize("objective", [CrossEntropy(), TRADES()])
@pytest.mark.parametrize("of", ["adversarial", "clean", "both"])
def test_batch_norm_learns_from_clean_images_where_nothing_attacks(objective, of):
    _, seen = trained(BatchNormStatistics(objective, of), Benign())
    assert seen == 3


@pytest.mark.parametrize("order", [1, -1])
def test_a_third_tensor_in_a_loss_costs_no_pass_and_counts_no_image_twice(order):
    parts = (CrossEntropy(clean=0.5), LogitPairing(), ELLE(Linf(0.1)))[::order]
    _, seen = trained(Sum(parts), PGD(Linf(0.1), 1), steps=1)
    assert seen == 3
    _, seen = trained(BatchNormStatistics(Sum((TRADES(), ELLE(Linf(0.1)))), "clean"), PGD(Linf(0.1), 1), steps=1)
    assert seen == 1


@pytest.mark.parametrize("mode", [eval_mode, batch_statistics, train_mode])
def test_instance_discrimination_remembers_projections_of_the_eval_mode(mode):
    with eval_mode(model := net()), torch.no_grad():
        wanted = F.normalize(model.features(X), dim=1)
        votes = model(X).softmax(1)
    state, _ = trained(InstanceDiscrimination(negatives=4), Benign(), 1, mode)
    assert torch.allclose(state.memory.seen, wanted, atol=1e-5)
    both = Sum((InstanceDiscrimination(negatives=4), TemporalEnsembling(1.0, decay=0.0)))
    state, _ = trained(both, Benign(), 1, batch_statistics)
    assert torch.allclose(list(state.memory.children())[1].rows, votes, atol=1e-4)


def context(model, views):
    x, y = X[:4].repeat(views, 1, 1, 1), Y[:4].repeat(views)
    batch = Batch(x, y, torch.arange(4).repeat(views), views)
    return Context(ForwardCache(model), batch, nn.Module(), Progress(0, 4, 2))


@pytest.mark.parametrize("objective", [Consistency(), ContrastivePretraining(), ACL(), RoCL()])
@pytest.mark.parametrize("views", [1, 3, 4])
def test_two_views_are_needed_where_two_are_compared(objective, views):
    ctx = context(net().eval(), views)
    with pytest.raises(UserError, match="views_per_image = 2"):
        objective.outer(ctx, ctx.batch.x)


def test_each_of_many_views_is_contrasted_with_its_clean_self():
    model = net().eval()
    one, three = (context(model, views) for views in (1, 3))
    losses = [float(ContrastiveAT().outer(ctx, ctx.batch.x)["contrast"].detach()) for ctx in (one, three)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("scale", [1, 10, 20])
def test_parallel_gradients_are_aligned_however_short_they_are(scale):
    weight = torch.randn(1, X[0].numel(), generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(X[0].numel(), 2, bias=False)).eval()
    model[1].weight.data = torch.cat([weight, -weight]) * scale
    ctx = context(model, 1)
    ctx = replace(ctx, batch=Batch(X, model(X).argmax(1), torch.arange(12)))
    loss = GradAlign(Linf(0.01), 1.0).outer(ctx, X)["misalignment"]
    loss.backward()
    assert float(loss.detach()) < 1e-5 and float(model[1].weight.grad.abs().max()) < 1e-4


def test_a_certification_knows_all_classes_of_the_model():
    found = certify(net().eval(), (X, torch.zeros(12, dtype=torch.long)), 0.25, samples=5, selection=2)
    assert len(found.classes) == len(DATA.classes)
