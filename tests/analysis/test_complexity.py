"""Complexity measures, each on a net where it is known in closed form; what has no meaning is said."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from sparring import L2, Linf, TensorData, UserError
from sparring.analysis import complexity_measures
from sparring.analysis.memorization.complexity import (
    NotDefined,
    curvature,
    distance,
    input_gradient,
    lipschitz,
    log_spectral,
    margin,
    matrices,
    path_norm,
    sharpness,
    thickness,
    weight_norm,
)
from sparring.core.rng import PerExample
from sparring.models import resnet18, small_cnn

pytestmark = pytest.mark.slow


def linear(w, bias=None):
    """Logits W x."""
    w = torch.as_tensor(w, dtype=torch.float64)
    layer = nn.Linear(w.shape[1], w.shape[0], bias=bias is not None).double()
    layer.weight.data.copy_(w)
    if bias is not None:
        layer.bias.data.copy_(torch.as_tensor(bias))
    return nn.Sequential(nn.Flatten(), layer).eval()


def frozen(model):
    return model.requires_grad_(False)


W = [[1.0, -2.0, 0.5, 0.0], [0.0, 1.0, 1.0, -1.0], [2.0, 0.0, -1.0, 1.0]]
X = torch.tensor([[0.3, 0.6, 0.5, 0.4], [0.7, 0.2, 0.4, 0.6], [0.5, 0.5, 0.5, 0.5]], dtype=torch.float64).view(
    3, 1, 2, 2
)
Y = torch.tensor([1, 2, 0])


def streams():
    return PerExample(0, torch.arange(3))


def test_norms_of_diagonal_matrices():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 3))
    net[0].weight.data = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    net[2].weight.data = torch.diag(torch.tensor([4.0, 0.0, 0.0]))
    assert len(matrices(net)) == 2  # neither biases nor batch norm
    assert weight_norm(net) == pytest.approx(14 + 16)
    other = copy.deepcopy(net)
    other[0].weight.data += 0.5
    assert distance(net, other) == pytest.approx(9 * 0.25)
    # (3 x 4)^2 x (14 / 9 + 16 / 16)
    assert log_spectral(net) == pytest.approx(math.log(144 * (14 / 9 + 1)))
    net[2].weight.data.zero_()
    with pytest.raises(NotDefined, match="a weight matrix of zeros"):
        log_spectral(net)


def test_a_convolution_counts_as_the_matrix_of_its_kernel():
    net = nn.Conv2d(2, 1, 2, bias=False)
    net.weight.data = torch.arange(8.0).view(1, 2, 2, 2)
    (w,) = matrices(net)
    assert w.tolist() == [list(range(8))]
    assert log_spectral(net) == pytest.approx(math.log(float(w.square().sum())))  # rank one: |W|_2 = |W|_F


def test_the_path_norm_is_the_sum_over_paths():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    a, b = (net[i].weight.detach().double().numpy() for i in (1, 3))
    paths = sum((a[j, i] * b[k, j]) ** 2 for i, j, k in itertools.product(range(4), range(5), range(3)))
    assert path_norm(net, (1, 2, 2)) == pytest.approx(math.sqrt(paths))
    before = copy.deepcopy(net.state_dict())
    path_norm(net, (1, 2, 2))
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_the_path_norm_sees_no_batch_norm_and_no_normalisation():
    torch.manual_seed(0)
    plain, normed = (small_cnn(3, (1, 8, 8), width=2, batch_norm=bn, hidden=False) for bn in (False, True))
    convolutions = [[m for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (plain, normed)]
    for one, other in zip(*convolutions, strict=True):
        one.weight.data.copy_(other.weight)
        one.bias.data.zero_()
    plain.head.load_state_dict(normed.head.state_dict())
    assert path_norm(plain, (1, 8, 8)) == pytest.approx(path_norm(normed, (1, 8, 8)))
    assert math.isfinite(path_norm(resnet18(num_classes=3, shape=(3, 8, 8), normalize=None, width=0.125), (3, 8, 8)))


class Attending(nn.Module):
    """Four pixels that look at each other."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = x.flatten(2)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize(
    ("net", "operation"),
    [
        (Attending(), "not defined for a network with the operation"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.SiLU()), "silu"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh()), "tanh"),
    ],
    ids=["attention", "silu", "tanh"],
)
def test_where_the_path_norm_has_no_meaning_there_is_no_number(net, operation):
    with pytest.raises(NotDefined, match=operation):
        path_norm(net, (1, 2, 2))
    found = complexity_measures(net, copy.deepcopy(net), TensorData(X.float(), Y, ("a", "b", "c")), Linf(0.1), steps=2)
    assert str(found["log path norm"]).startswith("not defined for a network with the operation")
    assert isinstance(found["weight norm"], float)


