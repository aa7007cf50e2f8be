"""Fuzzers of the fast path: whatever is drawn, a copy answers and differentiates as its model, or is not used."""

import random
import warnings

import pytest
import torch
from torch import nn

from sparring import make_rng
from sparring.acceleration import AcceleratedCopy, prefer_channels_last
from sparring.acceleration.convolution import FrozenConv, unsafe_in_channels_last, worth
from sparring.core.modes import eval_mode, frozen

pytestmark = pytest.mark.slow


def geometry(draw: random.Random):
    """A convolution of any geometry, its input in either order in memory, and whether a ReLU follows."""
    groups = draw.choice([1, 1, 1, 2, 3])
    inner, outer = groups * draw.choice([1, 2, 3, 5, 8]), groups * draw.choice([1, 3, 4, 16])
    size, stride = ([draw.choice(values) for _ in range(2)] for values in ([1, 2, 3, 5], [1, 1, 2, 3]))
    dilation = [draw.choice([1, 1, 2]) for _ in range(2)]
    padding = [draw.randrange(3) for _ in range(2)]
    least = [d * (k - 1) + 1 for d, k in zip(dilation, size, strict=True)]
    high, wide = (low + draw.randrange(8) for low in least)
    bias = draw.random() < 0.5
    conv = nn.Conv2d(inner, outer, size, stride, padding, dilation, groups, bias)
    x = torch.randn(draw.choice([1, 2, 5]), inner, high, wide)
    return conv, x.contiguous(memory_format=draw.choice([torch.contiguous_format, torch.channels_last])), bias


def gradient(module, x):
    z = x.clone().requires_grad_()
    out = module(z)
    weights = torch.randn(out.shape, generator=make_rng(0))
    return out.detach(), torch.autograd.grad((out * weights).sum(), z)[0]


@pytest.mark.parametrize(
    "options", [{"stride": (1, 2)}, {"stride": 2, "dilation": (1, 2)}, {"stride": (2, 3), "dilation": 2}]
)
def test_a_model_with_a_convolution_that_torch_gets_wrong_is_not_put_in_channels_last_order(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, **options), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        model[3] = nn.Linear(model[:3](torch.rand(1, 1, 8, 8)).shape[1], 3)
    x, fast = torch.rand(8, 1, 8, 8), AcceleratedCopy("fp32", "off")
    with eval_mode(model), fast(model, x) as attacked:
        assert attacked is not model
        assert not any(isinstance(module, FrozenConv) for module in attacked.modules())
        assert torch.allclose(attacked(x), model(x), atol=1e-5)
    strides = [p.stride() for p in model.parameters()]
    prefer_channels_last(model, x)
    assert [p.stride() for p in model.parameters()] == strides


def test_a_frozen_convolution_of_any_geometry_is_the_convolution(fuzz):
    """In float32; in bf16, torch's own convolutions are wrong for some, and a copy is compared before it is used."""
    count, seed = fuzz
    for number in range(10 * count):
        draw = random.Random(f"{seed}/{number}")
        torch.manual_seed(number)
        conv, x, relu = geometry(draw)
        if unsafe_in_channels_last(conv):
            continue
        frozen_conv = FrozenConv(conv, relu, torch.float32)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
        with torch.no_grad():
            frozen_conv.weight.copy_(conv.weight)
            frozen_conv.bias.copy_(bias)
            frozen_conv.loaded()
        with worth(draw.choice([0, 2**40])):
            found = gradient(frozen_conv, x)
        wanted = gradient(nn.Sequential(conv, nn.ReLU()) if relu else conv, x)
        for mine, true in zip(found, wanted, strict=True):
            assert torch.allclose(mine, true, rtol=1e-3, atol=1e-3), (number, conv, x.shape)


class Graph(nn.Module):
    """A net of layers drawn by chance, whose results are added, joined and used again."""

    def __init__(self, draw: random.Random):
        super().__init__()
        self.plan, self.layers, widths = [], nn.ModuleList(), [draw.choice([1, 2, 3])]
        self.channels = widths[0]
        for _ in range(draw.randrange(2, 9)):
            source = draw.randrange(len(widths))
            layer, width = self.layer(draw, widths[source])
            self.layers.append(layer)
            self.plan.append(source)
            widths.append(width)
        self.head, self.shift = nn.Linear(sum(widths[1:]), 4), draw.choice([0.0, 0.0, 50.0])

    @staticmethod
    def layer(draw, width):
        outer = draw.choice([1, 4, 8])
        kinds = {
            "conv": lambda: (nn.Conv2d(width, outer, 3, padding=1), outer),
            "pointwise": lambda: (nn.Conv2d(width, outer, 1, bias=False), outer),
            "depthwise": lambda: (nn.Conv2d(width, width, 3, padding=1, groups=width), width),
            "reflected": lambda: (nn.Conv2d(width, outer, 3, padding=1, padding_mode="reflect"), outer),
            "norm": lambda: (nn.BatchNorm2d(width), width),
            "bare norm": lambda: (nn.BatchNorm2d(width, affine=False), width),
            "group norm": lambda: (nn.GroupNorm(1, width), width),
            "relu": lambda: (nn.ReLU(inplace=draw.random() < 0.3), width),
            "smooth": lambda: (draw.choice([nn.GELU, nn.SiLU, nn.Softplus, nn.Tanh])(), width),
            "pool": lambda: (nn.AvgPool2d(3, 1, 1), width),
            "largest": lambda: (nn.MaxPool2d(3, 1, 1), width),
            "dropout": lambda: (nn.Dropout(0.5), width),
            "block": lambda: (
                nn.Sequential(nn.Conv2d(width, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU()),
                outer,
            ),
        }
        return kinds[draw.choice(list(kinds))]()

    def forward(self, x):
        found = [x]
        for source, layer in zip(self.plan, self.layers, strict=True):
            given = found[source]
            out = layer(given.clone())  # a ReLU in place would change what others read
            found.append(out + given if out.shape == given.shape and source % 2 else out)
        return self.head(torch.cat(found[1:], 1).mean((2, 3))) + self.shift


def lived(model, x):
    """With statistics of a few batches, and weights of batch norm that are not 1."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.uniform_(-1.5, 1.5)
        for _ in range(3):
            model.train()(x + torch.rand_like(x))
    return model.eval()


@pytest.mark.parametrize(("precision", "logits", "gradients"), [("fp32", 1e-3, 0.02), ("bf16", 0.05, 0.4)])
def test_a_copy_of_a_graph_drawn_by_chance_is_the_graph_or_is_not_used(fuzz, precision, logits, gradients):
    """On other images than those that it was proved on; what is a little looser than the proof allows for them."""
    count, seed = fuzz
    used = 0
    for number in range(count):
        torch.manual_seed(number)
        model = Graph(random.Random(f"{seed}/{number}"))
        x = torch.rand(16, model.channels, 6, 6)
        lived(model, x)
        with warnings.catch_warnings(), eval_mode(model), frozen(model):
            warnings.simplefilter("ignore")
            with AcceleratedCopy(precision, "off")(model, x[:8]) as attacked:
                used += attacked is not model
                (found, mine), (wanted, true) = gradient(attacked, x[8:]), gradient(model, x[8:])
        centred = wanted - wanted.mean(1, keepdim=True)
        apart = (found - found.mean(1, keepdim=True) - centred).norm() / centred.norm().clamp_min(1e-9)
        assert apart <= logits, (number, model)
        assert (mine - true).norm() <= gradients * true.norm().clamp_min(1e-9), (number, model)
    assert used > count / 2, "most are copied"
