"""Inversion: a net that can be inverted is; pictures are compared as scikit-image does."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import toy_data, toy_net
from torch import nn

from sparring import L2, PGD, Classifier, Linf, TensorData, UserError, fit, make_rng
from sparring.analysis import (
    Inverter,
    interpolate,
    invert,
    invert_annealed,
    measure_inversion,
    psnr,
    ssim,
    visualize_features,
)
from sparring.analysis.inversion.fake_relu import last_relu, not_passing
from sparring.analysis.inversion.measure import MEANINGS, beginning, descent, searches
from sparring.analysis.inversion.on_run import InversionAnalysis
from sparring.attacks import CleanStart, CoarseToFine, ParametrizedSearch
from sparring.attacks.losses import FeatureMatch, FeatureUnit, TotalVariation
from sparring.cli import run as shell
from sparring.core.rng import PerExample
from sparring.core.serialization import Build
from sparring.models import Layers, amdim, as_run, preact_resnet18, resnet18, small_cnn, straight_through

pytestmark = pytest.mark.slow

X = torch.rand(6, 1, 4, 4, generator=make_rng(3))


def mixing(size: int = 16, out: int = 16) -> Classifier:
    """A linear body that is well conditioned: it can be inverted if `out` is at least `size`."""
    torch.manual_seed(0)
    layer = nn.Linear(size, out)
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.qr(torch.randn(max(size, out), max(size, out)))[0][:out, :size])
    return Classifier(nn.Sequential(nn.Flatten(), layer), nn.Linear(out, 3)).eval()


@pytest.mark.parametrize("name", ["descent", "adam"])
def test_a_linear_net_that_can_be_inverted_gives_the_image_back(name):
    net = mixing()
    how = Inverter(search=searches((1, 4, 4), 600)[name])
    found = invert(net, X, how)
    assert float((found - X).abs().max()) < 0.03
    assert float(psnr(found, X).min()) > 35
    measured = measure_inversion(
        net, TensorData(X, torch.zeros(6, dtype=torch.long), ("a", "b")), how, judge=net
    ).values
    assert set(measured) == set(MEANINGS)
    assert measured["residual"].max() < 0.02 and measured["agreement"].all()


def test_one_that_cannot_be_inverted_is_matched_and_not_given_back():
    net = mixing(out=3)
    found = invert(net, X)
    targets, seen = net.features(X).detach(), net.features(found).detach()
    assert float(((seen - targets).norm(dim=1) / targets.norm(dim=1)).max()) < 0.03
    assert float(psnr(found, X).max()) < 25


def test_batches_seeds_and_starts():
    net = mixing()
    how = Inverter(steps=40)
    whole = invert(net, X, how)
    assert torch.allclose(invert(net, X, how, batch_size=2), whole, atol=1e-4)
    assert not torch.equal(invert(net, X, how, seed=1), whole)
    near = invert(net, X, how, start=X)
    assert float((near - X).norm()) < float((whole - X).norm())
    assert all(p.requires_grad for p in net.parameters())
    start = beginning(X, PerExample(0, torch.arange(6)))
    assert float((start - 0.5).std()) == pytest.approx(0.05, rel=0.3)


def test_several_nets_are_matched_together_or_one_after_the_other():
    """Each of the two knows half of the image."""
    halves = []
    for rows in (slice(0, 8), slice(8, 16)):
        net = mixing(out=8)
        with torch.no_grad():
            net.body[1].weight.copy_(torch.eye(16)[rows])
        halves.append(net)
    how = Inverter(steps=400)
    both = invert(halves, X, how)
    assert float((both - X).abs().max()) < 0.05
    alone = invert(halves[1], X, how)
    assert float((alone - X).abs().max()) > 0.3
    after = invert_annealed(halves, X, how)
    assert float(psnr(after, X).min()) > float(psnr(alone, X).max())
    data = TensorData(X, torch.zeros(6, dtype=torch.long), ("a", "b"))
    measured = measure_inversion(halves, data, how, annealing=True).values
    assert np.allclose(measured["psnr"], psnr(after, X))
    last = halves[1]
    residual = (last.features(after) - last.features(X)).norm(dim=1) / last.features(X).norm(dim=1)
    assert np.allclose(measured["residual"], residual.detach(), atol=1e-6)


def test_several_layers_are_matched():
    torch.manual_seed(0)
    net = small_cnn(3, (1, 8, 8), width=4).eval()
    x = torch.rand(2, 1, 8, 8, generator=make_rng(0))
    one, two = (
        invert(net, x, Inverter(layers=layers, steps=200)) for layers in (("features",), ("features", "body.1"))
    )
    assert float(psnr(two, x).min()) > float(psnr(one, x).max()) + 3
    with pytest.raises(UserError, match=r"no layer 'body\.99'"):
        invert(net, x, Inverter(layers=("body.99",)))


def test_the_last_relu_lets_gradients_through_and_only_where_it_ends_the_representation():
    x = torch.rand(1, 1, 8, 8)
    net = small_cnn(3, (1, 8, 8), width=2).eval()
    assert last_relu(net, x, ("features",)) == "body.10"
    assert last_relu(net, x, ("body.2",)) is None  # a convolution
    assert last_relu(net, x, ("body.8",)) == "body.7"  # flattened after a ReLU
    assert last_relu(net, x, ("features", "body.8")) == "body.10"
    assert last_relu(resnet18(3, (1, 8, 8), width=0.05).eval(), x, ("features",)) == "body.layer4.1.act2"
    assert last_relu(preact_resnet18(3, (1, 8, 8), width=0.05).eval(), x, ("features",)) is None
    shared = nn.ReLU()
    twice = Classifier(nn.Sequential(nn.Flatten(), shared, nn.Linear(64, 4), shared), nn.Linear(4, 2)).eval()
    assert last_relu(twice, x, ("features",)) is None  # it runs at two places
    relu, z = nn.ReLU(), torch.tensor([-1.0, 2.0], requires_grad=True)
    with straight_through(relu):
        out = relu(z)
    assert torch.equal(out, torch.tensor([0.0, 2.0])) and type(relu) is nn.ReLU
    assert torch.equal(torch.autograd.grad(out.sum(), z)[0], torch.ones(2))
    # a unit that is off at the start: only so can the search switch it on
    off = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 2)).eval()
    with torch.no_grad():
        off.body[1].weight.copy_(torch.eye(16))
        off.body[1].bias.fill_(-0.6)
    bright = 0.7 + 0.3 * X
    assert float((invert(off, bright) - bright).abs().max()) < 0.03
    assert float((invert(off, bright, Inverter(fake_relu=False)) - bright).abs().max()) > 0.2
    assert as_run(off, bright[:1], nn.ReLU) == ["body.2"]


class Functional(nn.Module):
    """A block whose last activation is a function."""

    def __init__(self):
        super().__init__()
        self.layer, self.relu, self.last = nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)

    def forward(self, x):
        return torch.relu(self.last(self.relu(self.layer(x.flatten(1)))))


def sharing():
    relu = nn.ReLU()
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), relu, nn.Linear(8, 4), relu)


SAID = {
    "shared": (sharing, "the module '2' runs at 2 places"),
    "functional": (Functional, "torch.relu in Functional is no module"),
    "pre-activation": (lambda: preact_resnet18(3, (1, 4, 4), width=0.05), "weights come after the last ReLU"),
    "amdim": (lambda: amdim(3, (1, 8, 8), width=4, dim=4, depth=1).body, "weights come after the last ReLU"),
}


@pytest.mark.parametrize("name", SAID)
def test_a_last_relu_that_cannot_be_exchanged_is_said(name):
    make, why = SAID[name]
    torch.manual_seed(0)
    made = make()
    net = (made if isinstance(made, Classifier) else Classifier(made, nn.Linear(4, 3))).eval()
    x = torch.rand(2, 1, 8, 8) if name == "amdim" else X[:2]
    why = why.replace("'2'", "'body.2'")
    with pytest.warns(UserWarning, match=re.escape(why)):
        invert(net, x, Inverter(steps=2))
    data = TensorData(x, torch.zeros(2, dtype=torch.long), ("a", "b"))
    with pytest.warns(UserWarning, match="does not let gradients through"):
        found = measure_inversion(net, data, Inverter(steps=2))
    assert len(found.notes) == 1 and why in found.notes[0]
    with pytest.warns(UserWarning, match="does not let gradients through"):
        told = InversionAnalysis({"here": measure_inversion(net, data, Inverter(steps=2))}, None, None)
    assert told.plain()["notes"] == list(found.notes)
    assert measure_inversion(net, data, Inverter(steps=2, fake_relu=False)).notes == ()


def test_nothing_is_said_where_the_last_relu_is_exchanged_or_none_is_there():
    assert not_passing(small_cnn(3, (1, 8, 8), width=2).eval(), torch.rand(1, 1, 8, 8), ("features",)) is None
    assert not_passing(mixing(), X[:1], ("features",)) is None


def test_features_are_raised_and_images_joined():
    net = mixing()
    start = torch.full_like(X[:3], 0.5)
    raised = visualize_features(net, torch.tensor([0, 5, 9]), start, Inverter(steps=200))
    weight = net.body[1].weight.detach()
    best = (weight[[0, 5, 9]] > 0).float().view(3, 1, 4, 4)  # the corner of [0, 1] where a linear number is largest
    reached = (raised.flatten(1) * weight[[0, 5, 9]]).sum(1) / (best.flatten(1) * weight[[0, 5, 9]]).sum(1)
    assert float(reached.min()) > 0.95
    between = interpolate(net, X[:2], X[2:4], (0.0, 0.5, 1.0), Inverter(steps=600))
    assert between.shape == (2, 3, 1, 4, 4)
    middle = (X[:2] + X[2:4]) / 2
    for i, image in enumerate((X[:2], middle, X[2:4])):
        assert float((between[:, i] - image).abs().max()) < 0.05
    with pytest.raises(UserError, match=r"coordinates = \[16\] must lie between 0 and 15"):
        visualize_features(net, torch.tensor([16]), start[:1])


@pytest.mark.parametrize("by", ["pixels", "fourier", "network"])
def test_images_are_painted(by):
    net, x = mixing(), X[:3]
    loss = FeatureMatch(Layers(net).__call__, (net.features(x).detach(),))
    start = torch.full_like(x, 0.5)
    attack = ParametrizedSearch(by, 200)
    found = attack(loss, start, make_rng(0))
    assert found.shape == x.shape and not found.requires_grad and float(found.min()) >= 0 and float(found.max()) <= 1
    assert bool((loss(found).value > loss(start).value + 0.2).all())
    assert all(p.grad is None for p in net.parameters())
    if by != "network":  # they begin at the image
        assert torch.allclose(
            ParametrizedSearch(by, 1, lr=1e-9)(loss, x.clamp(0.01, 0.99), make_rng(0)), x.clamp(0.01, 0.99), atol=1e-4
        )
    rng = PerExample(0, torch.arange(3))
    alone = ParametrizedSearch(by, 20)(loss[torch.tensor([1])], start[1:2], PerExample(0, torch.tensor([1])))
    assert torch.allclose(
        ParametrizedSearch(by, 20)(loss, start, rng)[1:2], alone, atol=1e-5
    )  # no image knows of another


def test_a_search_is_refined():
    class Quadratic:
        def __call__(self, x):
            from sparring import LossOutput

            return LossOutput(-(x - 0.25).square().flatten(1).sum(1))

        def __getitem__(self, rows):
            return self

    x = torch.full((2, 1, 4, 4), 0.9)
    plain = PGD(L2(4.0), 20, 0.5, CleanStart())(Quadratic(), x, make_rng(0))
    finer = CoarseToFine(PGD(L2(4.0), 20, 0.5, CleanStart()), 4)(Quadratic(), x, make_rng(0))
    assert float((finer - 0.25).abs().max()) < 0.02 < float((plain - 0.25).abs().max())
    assert descent((1, 4, 4), 400) == CoarseToFine(PGD(L2(4.0), 66, 0.5, CleanStart()), 6)
    with pytest.raises(UserError, match="times = 0 is no whole number"):
        CoarseToFine(PGD(L2(1.0)), 0)


def test_the_first_layer_alone_decides_what_is_raised():
    torch.manual_seed(0)
    net, x, which = small_cnn(3, (1, 4, 4), width=3).eval(), torch.rand(2, 1, 4, 4), torch.tensor([0, 3])
    chosen = ("body.1",), ("body.1", "features")
    alone, more = (visualize_features(net, which, x, Inverter(layers, steps=20)) for layers in chosen)
    assert torch.equal(alone, more)
    assert torch.equal(invert_annealed(net, x, Inverter(steps=6)), invert(net, x, Inverter(steps=6)))


def test_total_variation_and_coordinates():
    x = torch.zeros(2, 1, 3, 3)
    x[1, 0, 1, 1] = 1.0  # four edges of height 1, over nine pixels
    assert torch.allclose(TotalVariation(0.5)(x).value, torch.tensor([0.0, -0.5 * 4 / 9]))
    which = torch.tensor([4, 0])
    loss = FeatureUnit(lambda z: z, which)
    assert torch.equal(loss(x.flip(0)).value, torch.tensor([1.0, 0.0]))
    assert torch.equal(loss[torch.tensor([1])](x[1:]).value, torch.tensor([0.0]))


# -- how alike images are


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (4, 3, 32, 32), (3, 1, 12, 17)])
def test_pictures_are_compared_as_scikit_image_does(shape):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    a = torch.rand(shape, generator=make_rng(0))
    b = (a + 0.2 * torch.randn(shape, generator=make_rng(1))).clamp(0, 1)
    for one, other, p, s in zip(a.numpy(), b.numpy(), psnr(a, b), ssim(a, b), strict=True):
        assert float(p) == pytest.approx(peak_signal_noise_ratio(one, other, data_range=1), rel=1e-5)
        known = structural_similarity(
            *(one.astype(float), other.astype(float)),
            channel_axis=0,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert float(s) == pytest.approx(known, abs=1e-6)


def test_equal_images_are_alike_and_tiny_ones_too():
    a = torch.rand(2, 1, 8, 8)
    assert torch.allclose(ssim(a, a), torch.ones(2, dtype=torch.float64))
    assert float(psnr(a, a)[0]) == 100
    assert float(ssim(a, torch.rand(2, 1, 8, 8)).max()) < 0.8
    with pytest.raises(UserError, match="at least 3x3 pixels"):
        ssim(a[..., :2], a[..., :2])


# -- what is refused, and the shell


def test_what_cannot_be_inverted_is_refused():
    net = mixing()
    with pytest.raises(UserError, match=r"does not take images of 1x5x5 \(.*\): resize them"):
        invert(net, torch.rand(2, 1, 5, 5))
    with pytest.raises(UserError, match=r"span \[0, 2\], outside \[0, 1\]"):
        invert(net, torch.tensor([0.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4))
    with pytest.raises(UserError, match="in training mode"):
        invert(toy_net(), X, Inverter(layers=("3",)))
    with pytest.raises(UserError, match="steps = 0 must be at least 1"):
        Inverter(steps=0)
    with pytest.raises(UserError, match="cannot continue from the image of another model"):
        invert_annealed([net, net], X, Inverter(search=ParametrizedSearch("network", 2)))
    with pytest.raises(UserError, match=r"start has the shape \(1, 1, 4, 4\), and x"):
        invert(net, X, start=X[:1])
    with pytest.raises(UserError, match="interpolated in pairs at one share or more"):
        interpolate(net, X[:2], X[:1], [0.5])
    with pytest.raises(UserError, match="interpolated in pairs at one share or more"):
        interpolate(net, X, X, [])
    for wrong in (torch.tensor([0]), torch.rand(len(X))):
        with pytest.raises(UserError, match="coordinates are torch"):
            visualize_features(net, wrong, X)
    with pytest.raises(UserError, match="by = 'oil'"):
        ParametrizedSearch("oil")
    with pytest.raises(UserError, match="steps = 0 is no whole number"):
        ParametrizedSearch(steps=0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    import conftest

    folder, recipe = tmp_path_factory.mktemp("runs"), replace(conftest.tiny.__wrapped__(), epochs=1)
    for name, width in (("narrow", 2), ("wide", 3), ("judge", 4)):
        fit(replace(recipe, model=Build(small_cnn, width=width)), folder / name, device="cpu")
    return folder


def test_runs_are_inverted_from_the_shell(runs, capsys):
    narrow, wide, judge = (str(runs / name) for name in ("narrow", "wide", "judge"))
    few = ["--examples", "5", "--steps", "8"]
    args = ["--compare-with", wide, "--reference-run", judge, "--on", "digits+inverted", "--features", "2"]
    assert shell(["analyze", narrow, "inversion", *args, *few]) == 0
    out = capsys.readouterr().out
    assert "agreement" in out and "analysis-inversion-features.png" in out
    saved = json.loads((runs / "narrow" / "analysis-inversion.json").read_text())
    assert set(saved["images"]) == {"its own test images", "digits+inverted"}
    assert set(saved["images"]["digits+inverted"]) == set(MEANINGS)
    with np.load(runs / "narrow" / "analysis-inversion.npz") as held:
        assert held["its own test images: rebuilt"].shape == (5, 1, 8, 8)
        assert held["its own test images: rebuilt"].dtype == np.uint8
        median = saved["images"]["its own test images"]["ssim"]["median"]["value"]
        assert np.median(held["its own test images: ssim"]) == pytest.approx(median)
    for name in ("inversion", "inversion-features"):
        assert (runs / "narrow" / f"analysis-{name}.png").stat().st_size > 5_000
    for search in ("adam", "fourier", "network"):
        assert shell(["analyze", narrow, "inversion", "--search", search, *few, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["how"]["search"] == search
    layers = ["--layers", "features", "body.1", "--smooth", "0.1"]
    assert shell(["analyze", narrow, "inversion", *layers, *few]) == 0
    capsys.readouterr()
    assert shell(["analyze", narrow, "inversion", "--reference-run", narrow, *few]) == 2
    assert "is inverted itself: a judge takes no part" in capsys.readouterr().err
    for args, message in (
        (["--features", "2", "--examples", "3"], "joins two pairs of images: give --examples 4"),
        (["--features", "999", "--examples", "4"], "features = 999 needs a layer"),
        (["--features", "-1"], "--features -1 is below 0"),
        (["--smooth", "-1"], "smooth = -1 is below 0"),
        (["--reference-run", "nowhere"], "nowhere is no run folder"),
        (["--pictures", "0"], "at least one image is needed, not 0 as --pictures"),
    ):
        assert shell(["analyze", narrow, "inversion", *args]) == 2
        assert message in capsys.readouterr().err
    assert shell(["analyze", narrow, "inversion", "--layers", "body.77", *few]) == 2
    assert "no layer 'body.77'" in capsys.readouterr().err


def test_a_net_that_is_attacked_elsewhere_is_not_changed_by_being_inverted():
    data = toy_data(12)
    net = toy_net()
    before = {name: each.clone() for name, each in net.state_dict().items()}
    measure_inversion(net, data, Inverter(layers=("3",), steps=3))
    assert net.training and all(torch.equal(before[name], each) for name, each in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters()) and Linf(0.1).eps == 0.1