def test_the_margin_is_a_percentile_of_logit_differences():
    model = linear(W)
    z = (X.flatten(1) @ torch.tensor(W, dtype=torch.float64).T).numpy()
    margins = [z[i, y] - max(z[i, j] for j in range(3) if j != y) for i, y in enumerate(Y.tolist())]
    assert margin(model, X, Y) == pytest.approx(np.quantile(margins, 0.1))
    assert margin(model, X, Y, 0.5) == pytest.approx(np.median(margins))


def test_the_thickness_of_a_linear_boundary():
    """With logits (s, -s), p_0 - p_1 = tanh(s): thickness is artanh(beta) over the length of the gradient of s, for a
    segment that crosses the whole band straight on.
    """
    w = torch.tensor([3.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    model = frozen(linear(torch.stack([w, -w]), [-w.sum() * 0.45, w.sum() * 0.45]))
    x = 0.45 + torch.stack([w, -w, 0.8 * w]).view(3, 1, 2, 2) / w.norm() * 0.35
    found = thickness(model, x, streams(), eps=1.0, steps=20, beta=0.75)
    assert found == pytest.approx(math.atanh(0.75) / float(w.norm()), rel=0.05)
    with pytest.raises(NotDefined, match="no image changes its class"):
        thickness(model, x, streams(), eps=0.01)


def test_the_lipschitz_constant_of_a_linear_map_is_its_operator_norm():
    """From Linf to L1 it is the largest |W s|_1 over signs s; PGD finds a corner, not always the best."""
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=torch.float64)
    most = (signs @ torch.tensor(W, dtype=torch.float64).T).abs().sum(1).max()
    found = lipschitz(frozen(linear(W)), X, Linf(0.05), streams(), steps=30)
    assert found <= float(most) * (1 + 1e-9)
    assert found > 0.9 * float(most)
    one = frozen(linear([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]))
    assert lipschitz(one, X, L2(0.05), streams(), steps=30) == pytest.approx(math.sqrt(30), rel=0.02)


def test_the_sharpness_of_one_weight():
    """A logit w against 0, with label 0: L = log(1 + exp(-w)); the worst v is - gamma w."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64))

        def forward(self, x):
            score = self.weight[0, 0] * x.flatten(1)[:, 0]
            return torch.stack([score, torch.zeros_like(score)], 1)

    model, x, y = One(), torch.ones(2, 1, 1, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.long)

    def loss(w):
        return math.log1p(math.exp(-w))

    for gamma in (0.01, 0.5):
        assert sharpness(model, x, y, gamma) == pytest.approx(loss(2 * (1 - gamma)) - loss(2))
    assert model.weight.item() == 2.0


def test_gradient_and_curvature_of_a_linear_model():
    """The gradient of cross-entropy is W'(p - e_y), its Hessian W'(diag p - p p')W."""
    w = torch.tensor(W, dtype=torch.float64)
    model = frozen(linear(W))
    p = model(X).softmax(1)
    grads = (p - torch.eye(3, dtype=torch.float64)[Y]) @ w
    assert input_gradient(model, X, Y) == pytest.approx(float(grads.norm(dim=1).mean()))
    assert input_gradient(model, X, Y, 1.0) == pytest.approx(float(grads.abs().sum(1).mean()))
    bent = []
    for i in range(3):
        hessian = w.T @ (p[i].diag() - p[i][:, None] * p[i]) @ w
        bent.append(float((hessian @ (grads[i] / grads[i].norm())).norm()))
    assert curvature(model, X, Y, h=1e-5) == pytest.approx(float(np.mean(bent)), rel=1e-3)


def test_all_measures_of_a_net_at_once():
    torch.manual_seed(0)
    net = small_cnn(3, (1, 8, 8), width=4, batch_norm=True)
    before = copy.deepcopy(net.state_dict())
    data = TensorData(torch.rand(6, 1, 8, 8), torch.arange(6) % 3, ("a", "b", "c"))
    first = copy.deepcopy(net)
    with torch.no_grad():
        first.head.weight += 1.0
    found = complexity_measures(net, first, data, Linf(0.1), steps=2)
    assert found["distance from initialisation"] == pytest.approx(first.head.weight.numel())
    assert found["log path norm"] == pytest.approx(math.log(path_norm(net, (1, 8, 8))))
    gamma = found["adversarial margin"]
    assert gamma < 0
    assert found["1 / margin²"] == found["path norm / margin"] == "not defined for a margin that is not above 0"
    assert all(isinstance(v, float) or str(v).startswith("not defined") for v in found.values())
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert found == complexity_measures(net, first, data, Linf(0.1), steps=2)
    with pytest.raises(UserError, match="no weights of two dimensions"):
        matrices(nn.BatchNorm1d(3))


def test_weights_that_are_computed_from_others_have_no_measure():
    net = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), nn.Linear(3, 3)).eval()
    with pytest.raises(NotDefined, match="where weights are computed from others, as in 1"):
        weight_norm(net)
    older = nn.Sequential(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(4, 3)), nn.Linear(3, 3)).eval()
    with pytest.raises(NotDefined, match="where weights are computed from others, as in 1"):
        weight_norm(older)


