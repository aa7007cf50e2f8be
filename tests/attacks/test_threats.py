import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from sparring import L1, L2, Linf, UserError, make_rng
from sparring.core.numbers import parse_number
from sparring.testing import check_threat

THREATS = [Linf(0.1), Linf("8/255"), L2(0.5), L2(3), L1(2.0), L1(12.0, share=0.0), L1(5, share=1.0)]


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_every_threat_keeps_its_contract(threat):
    check_threat(threat)


def test_eps_is_a_number_or_a_fraction_in_a_string():
    assert Linf("8/255") == Linf(8 / 255)
    assert L2("0.5").eps == 0.5
    assert parse_number(" 1/4 ") == 0.25


@pytest.mark.parametrize("eps", [0, -0.1, math.nan, math.inf, "eight", "8/0", "", None])
@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_an_eps_that_is_no_size_is_refused(kind, eps):
    with pytest.raises(UserError, match=r"eps|no number"):
        kind(eps)


def test_an_eps_in_the_wrong_unit_is_refused_and_the_right_one_named():
    with pytest.raises(UserError, match=r"eps = 8 is not in \(0, 1\].*did you mean 8/255\?"):
        Linf(8)
    x = torch.rand(2, 3, 4, 4)
    for threat in (L2(128), L1(128)):
        with pytest.raises(UserError, match="did you mean 128/255"):
            threat.project(x, x)


def test_ascent_is_the_steepest_step_of_length_one():
    """The gain of the steepest unit step is the dual norm of the gradient."""
    grad = torch.randn(5, 3, 4, 4, generator=make_rng(0))
    flat = grad.flatten(1)
    dual = {Linf(0.1): flat.abs().sum(1), L2(1.0): flat.norm(dim=1), L1(1.0, share=0.0): flat.abs().amax(1)}
    for threat, gain in dual.items():
        assert torch.allclose((threat.ascent(grad) * grad).flatten(1).sum(1), gain, rtol=1e-5)


def test_l1_ascent_moves_the_share_of_pixels_that_it_is_told():
    grad = torch.randn(3, 1, 10, 10, generator=make_rng(0))
    assert ((L1(1.0, share=0.07).ascent(grad) != 0).flatten(1).sum(1) == 7).all()
    assert ((L1(1.0, share=0.0).ascent(grad) != 0).flatten(1).sum(1) == 1).all()


@pytest.mark.parametrize("seed", range(6))
def test_the_l1_projection_is_the_nearest_point_that_an_optimiser_finds(seed):
    rng = np.random.default_rng(seed)
    x, z, eps = rng.random(8), rng.normal(0.5, 1.0, 8), float(rng.uniform(0.3, 3))

    def split(v):  # up and down moves, so that the constraint is linear
        return x + v[:8] - v[8:]

    best = minimize(
        lambda v: ((split(v) - z) ** 2).sum(),
        np.full(16, 1e-3),
        bounds=[(0, 1)] * 16,
        constraints=[
            {"type": "ineq", "fun": lambda v: eps - v.sum()},
            {"type": "ineq", "fun": split},
            {"type": "ineq", "fun": lambda v: 1 - split(v)},
        ],
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    ours = L1(eps).project(torch.tensor(z)[None, None, None], torch.tensor(x)[None, None, None]).flatten().numpy()
    assert ((ours - z) ** 2).sum() <= best.fun + 1e-6
    assert np.allclose(ours, split(best.x), atol=1e-3)


def test_the_linf_projection_is_the_nearest_point_coordinate_by_coordinate():
    x, z = torch.tensor([[0.02, 0.5, 0.99]]), torch.tensor([[-1.0, 0.53, 3.0]])
    assert torch.allclose(Linf(0.1).project(z, x), torch.tensor([[0.0, 0.53, 1.0]]))


@pytest.mark.parametrize("threat", [Linf(0.4), L2(0.4), L1(0.4)], ids=repr)
def test_samples_fill_the_ball_uniformly(threat):
    """In dimension d, the share of a ball's volume within radius r eps is r^d."""
    x = torch.full((20_000, 1, 1, 3), 0.5)
    radius = threat.norm(threat.sample(x, make_rng(0)) - x) / threat.eps
    for r in (0.5, 0.8):
        assert (radius < r).float().mean() == pytest.approx(r**3, abs=0.015)


def test_a_share_outside_0_to_1_is_refused():
    with pytest.raises(UserError, match=r"share = 2 is not in \[0, 1\]"):
        L1(1.0, share=2)
