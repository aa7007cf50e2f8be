"""Eps that is drawn for each batch or example, and sets that are smaller for some."""

from dataclasses import replace

import pytest
import torch
from conftest import toy_data, toy_net
from scipy import stats

from sparring import (
    APGD,
    CE,
    L1,
    L2,
    PGD,
    Benign,
    CleanStart,
    CrossEntropy,
    Linf,
    Method,
    RandomStart,
    UserError,
    fit,
    make_rng,
)
from sparring.attacks import MixedStart, RandomEps, SignStart, SphereStart
from sparring.attacks.threats import ScaledThreat
from sparring.core.rng import PerExample
from sparring.core.schedules import EpsWarmUp
from sparring.core.serialization import from_plain, to_plain
from sparring.core.types import pixels
from sparring.evaluation import threat_of
from sparring.testing import check_attack
from sparring.training import OptimizerStep
from sparring.training.cost import cost

THREATS = [Linf(0.2), L2(0.8), L1(3.0)]


def value_and_grad():
    """Every pixel up, by weights of any sign: attacks go to the border."""

    class Line:
        def __init__(self, w):
            self.w = w

        def __call__(self, x):
            from sparring import LossOutput

            return LossOutput((x * self.w).flatten(1).sum(1))

        def __getitem__(self, rows):
            return self

    return Line(torch.randn(1, 1, 4, 4, generator=make_rng(0)))


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_a_set_that_shrinks_is_the_smaller_set(threat):
    x, share = torch.rand(6, 1, 4, 4, generator=make_rng(0)), torch.tensor([0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
    z = x + torch.randn(x.shape, generator=make_rng(1))
    some = ScaledThreat(threat, share)
    assert some.eps == threat.eps
    for i in range(1, 6):
        alone = replace(threat, eps=float(share[i]) * threat.eps)
        assert torch.allclose(some.project(z, x)[i], alone.project(z[i : i + 1], x[i : i + 1])[0], atol=1e-6)
        assert torch.allclose(some.ascent(z)[i], share[i] * threat.ascent(z[i : i + 1])[0])
    assert torch.allclose(some.project(z, x)[0], x[0], atol=1e-6)
    for point in (some.sample(x, make_rng(2)), some.project(z, x)):
        assert bool((some.norm(point - x) <= share * threat.eps + 1e-5).all())
        assert float(point.min()) >= 0 and float(point.max()) <= 1


@pytest.mark.parametrize("by", ["batch", "example"])
@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_the_contract_of_attacks_is_kept(threat, by):
    check_attack(RandomEps(PGD(threat, 3), by), threat)


def reached(attack, n=4000, rng=None):
    """How far each example went, as a share of eps: in the middle of [0, 1] nothing clips."""
    x = torch.full((n, 1, 4, 4), 0.5)
    z = attack(value_and_grad(), x, rng or make_rng(0))
    return (z - x).flatten(1).abs().amax(1) / attack.attack.threat.eps


@pytest.mark.slow
@pytest.mark.parametrize(("low", "alpha", "beta"), [(0.0, 1.0, 1.0), (0.4, 1.0, 1.0), (0.0, 2.0, 5.0), (0.2, 0.5, 0.5)])
def test_eps_is_distributed_as_it_says(low, alpha, beta):
    share = reached(RandomEps(PGD(Linf(0.1), 3, start=CleanStart()), "example", low, alpha, beta))
    drawn = (share - low) / (1 - low)
    assert stats.kstest(drawn.numpy(), stats.beta(alpha, beta).cdf).pvalue > 0.01
    batches = torch.stack(
        [
            reached(RandomEps(PGD(Linf(0.1), 1, start=CleanStart()), "batch", low, alpha, beta), 3, make_rng(i))
            for i in range(300)
        ]
    )
    assert torch.allclose(batches, batches[:, :1].expand(-1, 3), atol=1e-5)  # the same for all of a batch
    assert stats.kstest(((batches[:, 0] - low) / (1 - low)).numpy(), stats.beta(alpha, beta).cdf).pvalue > 0.01


def test_in_evaluation_an_example_knows_of_no_batch():
    attack = RandomEps(PGD(Linf(0.1), 2), "batch")
    whole = reached(attack, 6, PerExample(0, torch.arange(6)))
    assert torch.allclose(reached(attack, 2, PerExample(0, torch.tensor([3, 4]))), whole[3:5])
    assert len(set(whole.tolist())) == 6


def test_steps_shrink_with_eps_also_where_their_size_was_given():
    attack = RandomEps(PGD(Linf(0.1), 1, 0.05, CleanStart()), "example")
    assert float(reached(attack).max()) <= 0.5 + 1e-5
    data, net = toy_data(12), toy_net().eval()
    found = attack(CE(net, data.y), pixels(data.x), make_rng(0))
    assert found.shape == data.x.shape and all(p.grad is None for p in net.parameters())


@pytest.mark.slow
def test_it_is_a_value_that_costs_what_the_attack_costs(tiny, tmp_path):
    attack = RandomEps(PGD(L2(0.5), 2), "example", alpha=2.0)
    assert from_plain(to_plain(attack)) == attack and threat_of(attack) == L2(0.5)
    assert cost(Method(attack, CrossEntropy()), OptimizerStep(), 1, 10).both == 3
    recipe = replace(tiny, epochs=1, method=Method(attack, CrossEntropy()))
    runs = [fit(recipe, tmp_path / name, device="cpu") for name in "ab"]
    assert runs[0].weights("last").read_bytes() == runs[1].weights("last").read_bytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomEps(Benign()), "RandomEps needs a PGD, not Benign"),
        (lambda: RandomEps(APGD(Linf(0.1))), "RandomEps needs a PGD, not APGD"),
        (lambda: RandomEps(EpsWarmUp(PGD(Linf(0.1)))), "RandomEps needs a PGD, not EpsWarmUp"),
        (lambda: RandomEps(PGD(Linf(0.1), patience=0)), "with patience, examples leave the batch"),
        (lambda: RandomEps(PGD(Linf(0.1), start=SphereStart())), r"SphereStart\(\) starts at the whole eps"),
        (
            lambda: RandomEps(PGD(Linf(0.1), start=MixedStart(SphereStart()))),
            r"SphereStart\(\) starts at the whole eps",
        ),
        (lambda: RandomEps(PGD(Linf(0.1), start=SignStart())), r"SignStart\(\) needs one eps for all examples"),
        (lambda: RandomEps(PGD(Linf(0.1)), "image"), "by = 'image' is not one of batch, example"),
        (lambda: RandomEps(PGD(Linf(0.1)), low=1.0), r"low must be in \[0, 1\), not 1"),
        (lambda: RandomEps(PGD(Linf(0.1)), alpha=0.0), "alpha and beta must be above 0"),
        (lambda: RandomEps(PGD(ScaledThreat(Linf(0.1), torch.ones(1)))), "RandomEps is defined for Linf, L2 and L1"),
        (lambda: reached(RandomEps(PGD(L2(50.0), start=CleanStart()))), r"L2 eps = 50 is not in \(0, 4\]"),
        (lambda: EpsWarmUp(RandomEps(PGD(Linf(0.1)))), "RandomEps has no eps of its own"),
    ],
)
def test_what_cannot_vary_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_it_starts_within_the_smaller_set():
    x = torch.full((500, 1, 4, 4), 0.5)
    some = ScaledThreat(Linf(0.2), torch.linspace(0, 1, 500))
    start = (RandomStart()(some, x, make_rng(0)) - x).flatten(1).abs().amax(1)
    assert bool((start <= some.share * 0.2 + 1e-6).all()) and float(start[400:].min()) > 0.1
