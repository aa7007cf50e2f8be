"""Fisher information and effective information: against closed forms, and from the shell."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import toy_data, toy_net
from torch import nn

from sparring import Classifier, TensorData, UserError, fit, make_rng
from sparring.analysis import measure_information
from sparring.analysis.information import weights
from sparring.analysis.information.effective import (
    _by_volume,
    _jacobian_and_noise,
    _whitened,
    channel,
    effective_information,
)
from sparring.analysis.information.jacobian import Jacobian, power_iteration, spectrum, squared_norm
from sparring.analysis.information.measure import MEANINGS
from sparring.cli import run as shell
from sparring.core.rng import normal
from sparring.core.serialization import Build
from sparring.core.types import pixels
from sparring.models import Layers, amdim, layers_of, preact_resnet18, small_cnn

pytestmark = pytest.mark.slow

X = torch.rand(40, 1, 4, 4, generator=make_rng(3))
DATA = TensorData(X, torch.arange(40) % 3, ("a", "b", "c"))


def softmax_linear(scale: float = 1.0) -> Classifier:
    torch.manual_seed(0)
    head = nn.Linear(16, 3)
    with torch.no_grad():
        head.weight.mul_(3 * scale)
    return Classifier(nn.Flatten(), head).eval()


def smooth_net() -> Classifier:
    torch.manual_seed(1)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh()), nn.Linear(12, 3)).eval()


# -- the weights


def closed(model: Classifier) -> torch.Tensor:
    """Of a softmax on W x + b: g = (e_y - p) (x, 1), so tr F = (1 - |p|²) (|x|² + 1)."""
    with torch.no_grad():
        p = model(X).softmax(1)
    return (1 - p.square().sum(1)) * (X.flatten(1).square().sum(1) + 1)


def test_the_trace_of_a_softmax_is_known_and_the_three_estimators_agree():
    model = softmax_linear()
    raw, _ = weights.exact(model, DATA)
    assert torch.allclose(raw["all"], closed(model), rtol=1e-4)
    assert torch.equal(raw["all"], raw["head"])
    drawn, _ = weights.sampled(model, DATA, draws=400)
    assert float(drawn["all"].mean()) == pytest.approx(float(closed(model).mean()), rel=0.02)
    batches = weights.from_batches(model, DATA, batch_size=10, draws=2000)[0]["all"]
    assert batches.shape == (4, 2000)
    batches = batches.mean(0)  # of all images
    error = float(batches.std() / math.sqrt(len(batches)))
    assert error < 0.01 * float(batches.mean())
    assert abs(float(batches.mean() - closed(model).mean())) < 3 * error
    wrong = float(batches.mean()) / 10  # the gradient of a batch, squared, is not it
    assert abs(wrong - float(closed(model).mean())) > 20 * error


def test_relative_traces_do_not_change_when_a_layer_is_scaled_and_the_next_divides_it_out():
    torch.manual_seed(0)
    net = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU()), nn.Linear(8, 3)).eval()
    before = [each["all"] for each in weights.exact(net, DATA)]
    with torch.no_grad():
        net.body[1].weight.mul_(4)
        net.body[1].bias.mul_(4)
        net.head.weight.div_(4)
    raw, relative = (each["all"] for each in weights.exact(net, DATA))
    assert torch.allclose(relative, before[1], rtol=1e-4)
    assert not torch.allclose(raw, before[0], rtol=0.1)


def test_gradients_of_single_images_are_those_of_one_image_at_a_time():
    nets = (
        small_cnn(3, (1, 8, 8), width=3, batch_norm=True),
        small_cnn(3, (1, 8, 8), width=3, activation="smooth_relu"),  # a gradient written by hand
        preact_resnet18(3, (1, 8, 8), width=0.05),
    )
    x, y = torch.rand(3, 1, 8, 8, generator=make_rng(0)), torch.tensor([0, 2, 1])
    for net in nets:
        net.eval()
        found = weights.gradients(net, x, y)
        for i in range(3):
            loss = -F.cross_entropy(net(x[i : i + 1]), y[i : i + 1])
            for (name, _), g in zip(net.named_parameters(), torch.autograd.grad(loss, net.parameters()), strict=True):
                assert torch.allclose(found[name][i], g, atol=1e-5), name
        assert all(p.grad is None for p in net.parameters())


def test_parameters_are_grouped():
    net = small_cnn(3, (1, 8, 8), width=2, batch_norm=True)
    found = weights.sizes(net)
    assert set(found) == {"all", "convolutions", "linear layers", "norms and biases", "head"}
    assert found["all"] == sum(p.numel() for p in net.parameters()) == sum(found.values()) - found["all"]
    assert found["head"] == 8 * 3 + 3
    assert weights.sizes(toy_net())["head"] == 32 * 3 + 3
    raw, _ = weights.exact(net.eval(), TensorData(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long), ("a", "b")))
    assert torch.allclose(sum(each for name, each in raw.items() if name != "all"), raw["all"], rtol=1e-5)


def test_the_batch_splits_itself_where_memory_is_short(monkeypatch):
    model = smooth_net()
    whole = weights.exact(model, DATA)[0]["all"], weights.diagonal(model, DATA)
    sizes, real = [], weights.gradients

    def seen(model, x, y):
        sizes.append(len(x))
        return real(model, x, y)

    monkeypatch.setattr(weights, "gradients", seen)
    count = sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(weights, "BUDGET", 4 * count * 7)
    assert torch.allclose(weights.exact(model, DATA)[0]["all"], whole[0], rtol=1e-5)
    assert max(sizes) == 7
    sizes.clear()

    def short(model, x, y):
        if len(x) > 2:
            raise torch.OutOfMemoryError("none left")
        return seen(model, x, y)

    monkeypatch.setattr(weights, "gradients", short)
    assert torch.allclose(weights.exact(model, DATA)[0]["all"], whole[0], rtol=1e-5)
    found = weights.diagonal(model, DATA)
    assert all(torch.allclose(found[name], each, rtol=1e-4, atol=1e-9) for name, each in whole[1].items())
    assert max(sizes) == 2
    monkeypatch.setattr(weights, "gradients", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(torch.OutOfMemoryError):
        weights.exact(model, DATA)


# -- the image


def test_products_with_the_derivative_are_those_of_finite_differences_and_of_all_its_rows():
    model = smooth_net().double()
    x = X[:5].double()
    jacobian = Jacobian(model.features, x)
    rows = torch.stack(list(jacobian.rows()), 1)
    assert rows.shape == (5, 12, 16) == (5, jacobian.outputs, jacobian.inputs)
    v, u = torch.randn(5, 16, dtype=torch.float64), torch.randn(5, 12, dtype=torch.float64)
    h = 1e-6
    with torch.no_grad():
        value_and_grad = (model.features(x + h * v.view_as(x)) - model.features(x - h * v.view_as(x))) / (2 * h)
    assert torch.allclose(jacobian.times(v), value_and_grad, atol=1e-8)
    assert torch.allclose(jacobian.times(v), torch.einsum("bkd,bd->bk", rows, v))
    assert torch.allclose(jacobian.transposed(u), torch.einsum("bkd,bk->bd", rows, u))
    assert torch.allclose(squared_norm(jacobian, make_rng(0)), rows.square().sum((1, 2)))
    with pytest.raises(UserError, match="no gradient reaches the image"):
        Jacobian(lambda z: z.detach(), x)


class Map(nn.Module):
    """Linear, with singular values that are chosen."""

    def __init__(self, values: list[float], inputs: int) -> None:
        super().__init__()
        rng = make_rng(0)
        left = torch.linalg.qr(torch.randn(len(values), len(values), generator=rng, dtype=torch.float64))[0]
        right = torch.linalg.qr(torch.randn(inputs, inputs, generator=rng, dtype=torch.float64))[0]
        some = min(len(values), inputs)
        self.w = (left[:, :some] * torch.tensor(values[:some], dtype=torch.float64)) @ right[:some]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.w.T


@pytest.mark.parametrize("inputs", [16, 9])
@pytest.mark.parametrize("values", [[5.0, 3.0, 3.0, 1.0, 0.5, 0.0, 0.0], [2.0] * 12, [0.0] * 5, list(range(1, 81))])
def test_the_spectrum_is_that_of_a_map_that_is_known(values, inputs):
    net, x = Map(values, inputs), torch.rand(2, inputs, dtype=torch.float64)
    jacobian, some = Jacobian(net.forward, x), min(len(values), inputs)
    known = torch.linalg.svdvals(net.w).square()
    found, rank = spectrum(jacobian, make_rng(1))
    assert found.shape == (2, min(50, some))
    assert torch.allclose(found, known[:50].expand(2, -1), rtol=1e-6, atol=1e-9)
    assert torch.allclose(squared_norm(jacobian, make_rng(1), 4000), known.sum().expand(2), rtol=0.02)
    top = power_iteration(lambda v: jacobian.transposed(jacobian.times(v)), normal(x, make_rng(2)), 100)
    assert torch.allclose(top, known[0].expand(2), rtol=1e-3)
    shares = known[known > 0] / known.sum()
    count = math.exp(-(shares * shares.log()).sum()) if len(shares) else 0.0
    assert torch.allclose(rank, torch.tensor(count, dtype=torch.float64), rtol=1e-4)


def test_a_few_steps_find_the_largest_eigenvalues_and_the_effective_rank():
    """80 steps of 400: the largest 20, and a rank of far more."""
    values = torch.exp(-torch.arange(400, dtype=torch.float64) / 80)
    net = Map(values.sqrt().tolist(), 420)
    found, rank = spectrum(Jacobian(net.forward, torch.rand(30, 420, dtype=torch.float64)), make_rng(1), 20)
    assert torch.allclose(found, values[:20].expand(30, -1), rtol=0.02)
    shares = values / values.sum()
    known = math.exp(-float((shares * shares.log()).sum()))
    assert known > 200
    assert float(rank.mean()) == pytest.approx(known, rel=0.05)


def test_what_a_prediction_tells_of_an_image_is_known_for_a_softmax():
    """F = Wᵀ (diag p - p pᵀ) W."""
    model = softmax_linear()
    found = measure_information(model, DATA, DATA, layer="head", jacobian_examples=2).values
    w = model.head.weight.detach().double()
    p = model(X).detach().double().softmax(1)
    whole = [w.T @ (torch.diag(each) - torch.outer(each, each)) @ w for each in p]
    assert np.allclose(found["prediction: trace"], [float(f.trace()) for f in whole], rtol=1e-4)
    assert np.allclose(found["prediction: largest"], [float(torch.linalg.eigvalsh(f)[-1]) for f in whole], rtol=0.02)
    assert np.allclose(found["representation: trace"], float(w.square().sum()))
    pixel, logit = X.flatten(1).var(0, correction=0).mean(), model(X).detach().var(0, correction=0).mean()
    assert np.allclose(found["representation: scale-free"], float(w.square().sum() * pixel / logit), rtol=1e-4)
    values = torch.linalg.svdvals(w).square()
    assert np.allclose(found["representation: largest"], float(values[0]), rtol=1e-4)
    assert np.allclose(found["prediction: scale-free"], found["prediction: trace"] * float(pixel), rtol=1e-4)


# -- effective information


def test_a_linear_gaussian_channel_keeps_what_is_known():
    """I = h(Ax + n) - h(n), exactly; by volume, without H(x), nearly, if the noise is small."""
    rng = make_rng(0)
    a = torch.randn(6, 4, generator=rng, dtype=torch.float64)
    x = torch.randn(5000, 4, generator=rng, dtype=torch.float64) @ torch.diag(
        torch.tensor([1.0, 2.0, 0.5, 1.0]).double()
    )
    x = x - x.mean(0)
    c = x.T @ x / len(x)
    for sigma in (0.02, 0.5):
        m = sigma**2 * torch.diag(torch.linspace(0.5, 2, 6, dtype=torch.float64))
        known = 0.5 * float(torch.logdet(a @ c @ a.T + m) - torch.logdet(m))
        white = _whitened(a, m)
        assert channel(white, x) == pytest.approx(known, rel=1e-9)
        entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * c))
        by_volume = entropy + _by_volume(white)
        assert (by_volume == pytest.approx(known, rel=0.02)) == (sigma == 0.02)
        assert by_volume < known + 1e-9  # it underestimates where noise is large
    one = torch.full((1, 1), 10.0, dtype=torch.float64)  # a single pixel N(0, 1), noise 0.1: log(10) by volume
    pixel = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    assert channel(one, pixel) == pytest.approx(0.5 * math.log(101))
    assert 0.5 * math.log(2 * math.pi * math.e) + _by_volume(one) == pytest.approx(math.log(10))


def test_what_cannot_be_told_is_not_told():
    a = torch.zeros(3, 4, dtype=torch.float64)
    assert channel(_whitened(a, torch.zeros(3, 3, dtype=torch.float64)), torch.ones(5, 4).double()) == 0
    few = torch.randn(3, 4, dtype=torch.float64)
    assert _by_volume(_whitened(few, torch.eye(3, dtype=torch.float64))) is None  # fewer rows than pixels
    twice = torch.randn(4, 1, dtype=torch.float64).expand(4, 4)
    assert _by_volume(_whitened(twice, torch.eye(4, dtype=torch.float64))) is None  # of rank 1
    # a unit that is off has no noise and no signal: it is left out
    off, noise = torch.diag(torch.tensor([1.0, 1.0, 0.0]).double()), torch.diag(torch.tensor([1.0, 1.0, 0.0]).double())
    assert _whitened(off, noise).shape == (2, 3)


def test_the_noise_on_a_representation_is_that_of_noisy_weights(monkeypatch):
    model = smooth_net()
    parameters = [model.body[1].weight, model.body[1].bias]
    noise = [torch.full_like(p, 1e-4) for p in parameters]
    read = Layers(model)
    jacobian, m = _jacobian_and_noise(read, X[:1], parameters, noise)
    rows = torch.stack(list(Jacobian(model.features, X[:1]).rows()), 1)[0]
    assert torch.allclose(jacobian.float(), rows, atol=1e-6)
    clean, rng = [p.detach().clone() for p in parameters], make_rng(0)
    outs = []
    with torch.no_grad():
        for _ in range(20000):
            for p, before in zip(parameters, clean, strict=True):
                p.copy_(before + 0.01 * torch.randn(p.shape, generator=rng))
            outs.append(model.features(X[:1])[0])
        for p, before in zip(parameters, clean, strict=True):
            p.copy_(before)
    seen = torch.stack(outs).T.cov().double()
    assert torch.allclose(seen.diag(), m.diag(), rtol=0.05)
    assert float((seen - m).norm() / m.norm()) < 0.05
    monkeypatch.setattr(weights, "BUDGET", 16 * 5 * sum(p.numel() for p in parameters))  # five rows at a time
    assert torch.allclose(_jacobian_and_noise(read, X[:1], parameters, noise)[1], m, rtol=1e-6, atol=1e-12)


def test_effective_information_is_that_of_the_formula_and_knows_no_scale():
    model = smooth_net()
    found = effective_information(model, DATA, DATA[:3], tolerated=0.1)
    assert found.by_volume is None and found.gaussian.shape == (3,)
    fisher = weights.diagonal(model, DATA)
    names = ["body.1.weight", "body.1.bias"]
    flat = torch.cat([fisher[name].flatten() for name in names])
    given = torch.cat([dict(model.named_parameters())[name].detach().flatten() for name in names])
    b = 0.2 / len(flat)
    noise = b / (flat + b / given.square())
    assert float((flat * noise).sum() / 2) <= 0.1 + 1e-6  # to second order, no more than is tolerated
    assert bool((noise <= given.square() * (1 + 1e-5)).all())
    assert 0 < found.rise < 0.1
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), smooth_net().parameters(), strict=True))
    centred = X.flatten(1) - X.flatten(1).mean(0)
    for i in range(3):
        x = X[i : i + 1].requires_grad_()
        z = model.features(x)[0]
        by_x, by_w = [], []
        for k in range(12):
            g = torch.autograd.grad(z[k], [x, model.body[1].weight, model.body[1].bias], retain_graph=True)
            by_x.append(g[0].flatten())
            by_w.append(torch.cat([part.flatten() for part in g[1:]]))
        j, w = torch.stack(by_x).detach().double(), torch.stack(by_w).detach().double()
        f = j.T @ torch.linalg.inv(w @ torch.diag(noise.double()) @ w.T) @ j
        c = (centred.T @ centred / len(X)).double()
        known = 0.5 * float(torch.logdet(torch.eye(16, dtype=torch.float64) + c @ f))
        assert found.gaussian[i] == pytest.approx(known, rel=0.02)
    # features 4 times as large, read by a head 4 times as small: the same net
    scaled = Classifier(nn.Sequential(model.body, Times(4.0)), nn.Linear(12, 3)).eval()
    with torch.no_grad():
        scaled.head.weight.copy_(model.head.weight / 4)
        scaled.head.bias.copy_(model.head.bias)
    assert np.allclose(effective_information(scaled, DATA, DATA[:3]).gaussian, found.gaussian, rtol=1e-4)
    # a weight that is scaled where what follows divides it out: the same net
    torch.manual_seed(3)
    net = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Linear(6, 3)).eval()
    before = effective_information(net, DATA, DATA[:3]).gaussian
    with torch.no_grad():
        net.body[1].weight.mul_(8)
        net.body[1].bias.mul_(8)
        net.body[3].weight.div_(8)
    assert np.allclose(effective_information(net, DATA, DATA[:3]).gaussian, before, rtol=1e-3)
    raw, free = (measure_information(net, DATA, DATA, jacobian_examples=1).values for net in (model, scaled))
    assert np.allclose(free["representation: trace"], 16 * raw["representation: trace"], rtol=1e-4)
    assert np.allclose(free["representation: scale-free"], raw["representation: scale-free"], rtol=1e-4)


class Times(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.by * x


def test_by_volume_is_there_where_the_representation_has_rows_enough():
    torch.manual_seed(0)
    net = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 20)), nn.Linear(20, 3)).eval()
    found = measure_information(net, DATA, DATA, jacobian_examples=2)
    assert found.values["effective information, by volume"].shape == (2,)
    assert (
        "effective information, by volume"
        not in measure_information(smooth_net(), DATA, DATA, jacobian_examples=2).values
    )


# -- what is refused, and the shell


def test_what_is_not_of_one_image_is_refused():
    data = toy_data()
    net = toy_net()
    with pytest.raises(UserError, match=r"in training mode, where 2 \(BatchNorm1d\) mixes images"):
        weights.exact(net, data)
    net.eval()
    assert weights.exact(net, data)[0]["all"].shape == (60,)
    net[2] = nn.BatchNorm1d(32, track_running_stats=False).eval()
    for refused in (lambda: weights.from_batches(net, data), lambda: measure_information(net, data, data)):
        with pytest.raises(UserError, match="2 is a batch norm without running statistics, which mixes"):
            refused()
    model = softmax_linear()
    with pytest.raises(UserError, match="no layer 'feature': did you mean features"):
        measure_information(model, DATA, DATA, layer="feature")
    with pytest.raises(UserError, match="no weights lie before the layer 'body'"):
        measure_information(model, DATA, DATA, layer="body")
    with pytest.raises(UserError, match="count = 0 is below 1"):
        measure_information(model, DATA, DATA, count=0)
    assert "effective information" not in measure_information(model, DATA, DATA, jacobian_examples=0).values
    with pytest.raises(UserError, match="the data set has no images"):
        weights.exact(model, DATA[:0])
    with pytest.raises(UserError, match="batch_size = 64 and draws = 1"):
        weights.from_batches(model, DATA, 64)


def test_layers_by_name():
    torch.manual_seed(0)
    net, x = small_cnn(3, (1, 8, 8), width=2).eval(), torch.rand(2, 1, 8, 8)
    features, logits, first = Layers(net, ("features", "head", "body.0"))(x)
    assert torch.equal(features, net.features(x)) and torch.equal(logits, net(x))
    assert torch.equal(first, net.body[0](x))
    assert torch.equal(Layers(net).first(x), features)
    with pytest.raises(UserError, match=r"has no layer 'layer4': there is: features, normalize, body, body\.0"):
        Layers(net, ("layer4",))
    with pytest.raises(UserError, match="no layer is asked for"):
        Layers(net, ())
    net.extra = nn.Linear(2, 2)
    with pytest.raises(UserError, match="'extra' does not run"):
        Layers(net, ("extra",))(x)
    torch.manual_seed(0)
    inside = amdim(3, (1, 8, 8), width=2, dim=4, depth=1, read="linear").eval()
    assert Layers(inside, ("body.stem", "features"))(x)[1].shape == (2, 4)
    in_place = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(inplace=True))
    assert torch.equal(Layers(in_place, ("1",)).first(x), in_place[1](x.flatten(1)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    import conftest

    folder, recipe = tmp_path_factory.mktemp("runs"), replace(conftest.tiny.__wrapped__(), epochs=1)
    for name, width in (("narrow", 2), ("wide", 3)):
        fit(replace(recipe, model=Build(small_cnn, width=width)), folder / name, device="cpu")
    return folder


def test_a_run_is_analysed_from_the_shell(runs, capsys):
    narrow, wide = (str(runs / name) for name in ("narrow", "wide"))
    few = ["--examples", "40", "--jacobian-examples", "2", "--count", "5"]
    assert shell(["analyze", narrow, "information", "--compare-with", wide, *few]) == 0
    out = capsys.readouterr().out
    assert "effective rank" in out and "analysis-information.png" in out
    saved = json.loads((runs / "narrow" / "analysis-information.json").read_text())
    assert saved["layer"] == "features" and len(saved["singular values"]) == 5
    assert set(saved["trace of the weights by estimator"]) == {"exact", "labels drawn", "from batches"}
    assert all(name.startswith("weights") or name in MEANINGS for name in saved["figures"])
    with np.load(runs / "narrow" / "analysis-information.npz") as held:
        mean = saved["figures"]["prediction: trace"]["mean"]
        assert held["prediction: trace"].mean() == pytest.approx(mean["value"])
        assert mean["low"] < mean["value"] < mean["high"]
    assert (runs / "narrow" / "analysis-information.png").stat().st_size > 10_000
    assert shell(["analyze", narrow, "information", "--layer", "body.4", *few, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["runs"][0]["layer"] == "body.4" and plain["how"]["jacobian_examples"] == 2
    assert shell(["analyze", narrow, "information", "--layer", "body.44", *few]) == 2
    assert "no layer 'body.44': did you mean" in capsys.readouterr().err


def test_pixels_are_read_as_a_model_reads_them():
    data = toy_data()
    net = toy_net().eval()
    found = measure_information(net, data, data, layer="1", jacobian_examples=1)
    as_floats = TensorData(pixels(data.x), data.y, data.classes)
    again = measure_information(net, as_floats, as_floats, layer="1", jacobian_examples=1)
    assert all(np.allclose(found.values[name], each) for name, each in again.values.items())


def test_weights_that_are_frozen_count_and_stay_frozen():
    model = smooth_net()
    whole = weights.exact(model, DATA)[0]["all"]
    kept = effective_information(model, DATA, DATA[:1]).gaussian
    for p in model.body.parameters():
        p.requires_grad_(False)
    assert torch.equal(weights.exact(model, DATA)[0]["all"], whole)
    assert float(weights.from_batches(model, DATA, 1)[0]["all"].mean()) == pytest.approx(float(whole.mean()), rel=0.5)
    assert np.allclose(effective_information(model, DATA, DATA[:1]).gaussian, kept)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_a_bottleneck_has_no_volume_and_a_large_net_is_not_looked_into_for_hours(monkeypatch):
    torch.manual_seed(0)
    neck = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Linear(4, 32))
    assert effective_information(Classifier(neck, nn.Linear(32, 3)).eval(), DATA, DATA[:2]).by_volume is None
    monkeypatch.setattr(sys.modules["sparring.analysis.information.effective"], "MOST", 5)
    with pytest.raises(
        UserError, match=r"of 12 numbers behind 204 weights takes 12 backward passes an image: leave it"
    ):
        effective_information(smooth_net(), DATA, DATA[:1])


def test_a_model_that_detaches_the_image_is_refused():
    layer = nn.Linear(16, 3)
    with pytest.raises(UserError, match="no gradient reaches the image"):
        Jacobian(lambda x: layer(x.detach().flatten(1)), X)
    vgg = nn.ModuleDict({"features": nn.Linear(2, 2)})
    assert layers_of(vgg) == ["features"]
