"""What must not look like robustness: gradients that are NaN, and gradients that are very short."""

import numpy as np
import pytest
import torch
from torch import nn

from sparring import L2, PGD, Linf, UserError, WhiteBox, evaluate
from sparring.attacks import APGD, DDN, FAB, Restarts
from sparring.attacks.fab import to_hyperplane
from sparring.attacks.losses import Margin
from sparring.attacks.single_step import NFGSM
from sparring.attacks.threats import rescaled
from sparring.core.rng import make_rng
from sparring.evaluation import MinimumNorm, perturb
from sparring.evaluation.transfer import Transfer

RNG = make_rng(0)
X = torch.rand(30, 3, 4, 4, generator=RNG)
W = torch.randn(4, 48, generator=RNG)


class Scaled(nn.Module):
    """A linear model whose logits are multiplied by a number."""

    def __init__(self, scale):
        super().__init__()
        self.weight = nn.Parameter(W * scale)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


class Gamma(nn.Module):
    """A model with an infinite slope at black pixels."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(W.clone())

    def forward(self, x):
        return x.flatten(1).sqrt() @ self.weight.T


NAN = {
    "fab": WhiteBox(FAB(Linf(0.3), 5), Margin),
    "fab as released": WhiteBox(FAB(Linf(0.3), 5, bring_back=False), Margin),
    "to the end": WhiteBox(APGD(Linf(0.3), 5, to_the_end=True)),
    "nearest in L2": MinimumNorm(L2(0.5), (DDN(5),)),
    "nearest in Linf": MinimumNorm(Linf(0.3), (FAB(Linf(0.3), 5),)),
    "pgd": WhiteBox(PGD(Linf(0.3), 5)),
}


@pytest.mark.parametrize("name", NAN)
def test_a_gradient_of_nan_is_an_error_in_whatever_batch_it_comes(name):
    model, x = Gamma().eval(), X.clone()
    x[20:, :, 0] = 0
    y = model(x).argmax(1)
    with pytest.raises(UserError, match=r"gives NaN or infinite pixels .* the gradient of the model is NaN there"):
        evaluate(model, (x, y), {name: NAN[name]}, batch_size=20, examine=False)


def sure(least, most):
    """Examples whose logits differ by a number between these, and their classes."""
    logits = Scaled(1.0)(X).detach()
    first, second = logits.topk(2).values.T
    rows = ((first - second) > least) & ((first - second) < most)
    assert rows.sum() > 5
    return X[rows], logits.argmax(1)[rows]


@pytest.mark.parametrize("attack", [PGD(L2(1.5), 20), APGD(L2(1.5), 40)])
def test_attacks_in_l2_work_where_the_gradient_is_very_short(attack):
    """Gaps of 27 to 80 give gradients of cross-entropy of 1e-12 to 1e-35, whose squares vanish in float32."""
    x, y = sure(1.5, 4.5)
    found = evaluate(Scaled(18.0).eval(), (x, y), {"short": attack}).robust["short"]
    wanted = evaluate(Scaled(1.0).eval(), (x, y), {"long": attack}).robust["long"]
    assert found.mean() <= wanted.mean() + 0.1 < 0.5


def test_a_gradient_is_scaled_by_a_power_of_two_and_a_zero_stays():
    rows = torch.tensor([[3.0, -1.0], [1e-30, 2e-31], [0.0, 0.0], [1e-45, 0.0]])
    (scaled,) = rescaled(rows)
    assert torch.equal(scaled[0], rows[0] / 4)
    assert 0.5 <= float(scaled[1].max()) < 1 and torch.equal(scaled[1] / scaled[1, 0], rows[1] / rows[1, 0])
    assert torch.equal(scaled[2], rows[2])
    assert scaled.isfinite().all()
    (kept,) = rescaled(torch.tensor([[float("nan"), 1.0]]))
    assert kept[0, 0].isnan()


@pytest.mark.parametrize("scale", [1e-10, 1e-6, 1e6])
@pytest.mark.parametrize("threat", [Linf(0.3), L2(1.5)])
def test_smallest_distances_do_not_depend_on_the_scale_of_the_logits(threat, scale):
    y = Scaled(1.0)(X).argmax(1)
    one, other = (
        evaluate(Scaled(s).eval(), (X, y), {"nearest": MinimumNorm(threat, (FAB(threat, 10),))}).distance
        for s in (1.0, scale)
    )
    assert np.isfinite(one).all() and np.allclose(one, other, rtol=1e-2)
    z, w, gap = X.flatten(1), W[:1].repeat(30, 1), torch.linspace(-2, 2, 30)
    assert torch.allclose(to_hyperplane(threat, z, w, gap), to_hyperplane(threat, z, w * scale, gap * scale), atol=1e-4)


def test_a_wider_reach_inside_another_attack_is_the_bound_of_its_points():
    model = Scaled(1.0).eval()
    y = model(X).argmax(1)
    z = perturb(model, X, y, Restarts(NFGSM(Linf(0.1)), 2))
    assert 0.1 < float((z - X).abs().max()) <= 0.3 + 1e-6


def test_a_surrogate_may_have_another_precision():
    model, surrogate = Scaled(1.0).double().eval(), Scaled(1.1).eval()
    y = model(X.double()).argmax(1)
    found = evaluate(model, (X, y), Transfer.of("other", surrogate, PGD(Linf(0.1))))
    assert 0 <= found.robust["transfer"].mean() < 1
