"""No accelerated search is weaker than a search on the model itself, whatever the net is made of.

Each attack alone, so that none hides behind another: on the copy at most 1 % more may stand than on the model.
"""

import copy
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from sparring import (
    APGD,
    FAB,
    PGD,
    Classifier,
    CrossEntropy,
    Linf,
    Margin,
    Method,
    Progress,
    Square,
    State,
    SurrogateGradient,
    WhiteBox,
    make_rng,
)
from sparring.acceleration import AcceleratedCopy, OriginalModel, computes_bf16
from sparring.acceleration.body_copy import Low
from sparring.core.modes import ComposedMode, eval_mode
from sparring.core.types import Batch, pixels
from sparring.data import Digits
from sparring.evaluation import MultiTargeted, evaluate
from sparring.models import SmoothBackward
from sparring.training import train_step

pytestmark = pytest.mark.slow

EPS = Linf(0.12)
ATTACKS = {
    "pgd": WhiteBox(PGD(EPS, 5)),
    "apgd": WhiteBox(APGD(EPS, 8)),
    "fab": MultiTargeted(FAB(EPS, 25), Margin, targets=1),
    "square": WhiteBox(Square(EPS, 60), Margin),
}
COUNT = 200


class Net(nn.Module):
    """Two convolutions and a linear head, between which a test may put something of its own."""

    def __init__(self, between=nn.ReLU, head=None):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.between, self.act = between(), nn.ReLU()
        self.head = nn.Linear(256, 10) if head is None else head

    def features(self, x):
        return self.act(self.second(self.between(self.first(x)))).flatten(1)

    def forward(self, x):
        return self.head(self.features(x))


class Offset(nn.Module):
    """All convolutional, with logits far from 0."""

    def __init__(self, offset):
        super().__init__()
        self.body, self.offset = nn.Sequential(Net(head=nn.Unflatten(1, (16, 4, 4))), nn.Conv2d(16, 10, 3)), offset

    def forward(self, x):
        return self.body(x).mean((2, 3)) + self.offset


class Cosine(nn.Module):
    def __init__(self, learned=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 256))
        self.scale = nn.Parameter(torch.full((1,), 32.0)) if learned else 32.0

    def forward(self, z):
        return self.scale * F.linear(F.normalize(z), F.normalize(self.weight))


class Prototypes(nn.Module):
    """Logits are minus squared distances from a point for each class."""

    def __init__(self):
        super().__init__()
        self.points = nn.Parameter(torch.randn(10, 256) / 4)

    def forward(self, z):
        return 2 * z @ self.points.T - self.points.square().sum(1) - z.square().sum(1, keepdim=True)


class LogProbabilities(nn.Linear):
    def forward(self, z):
        return super().forward(z).log_softmax(1) - 100


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.lstm(x[:, 0])[0][:, -1])


class Transformer(nn.Module):
    """A vision transformer of one block on patches of 2x2."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 2, stride=2)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, 32)), nn.Parameter(0.1 * torch.randn(1, 17, 32))
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        z = self.patches(x).flatten(2).transpose(1, 2)
        z = torch.cat([self.token.expand(len(z), -1, -1), z], 1) + self.place
        return self.head(self.block(z)[:, 0])


class Spectrum(nn.Module):
    """Multiplies the spectrum of its input, as Fourier layers do."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(8, 8, 5))

    def forward(self, x):
        return torch.fft.irfft2(torch.fft.rfft2(x.float()) * self.weight, s=x.shape[2:])


class Tied(Net):
    """The second convolution runs twice, and the head is the transpose of a layer before it."""

    def __init__(self):
        super().__init__(head=nn.Identity())
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.out, self.back = nn.Linear(512, 10, bias=False), nn.Linear(10, 512, bias=False)
        self.back.weight = nn.Parameter(self.out.weight.T.clone())

    def forward(self, x):
        z = self.second(F.relu(self.second(self.first(x)))).relu().flatten(1)
        return self.out(z + 0.01 * self.back(self.out(z)))


class Standardised(nn.Conv2d):
    """Weight standardisation."""

    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, padding=self.padding)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return x.relu() * self.layer(x.mean((2, 3))).sigmoid()[..., None, None]


class Straight(torch.autograd.Function):
    """Rounds, with the gradient of the identity: a straight-through estimator."""

    @staticmethod
    def forward(ctx, x):
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx, grad):
        return grad


class Stepped(Net):
    """Its input passes through a function that an attack may exchange (BPDA), named in an attribute or in a dict."""

    def __init__(self):
        super().__init__()
        self.quantise, self.options = Straight.apply, {"quantise": None}

    def forward(self, x):
        return super().forward((self.options["quantise"] or self.quantise)(x))


class Sticky(nn.Sequential):
    """A backbone that copies itself as itself, since others share it."""

    def __deepcopy__(self, memo):
        return self


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = Sticky(Net(head=nn.Identity())), nn.Linear(256, 10)

    def forward(self, x):
        return self.head(self.body(x))


