"""HopSkipJump on linear models, whose nearest adversarial point is known in closed form."""

import pytest
import torch
from conftest import Linear
from torch import nn

from sparring import L1, L2, Linf, Margin, UserError
from sparring.attacks import HopSkipJump
from sparring.core.rng import PerExample
from sparring.core.types import LossOutput

pytestmark = pytest.mark.slow

COUNT = 12


@pytest.fixture(scope="module")
def case():
    """Images in the middle of the cube, so that the nearest points of the boundary are inside it."""
    net = Linear(48, seed=3)
    net.w.data -= net.w.data.mean()  # random images are then of both classes
    x = 0.5 + 0.4 * (torch.rand(COUNT, 3, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5)
    with torch.no_grad():
        y = net(x).argmax(1)
        score = (x.flatten(1) @ net.w).abs()
    return net.eval(), x, y, {L2: score / net.w.data.norm(), Linf: score / net.w.data.abs().sum()}


class Decisions:
    """A loss that knows which examples are fooled, and nothing else."""

    def __init__(self, net, y):
        self.net, self.y, self.asked = net, y, 0

    def __call__(self, z):
        assert not z.requires_grad
        self.asked += 1
        return LossOutput(torch.full((len(z),), torch.nan), self.net(z).argmax(1) != self.y)

    def __getitem__(self, rows):
        return Decisions(self.net, self.y[rows])


def rng():
    return PerExample(0, torch.arange(COUNT))


@pytest.mark.parametrize("ball", [L2, Linf])
def test_it_comes_near_the_exact_distance_from_decisions_alone_and_never_below_it(case, ball):
    net, x, y, exact = case
    found = HopSkipJump(ball(0.3), steps=8).closest(Decisions(net, y), x, rng())
    assert (net(found.points).argmax(1) != y).all()
    assert torch.allclose(found.norm, ball(0.3).norm(found.points - x))
    assert float(found.points.min()) >= 0 and float(found.points.max()) <= 1
    share = found.norm / exact[ball]
    assert float(share.min()) > 1 - 1e-3
    assert float(share.median()) < 1.15
    assert float(share.max()) < 1.5


def test_more_steps_come_nearer(case):
    net, x, y, _ = case
    few, many = (HopSkipJump(L2(0.3), steps).closest(Decisions(net, y), x, rng()).norm for steps in (1, 6))
    assert (many <= few).all()
    assert float((many / few).mean()) < 0.8


def test_as_an_attack_it_stays_in_the_ball_and_fools_where_the_boundary_is_well_inside(case):
    net, x, y, exact = case
    eps = float(exact[L2].quantile(0.6))
    z = HopSkipJump(L2(eps), steps=8)(Decisions(net, y), x, rng())
    fooled = net(z).argmax(1) != y
    assert (L2(eps).norm(z - x) <= eps * (1 + 1e-5)).all()
    assert fooled[exact[L2] < eps / 1.3].all()
    assert not fooled[exact[L2] > eps].any()


def test_an_example_draws_the_same_numbers_whatever_the_others_do(case):
    net, x, y, _ = case
    attack = HopSkipJump(L2(0.3), steps=3)
    whole = attack.closest(Margin(net, y), x, rng())
    rows = torch.tensor([7, 2])
    part = attack.closest(Margin(net, y[rows]), x[rows], PerExample(0, rows))
    assert torch.allclose(part.points, whole.points[rows], atol=1e-5)


def test_a_model_that_is_never_fooled_has_no_point():
    class Sure(nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

    x = torch.rand(3, 1, 2, 2)
    found = HopSkipJump(L2(0.3), 2).closest(Margin(Sure().eval(), torch.zeros(3, dtype=torch.long)), x, rng())
    assert found.norm.isinf().all()
    assert torch.equal(found.points, x)


def test_the_number_of_queries_is_what_it_says_at_most():
    class Counting(Linear):
        asked = 0

        def forward(self, x):
            type(self).asked += 1
            return super().forward(x)

    net, attack = Counting(48).eval(), HopSkipJump(Linf(0.3), steps=4)
    x = torch.rand(1, 3, 4, 4)
    with torch.no_grad():
        y = net(x).argmax(1)
    attack.closest(Margin(net, y), x, PerExample(0, torch.arange(1)))
    assert sum(attack.samples_at(step) for step in range(1, 5)) < Counting.asked <= attack.queries


def test_what_it_cannot_work_with_is_a_sentence():
    with pytest.raises(UserError, match=r"HopSkipJump is defined for Linf and L2, not for L1\(eps=2"):
        HopSkipJump(L1(2))
    with pytest.raises(UserError, match="steps"):
        HopSkipJump(L2(1), steps=0)
