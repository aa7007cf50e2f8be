"""Devices without float64, such as Apple's GPUs: nothing that runs at every step or every batch may need it."""

import pytest
import torch
from pretended import MixedDevicesError, NoFloat64Error, OnGPU, pretended

from sparring import (
    APGD,
    FGSM,
    L1,
    L2,
    MART,
    PGD,
    TRADES,
    CrossEntropy,
    GaussianStart,
    Linf,
    Margin,
    Method,
    RandomStart,
    State,
    TensorData,
    WhiteBox,
    evaluate,
    train_step,
)
from sparring.acceleration import AcceleratedCopy
from sparring.attacks import FAB, NFGSM, MultiGrad, Square
from sparring.core.rng import PerExample, exponential, normal, uniform
from sparring.core.types import Batch, Progress
from sparring.models import Normalize, linear_probe, small_cnn
from sparring.objectives import Sum, TemporalEnsembling
from sparring.objectives.grad_align import GradAlign
from sparring.training import SGD
from sparring.training.updates import AWP, OptimizerStep

pytestmark = pytest.mark.slow

SIDE, N = 8, 12
THREAT = Linf("8/255")
BACKEND = AcceleratedCopy("fp32", "off")


def net():
    torch.manual_seed(0)
    return small_cnn(4, (1, SIDE, SIDE), width=2, batch_norm=True).to("cuda")


def images():
    torch.manual_seed(1)
    x, y = torch.rand(N, 1, SIDE, SIDE), torch.arange(N) % 4
    return TensorData((255 * x).to(torch.uint8), y, tuple("abcd")).to("cuda")


METHODS = {
    "pgd": (PGD(THREAT, 2, start=RandomStart()), CrossEntropy()),
    "trades": (PGD(THREAT, 2, start=GaussianStart()), TRADES()),
    "mart": (PGD(THREAT, 2), MART()),
    "ensembling": (PGD(THREAT, 2), Sum((CrossEntropy(), TemporalEnsembling(1.0)))),
    "n-fgsm": (NFGSM(THREAT), CrossEntropy()),
    "multi-grad": (MultiGrad(THREAT), CrossEntropy()),
    "grad-align": (FGSM(THREAT), Sum((CrossEntropy(), GradAlign(THREAT)))),
    "l1": (PGD(L1(5.0), 2, start=RandomStart()), CrossEntropy()),
}


@pytest.mark.parametrize("name", [*METHODS, "awp"])
def test_a_training_step_needs_no_float64(name):
    update = AWP(0.01) if name == "awp" else OptimizerStep()
    with pretended(float64=False):
        model, data = net().train(), images()
        method = Method(*METHODS.get(name, METHODS["pgd"]))
        state = State.start(method, model, SGD().build(model), data)
        index = torch.arange(N, device="cuda")
        for step in range(2):
            batch = Batch(data.x / 255, data.y, index)
            train_step(method, state, batch, Progress(step, 10, 2), update, BACKEND)
        assert all(isinstance(p, OnGPU) for p in model.parameters())


@pytest.mark.parametrize(
    "adversary",
    [
        WhiteBox(PGD(THREAT, 2, patience=0)),
        WhiteBox(PGD(L2(0.5), 2, start=RandomStart())),
        WhiteBox(APGD(L1(3.0), 3)),
        WhiteBox(Square(THREAT, 4)),
        WhiteBox(FAB(THREAT, 3), Margin),
    ],
    ids=["pgd", "l2", "apgd-l1", "square", "fab"],
)
def test_an_evaluation_needs_no_float64(adversary):
    with pretended(float64=False):
        assert evaluate(net().eval(), images(), {"a": adversary}, backend=BACKEND).table()["a"].examples == N


def test_random_numbers_of_examples_are_in_float32_and_near_those_of_float64():
    index = torch.arange(200)
    like = torch.zeros(200, 50)
    for draw in (uniform, normal, exponential):
        fine = draw(like.double(), PerExample(0, index))
        with pretended(float64=False):
            coarse = draw(like.to("cuda"), PerExample(0, index.to("cuda"))).cpu()
        assert coarse.dtype == torch.float32
        usual = fine.abs() < 5  # the tail is as coarse as 1 - u in float32
        assert usual.float().mean() > 0.98
        assert torch.allclose(coarse.double()[usual], fine[usual], rtol=1e-3, atol=1e-4), draw
        assert (coarse < 1).all() or draw is not uniform


def test_a_probe_and_the_statistics_of_images_are_computed_without_it():
    x, y = torch.randn(30, 4), torch.arange(30) % 2
    with pretended(float64=False):
        found = linear_probe(x.to("cuda"), y.to("cuda"), 2)
        assert isinstance(found.weight, OnGPU)
        assert Normalize.of(images()).mean.shape == (1, 1, 1, 1)
    assert torch.allclose(found.weight.held, linear_probe(x, y, 2).weight, atol=1e-4)


def test_the_pretended_device_refuses_what_it_must():
    with pretended(float64=False), pytest.raises(NoFloat64Error):
        torch.rand(3, device="cuda").double()
    with pretended(), pytest.raises(MixedDevicesError):
        torch.rand(3, device="cuda") + torch.rand(3)
    with pretended(), pytest.raises(MixedDevicesError):
        torch.rand(3, device="cuda", generator=torch.Generator())
    with pretended(), pytest.raises(MixedDevicesError):
        torch.rand(3)[torch.arange(2, device="cuda")]
    with pretended():
        assert torch.rand(3, device="cuda").double().dtype == torch.float64
