import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparring import TensorData, UserError
from sparring.core.types import Classifier
from sparring.models import (
    Normalize,
    activation,
    load_robustbench,
    preact_resnet18,
    resnet18,
    small_cnn,
    wide_resnet,
)
from sparring.models.robustbench import our_names
from sparring.testing import check_model

NORMALIZE = Normalize([0.49, 0.48, 0.45], [0.25, 0.24, 0.26])

# one line for a new model: the function, its options, the shape of an image
MODELS = [
    (small_cnn, {}, (1, 28, 28)),
    (small_cnn, {"width": 4, "activation": "silu"}, (1, 8, 8)),
    (small_cnn, {"width": 3}, (3, 9, 7)),
    (small_cnn, {"width": 3, "depth": 2, "hidden": False, "batch_norm": True}, (1, 12, 12)),
    (preact_resnet18, {"width": 0.125}, (3, 32, 32)),
    (preact_resnet18, {"width": 0.125, "activation": "softplus"}, (1, 28, 28)),
    (preact_resnet18, {"width": 0.125, "final_norm": True, "shortcut": "activated"}, (3, 32, 32)),
    (resnet18, {"width": 0.125}, (3, 32, 32)),
    (wide_resnet, {"depth": 10, "width": 1}, (3, 32, 32)),
    (wide_resnet, {"depth": 16, "width": 2, "dropout": 0.3}, (1, 20, 20)),
]