def test_the_distance_from_another_architecture_is_refused():
    with pytest.raises(UserError, match="the initial model has weights of other shapes"):
        distance(linear(W), linear([[1.0, 2.0]]))


def test_measures_by_the_margin_of_a_net_that_is_right():
    """Logits far apart: every margin is positive."""
    net = linear(20 * torch.eye(4)[:3])
    x = 0.2 + 0.6 * torch.eye(4)[:3].view(3, 1, 2, 2)
    found = complexity_measures(net, net, TensorData(x, torch.arange(3), ("a", "b", "c")), Linf(0.05), steps=5)
    gamma = found["adversarial margin"]
    assert gamma == pytest.approx(20 * (0.6 - 0.1), rel=1e-2)
    assert found["1 / margin²"] == pytest.approx(1 / gamma**2)
    assert found["weight norm / margin²"] == pytest.approx(1200 / gamma**2)
    assert found["path norm / margin"] == pytest.approx(math.sqrt(1200) / gamma)
    assert found["log spectral complexity / margin²"] == pytest.approx(math.log(1200) - 2 * math.log(gamma))


def test_frozen_and_unused_weights_are_no_reason_to_fail():
    torch.manual_seed(0)
    net = small_cnn(3, (1, 8, 8), width=2)
    net.body[0].requires_grad_(False)
    net.unused = nn.Linear(2, 2)
    data = TensorData(torch.rand(4, 1, 8, 8), torch.arange(4) % 3, ("a", "b", "c"))
    assert isinstance(complexity_measures(net, net, data, Linf(0.1), steps=1)["weight sharpness"], float)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    found = complexity_measures(net, net, data, Linf(0.1), steps=1)
    assert found["log path norm"] == "not defined where the sum over paths is 0"
    assert "a weight matrix of zeros" in found["log spectral complexity"]