class Held(Net):
    """A part that trains is held in a list, where `parameters()` does not see it."""

    def __init__(self):
        super().__init__()
        self.extra = [nn.Conv2d(8, 8, 3, padding=1)]

    def features(self, x):
        return self.act(self.second(self.extra[0](self.first(x)).relu())).flatten(1)


class Listed(Net):
    """Its layers run from a list that holds them besides."""

    def __init__(self):
        super().__init__()
        self.layers = [self.first, self.between, self.second, self.act]

    def features(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.flatten(1)


@dataclass
class Settings:
    slope: float = 0.1
    more: dict = field(default_factory=lambda: {"power": 1.0})


class Configured(Net):
    def __init__(self):
        super().__init__()
        self.settings = Settings()

    def features(self, x):
        z = F.leaky_relu(self.first(x), self.settings.slope) * self.settings.more["power"]
        return self.act(self.second(z)).flatten(1)


class InPlace(Net):
    """Works in place, but for its first operation."""

    def forward(self, x):
        x = x * 1.0
        return super().forward(x.sub_(0.5).mul_(2))


class Ensemble(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([Net(), Net(nn.Tanh)])

    def forward(self, x):
        return sum(part(x) for part in self.parts) / 2


class Tempered(Net):
    def forward(self, x):
        return super().forward(x) / 0.05


def halved(model):
    model.second.register_forward_hook(lambda module, args, out: out / 2)
    return model


def rounded(model):
    """A plain classifier whose own pre-hook rounds what it is given."""
    whole = Classifier(nn.Sequential(Net(head=nn.Identity())), nn.Linear(256, 10))
    whole.register_forward_pre_hook(lambda module, args: (Straight.apply(args[0]),))
    return whole


def flattened(model):
    """A hook that also shrinks gradients: where they are too long, FAB only nears the boundary; rounding decides."""

    def flatten(module, given, out):
        return tuple(0.1 * g.sign() * g.abs().sqrt() for g in given)

    model.second.register_full_backward_hook(flatten)
    return model


def bound_hook(model):
    model.factor = 0.5
    model.scaled = lambda module, args, out: out * model.factor
    model.second.register_forward_hook(model.scaled)
    return model


def straight_relu(model):
    """The forward of one module was exchanged: the logits stay, the gradient does not."""
    model.act.forward = lambda x: x + (x.relu() - x).detach()
    return model


def patched(model):
    inner = model.forward
    model.forward = lambda x: inner(x.flip(3)) + inner(x)
    return model


def doubled_by_global_hook(model):
    return model


@contextmanager
def leaky_everywhere(model):
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: out * 1.25 if isinstance(module, nn.Conv2d) else None
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def soft(model):
    """BPDA: what is exchanged is a callable attribute."""
    before, model.quantise = model.quantise, lambda x: (x * 8).round().div(8).detach() + x - x.detach()
    try:
        yield
    finally:
        model.quantise = before


@contextmanager
def soft_entry(model):
    """BPDA: what is exchanged is an entry of a dict."""
    model.options["quantise"] = lambda x: (x * 8).round().div(8).detach() + x - x.detach()
    try:
        yield
    finally:
        model.options["quantise"] = None


def hard(model):
    """Rounding without a gradient, which only a view gives one."""
    model.quantise = lambda x: (x * 8).round() / 8
    return model


BF16, FP32, ITSELF = "bf16", "fp32", "the model itself"
ZOO = {  # the net, and what attacks may search on
    "plain": (Net, BF16),
    "offset": (partial(Offset, 1000.0), FP32),
    "small offset": (partial(Offset, 100.0), FP32),
    "all convolutional": (partial(Offset, 0.0), FP32),
    "cosine": (lambda: Net(head=Cosine()), FP32),
    "cosine with a learned scale": (lambda: Net(head=Cosine(learned=True)), FP32),
    "prototypes": (lambda: Net(head=Prototypes()), FP32),
    "log probabilities": (lambda: Net(head=LogProbabilities(256, 10)), FP32),
    "temperature": (Tempered, FP32),
    "ensemble": (Ensemble, FP32),
    "weight norm": (lambda: weight_normed(Net()), FP32),
    "spectral norm": (lambda: spectral(Net()), BF16),
    "weight standardisation": (lambda: Net(lambda: Standardised(8, 8, 3, padding=1)), BF16),
    "batch norm": (lambda: Net(lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())), BF16),
    "group norm": (lambda: Net(lambda: nn.GroupNorm(2, 8)), BF16),
    "layer norm": (lambda: Net(lambda: nn.LayerNorm([8, 8, 8])), BF16),
    "instance norm": (lambda: Net(lambda: nn.InstanceNorm2d(8, affine=True)), BF16),
    "sync norm": (lambda: Net(lambda: nn.SyncBatchNorm(8)), BF16),
    "lstm": (Recurrent, BF16),
    "vision transformer": (Transformer, BF16),
    "fft": (lambda: Net(Spectrum), BF16),
    "tied weights": (Tied, FP32),
    "squeeze and excitation": (lambda: Net(Gate), BF16),
    "max pooling, dropout": (lambda: Net(lambda: nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Dropout2d(0.1))), BF16),
    "gelu": (lambda: Net(nn.GELU), BF16),
    "a forward hook": (lambda: halved(Net()), BF16),
    "a hook of the whole": (lambda: rounded(None), BF16),
    "a backward hook": (lambda: flattened(Net()), BF16),
    "a hook that knows the model": (lambda: bound_hook(Net()), BF16),
    "a global hook": (lambda: doubled_by_global_hook(Net()), ITSELF),
    "an exchanged forward of a layer": (lambda: straight_relu(Net()), ITSELF),
    "an exchanged forward": (lambda: patched(Net()), ITSELF),
    "a straight-through estimator": (Stepped, BF16),
    "a backbone that is shared": (Shared, ITSELF),
    "a trainable part in a list": (Held, ITSELF),
    "layers in a list": (Listed, BF16),
    "nested settings": (Configured, BF16),
    "operations in place": (InPlace, BF16),
}