@pytest.mark.parametrize(("build", "options", "shape"), MODELS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_every_model_keeps_its_contract(build, options, shape):
    torch.manual_seed(0)
    model = build(num_classes=7, shape=shape, normalize=Normalize([0.3] * shape[0], [0.5] * shape[0]), **options)
    check_model(model, shape, 7)
    assert model.features(torch.rand(2, *shape)).ndim == 2


def size(model):
    return sum(p.numel() for p in model.parameters())


def test_the_models_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        assert size(resnet18()) == 11_173_962
        assert size(preact_resnet18()) == 11_171_146
        assert size(preact_resnet18(final_norm=True, shortcut="activated")) == 11_172_170
        assert size(wide_resnet(28, 10)) == 36_479_194
        assert size(wide_resnet(34, 10)) == 46_160_474


def test_a_width_factor_scales_the_channels():
    wide, narrow = preact_resnet18(width=1.0), preact_resnet18(width=0.25)
    assert narrow.body.layer4[1].conv2.weight.shape[0] * 4 == wide.body.layer4[1].conv2.weight.shape[0]


def norm(state, name, x):
    mean, var, weight, bias = (state[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias)


def preact_by_hand(state, x, final_norm, activated):
    """Logits of a PreActResNet-18 as the published codes write it down, from weights under RobustBench's names."""
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage, block in ((s, b) for s in range(1, 5) for b in range(2)):
        at, stride = f"layer{stage}.{block}", 2 if (stage > 1 and block == 0) else 1
        out = norm(state, f"{at}.bn1", x).relu()
        kept = x
        if f"{at}.shortcut.0.weight" in state:
            kept = F.conv2d(out if activated else x, state[f"{at}.shortcut.0.weight"], stride=stride)
        out = norm(state, f"{at}.bn2", F.conv2d(out, state[f"{at}.conv1.weight"], stride=stride, padding=1)).relu()
        x = kept + F.conv2d(out, state[f"{at}.conv2.weight"], padding=1)
    x = norm(state, "bn", x).relu() if final_norm else x
    return F.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"])


@pytest.mark.parametrize("shortcut", ["raw", "activated"])
@pytest.mark.parametrize("final_norm", [False, True])
def test_a_preact_resnet_is_that_of_each_published_code(final_norm, shortcut):
    """GradAlign: raw without the norm; fast adversarial training, N-FGSM: raw with it; Rice, AWP: activated with it."""
    torch.manual_seed(0)
    options = {"width": 0.1, "final_norm": final_norm, "shortcut": shortcut}
    state = published(preact_resnet18(**options), "linear", normalized=False)
    state = {n: t - 0.5 if t.ndim == 4 else t for n, t in state.items()}
    assert ("bn.running_var" in state) == final_norm, "what RobustBench calls bn_before_fc"
    x, model = torch.rand(4, 3, 16, 16), load_robustbench(preact_resnet18(**options), state).eval()
    with torch.no_grad():
        wanted = preact_by_hand(state, x, final_norm, shortcut == "activated")
        other = preact_by_hand(state, x, final_norm, shortcut == "raw")
        scale = wanted.abs().max()
        assert float((model(x) - wanted).abs().max() / scale) < 1e-5
        assert float((model(x) - other).abs().max() / scale) > 1e-3, "the weights mean nothing to the other shortcut"


def test_a_shortcut_that_no_code_has_is_refused():
    with pytest.raises(UserError, match="shortcut = 'active': the shortcut of a block reads its raw or its activated"):
        preact_resnet18(shortcut="active")


def test_the_layers_of_a_small_cnn_draw_in_order():
    """So that a seed gives the weights that it always gave."""
    torch.manual_seed(0)
    wanted = [nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(16, 8)]
    torch.manual_seed(0)
    body = small_cnn(3, (1, 8, 8), width=2).body
    found = [m for m in body if list(m.parameters())]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(found, wanted, strict=True))


def test_a_small_cnn_can_be_deeper_and_without_its_hidden_layer():
    convolutions = [sum(isinstance(m, nn.Conv2d) for m in small_cnn(depth=d, width=2).body) for d in (1, 2, 3)]
    assert convolutions == [4, 6, 8]
    assert small_cnn(width=2, hidden=False).head.in_features == 4 * 7 * 7
    with pytest.raises(UserError, match="at least one convolution before each stride, not 0"):
        small_cnn(depth=0)


def test_a_depth_that_no_wide_resnet_has_is_refused():
    with pytest.raises(UserError, match=r"6 n \+ 4 .* not 30"):
        wide_resnet(30, 10)


def test_normalisation_is_inside_and_saved_with_the_weights():
    data = TensorData(torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8), torch.arange(50) % 2, ("a", "b"))
    normalize = Normalize.of(data)
    out = normalize(data.x / 255)
    assert torch.allclose(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(out.std((0, 2, 3)), torch.ones(3), atol=1e-3)
    model = resnet18(normalize=NORMALIZE, width=0.1)
    assert torch.equal(model.state_dict()["normalize.mean"].flatten(), torch.tensor([0.49, 0.48, 0.45]))


def test_a_channel_that_never_changes_does_not_divide_by_zero():
    flat = TensorData(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.arange(5) % 2, ("a", "b"))
    assert Normalize.of(flat)(torch.zeros(1, 1, 4, 4)).isfinite().all()


def test_an_unknown_activation_is_refused_with_the_nearest():
    assert isinstance(activation("gelu"), nn.GELU)
    with pytest.raises(UserError, match="no activation 'sillu': did you mean silu"):
        small_cnn(activation="sillu")


# -- published weights


def published(model: Classifier, head: str, prefix: str = "", normalized: bool = True) -> dict[str, torch.Tensor]:
    """A state dict with the names that RobustBench's models have, made from random weights."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("normalize."):
            continue
        theirs = name.removeprefix("body.") if name.startswith("body.") else name.replace("head.", head + ".")
        state[prefix + theirs] = torch.rand_like(tensor.float()).to(tensor.dtype)
    if normalized:
        state[prefix + "mu"] = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)
        state[prefix + "sigma"] = torch.tensor([0.2, 0.2, 0.2]).view(1, 3, 1, 1)
    return state


# names written down from RobustBench's architectures, so that ours cannot drift
THEIR_NAMES = {
    resnet18: [
        "conv1.weight",
        "bn1.running_var",
        "layer2.0.shortcut.0.weight",
        "layer2.0.shortcut.1.bias",
        "linear.bias",
    ],
    preact_resnet18: ["conv1.weight", "layer1.0.bn1.weight", "layer3.0.shortcut.0.weight", "layer4.1.conv2.weight"],
    wide_resnet: [
        "conv1.weight",
        "block1.layer.0.convShortcut.weight",
        "block3.layer.0.bn2.bias",
        "bn1.weight",
        "fc.weight",
    ],
}


@pytest.mark.parametrize("build", THEIR_NAMES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
def test_published_weights_load_under_their_own_names(build, prefix):
    options = {"depth": 16, "width": 2} if build is wide_resnet else {"width": 0.1}
    head = "fc" if build is wide_resnet else "linear"
    state = published(build(**options), head, prefix)
    assert {prefix + name for name in THEIR_NAMES[build]} <= set(state)
    model = load_robustbench(build(**options), state)
    for name, tensor in model.state_dict().items():
        if not name.startswith("normalize."):
            theirs = name.removeprefix("body.").replace("head.", head + ".")
            assert torch.equal(tensor, state[prefix + theirs])
    assert torch.equal(model.normalize.mean, state[prefix + "mu"])


def test_what_published_files_have_too_much_or_too_little_is_understood():
    options = {"depth": 10, "width": 2}
    state = published(wide_resnet(**options), "fc", normalized=False)
    state = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    state["sub_block1.layer.0.conv1.weight"] = torch.zeros(3)
    model = load_robustbench(wide_resnet(normalize=NORMALIZE, **options), state)
    assert isinstance(model.normalize, nn.Identity), "without mu and sigma, pixels are taken as they are"
    assert "sub_block1.layer.0.conv1.weight" not in our_names(state)


def test_weights_of_another_architecture_are_refused_by_name():
    with pytest.raises(UserError, match=r"another architecture: .* first 'body\.conv1\.weight', wanted \[8, 3, 3, 3\]"):
        load_robustbench(resnet18(width=0.125), published(resnet18(width=0.25), "linear"))
    with pytest.raises(UserError, match="another architecture"):
        load_robustbench(wide_resnet(10, 1), {"init_conv.weight": torch.zeros(1)})


@pytest.mark.parametrize("inner", [3, 7, 8])
def test_a_strided_1x1_convolution_of_few_channels_is_what_it_says(inner):
    from sparring.models.resnet import conv

    torch.manual_seed(0)
    made, plain = conv(inner, 10, 1, 2), nn.Conv2d(inner, 10, 1, 2, bias=False)
    plain.load_state_dict(made.state_dict())
    x = torch.rand(2, inner, 9, 9, requires_grad=True)
    assert torch.allclose(made(x), plain(x), atol=1e-6)
    assert torch.allclose(*(torch.autograd.grad(m(x).square().sum(), x)[0] for m in (made, plain)), atol=1e-5)