def weight_normed(model):
    parametrizations.weight_norm(model.second)
    parametrizations.weight_norm(model.head)
    return model


def spectral(model):
    for module in (model.first, model.second):
        parametrizations.spectral_norm(module)
    return model


@pytest.fixture(scope="module")
def digits():
    train, test = Digits().load()
    return pixels(train.x), train.y, test[:COUNT]


def trained(model, x, y, steps=60):
    """A little adversarial training, so that attacks break some and leave some."""
    parameters = [*model.parameters(), *(p for part in getattr(model, "extra", ()) for p in part.parameters())]
    optimizer, rng = torch.optim.Adam(parameters, lr=5e-3), make_rng(0)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=rng)
        z = x[rows].requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(z), y[rows]), z)
        z = (z + EPS.eps / 2 * grad.sign()).clamp(0, 1).detach()
        optimizer.zero_grad()
        F.cross_entropy(model(z), y[rows]).backward()
        optimizer.step()
    return model.eval()


def kind(fast, model, few):
    with eval_mode(model), fast(model, few) as attacked:
        if attacked is model:
            return ITSELF
        low = attacked if isinstance(attacked, Low) else attacked.body
        return {torch.float32: FP32, torch.bfloat16: BF16}[low.dtype]


def standing(model, test, backend, adversaries=ATTACKS):
    """How many images stand clean and under each attack, each of which sees them all."""
    robust = evaluate(model, test, adversaries, backend=backend).robust
    return {name: int(stands.sum()) for name, stands in robust.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ZOO)
def test_on_a_copy_no_attack_leaves_more_standing_than_on_the_model(digits, name):
    x, y, test = digits
    torch.manual_seed(0)
    make, wanted = ZOO[name]
    low = computes_bf16(x.device)  # emulated it is never chosen, takes minutes, and is not there for every layer
    wanted = FP32 if wanted == BF16 and not low else wanted
    model, fast = trained(make(), x, y), AcceleratedCopy("bf16" if low else "fp32")
    with leaky_everywhere(model) if name == "a global hook" else eval_mode(model):
        before = copy.deepcopy(model.state_dict())
        assert kind(fast, model, x[:8]) == wanted, fast.notes(model)
        if wanted == ITSELF:
            return
        alone, found = (standing(model, test, backend) for backend in (OriginalModel(), fast))
        for attack in ATTACKS:
            assert 0 < alone[attack] < alone["clean"] or attack == "fab", f"{attack} says nothing: {alone}"
            assert found[attack] <= alone[attack] + COUNT // 100, attack
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.fixture(scope="module")
def stepped(digits):
    torch.manual_seed(0)
    return hard(trained(Stepped(), *digits[:2]))


@pytest.mark.parametrize("view", [soft, soft_entry])
def test_a_view_reaches_what_training_crafts_on(digits, stepped, view):
    """The search was used without the view before."""
    x, y, _ = digits

    def step(backend):
        model = copy.deepcopy(stepped)
        with backend(model, x[:8]):
            pass
        method = Method(PGD(EPS, 5), CrossEntropy(), inner_mode=ComposedMode((eval_mode, view)), outer_mode=eval_mode)
        state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1))
        terms = train_step(method, state, Batch(x[:64], y[:64], torch.arange(64)), Progress(0, 2, 1), backend=backend)
        return float(terms["ce"])

    assert step(AcceleratedCopy("fp32")) == pytest.approx(step(OriginalModel()), rel=0.02)


VIEWS = {"an attribute": soft, "an entry of a dict": soft_entry, "the gradient of ReLU": SmoothBackward(1.0)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("used", [False, True])
def test_a_view_reaches_what_attacks_search_on(digits, stepped, view, used):
    x, _, test = digits
    model, fast = copy.deepcopy(stepped), AcceleratedCopy("bf16")
    if used:
        with fast(model, x[:8]):
            pass
    attack = {"attack": SurrogateGradient(VIEWS[view], WhiteBox(PGD(EPS, 5)))}
    alone, found = (standing(model, test, backend, attack)["attack"] for backend in (OriginalModel(), fast))
    assert found <= alone + COUNT // 100
