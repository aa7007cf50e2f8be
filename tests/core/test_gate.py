"""What is handed in is checked once, with a sentence for each mistake, and is afterwards as it was before."""

import gc
import threading
import warnings
import weakref

import numpy as np
import pytest
import torch
from conftest import toy_data, toy_net
from torch import nn

from sparring import (
    APGD,
    FAB,
    L2,
    PGD,
    CrossEntropy,
    Linf,
    Margin,
    Method,
    Progress,
    Restarts,
    Square,
    State,
    UserError,
    WhiteBox,
    autoattack,
    make_rng,
    perturb,
)
from sparring.acceleration import AcceleratedCopy
from sparring.analysis import measure_gradient_stability, measure_landscape
from sparring.attacks import NFGSM
from sparring.core.modes import full_precision
from sparring.core.types import Batch, TensorData, pixels
from sparring.evaluation import MultiTargeted, audit, evaluate
from sparring.models import KNN
from sparring.training import train_step

ATTACK = PGD(Linf(0.1), 2)
DATA = toy_data(24)
X, Y = pixels(DATA.x), DATA.y


def seen(model, x=X, y=Y, attack=ATTACK, **options):
    return lambda: perturb(model, x, y, attack, **options)


class SurrogateGradient(nn.Module):
    """A net with something done to its input or to its logits."""

    def __init__(self, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.net, self.before, self.after = toy_net().eval(), before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def exported():
    """Only when asked for: the import of what exports takes seconds."""
    return torch.export.export(toy_net().eval(), (X,)).module()


def under_inference_mode(make):
    with torch.inference_mode():
        return make()


def with_nan():
    model = toy_net()
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    return model


class Leaving(PGD):
    """Its points leave the set that it names."""

    def __call__(self, loss, x, rng):
        return (x + 0.5).clamp(0, 1)


class Outside(PGD):
    def __call__(self, loss, x, rng):
        return x + 2


WRONG = {  # what is handed in, and what is said of it
    "two channels": (seen(toy_net(), X.expand(-1, 2, -1, -1)), r"does not take images of 2x4x4 \(mat1 and mat2"),
    "another size": (seen(toy_net(), torch.rand(24, 1, 5, 5)), r"does not take images of 1x5x5"),
    "channels last": (
        seen(nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()), X.permute(0, 2, 3, 1)),
        r"channels come first: pass x.permute\(0, 3, 1, 2\)",
    ),
    "float64 images": (
        seen(toy_net(), X.double()),
        r"images are torch.float64 on cpu, the weights of the model torch.f",
    ),
    "half images": (seen(toy_net(), X.half()), r"images are torch.float16 on cpu"),
    "a float64 model": (
        seen(toy_net().double()),
        r"images are torch.float32 on cpu, the weights of the model torch.fl",
    ),
    "numpy images": (seen(toy_net(), X.numpy()), r"images are a numpy array: pass torch.from_numpy"),
    "numpy labels": (seen(toy_net(), X, Y.numpy()), r"labels are a numpy array"),
    "a list of images": (seen(toy_net(), X.tolist()), r"images are a list: wanted is a torch.Tensor"),
    "no labels": (seen(toy_net(), X, None), r"labels are a NoneType: wanted is a torch.Tensor"),
    "sparse images": (seen(toy_net(), X.to_sparse()), r"images are torch.sparse_coo: wanted is a dense tensor"),
    "inference images": (
        seen(toy_net(), under_inference_mode(lambda: X.clone() * 1)),
        r"images were made under torch.inference_mode\(\)",
    ),
    "an inference model": (seen(under_inference_mode(toy_net)), r"of the model was made under torch.inference_mode"),
    "a lazy model": (
        seen(nn.Sequential(nn.Flatten(), nn.LazyLinear(3))),
        r"of the model is not made yet: run the lazy model once",
    ),
    "an exported model": (
        lambda: perturb(exported(), X, Y, ATTACK),
        r"the mode of the model cannot be switched .* pass the module",
    ),
    "a function": (seen(lambda x: x.flatten(1)), r"the model is a function: wanted is a torch.nn.Module"),
    "a class": (seen(nn.Flatten), r"the model is the class Flatten: call it to make one, as Flatten\(\.\.\)"),
    "classes instead of logits": (
        seen(SurrogateGradient(after=lambda z: z.argmax(1, keepdim=True))),
        r"gives torch.int64: wanted",
    ),
    "a label below 0": (seen(toy_net(), X, Y - 1), r"labels span -1 to 1"),
    "a label too high": (seen(toy_net(), X, Y + 1), r"a label is 3, but the model gives 3 classes"),
    "fractions as labels": (seen(toy_net(), X, Y.float()), r"labels are torch.float32"),
    "a pixel just above 1": (seen(toy_net(), X + 2e-7 + (1 - X.max())), r"span \[[0-9.]+, 1\.000000\d+\], outside"),
    "no attack": (seen(toy_net(), attack=None), r"None is no attack: wanted is a value such as PGD"),
    "the name of an attack": (seen(toy_net(), attack="pgd"), r"'pgd' is no attack"),
    "the class of an attack": (seen(toy_net(), attack=PGD), r"PGD is a class: wanted is an attack with its set"),
    "a fraction of a step": (lambda: PGD(Linf(0.1), 2.5), r"steps = 2.5 is no whole number from 1 on"),
    "steps as text": (lambda: PGD(Linf(0.1), "3"), r"steps = '3' is no whole number"),
    "steps of APGD": (lambda: APGD(Linf(0.1), 1.5), r"steps = 1.5 is no whole number"),
    "steps of FAB": (lambda: FAB(Linf(0.1), True), r"steps = True is no whole number"),
    "queries": (lambda: Square(Linf(0.1), 0), r"queries = 0 is no whole number from 1 on"),
    "restarts": (lambda: Restarts(ATTACK, None), r"times = None is no whole number"),
    "draws": (lambda: WhiteBox(ATTACK, draws=0), r"draws = 0 is no whole number"),
    "targets": (lambda: MultiTargeted(ATTACK, targets="all"), r"targets = 'all' is no whole number"),
    "a step of many eps": (lambda: PGD(Linf(0.1), 2, 10.0), r"step_size = 10 is 100 times eps = 0.1"),
    "a large seed": (seen(toy_net(), seed=2**70), r"seed = 1180591620717411303424 is no whole number from 0 to 9223"),
    "a fraction as a seed": (seen(toy_net(), seed=1.5), r"seed = 1.5 is no whole number"),
    "NaN in the weights": (seen(with_nan()), r"the attack gives NaN or infinite pixels for \d+ of 24 images"),
    "NaN in the logits": (
        seen(SurrogateGradient(after=lambda z: z * torch.nan)),
        r"NaN or infinite pixels for 24 of 24 images",
    ),
    "a forward that changes its images": (
        seen(SurrogateGradient(lambda x: x.sub_(0.5).mul_(2))),
        r"the forward of the model changes the images that it is given, in place",
    ),
    "an attack that leaves its set": (
        seen(toy_net(), attack=Leaving(Linf(0.1))),
        r"\d+ of 24 points .* outside of Linf",
    ),
    "an attack that leaves [0, 1]": (seen(toy_net(), attack=Outside(Linf(0.1))), r"pixels in \[.*\], outside \[0, 1\]"),
    "an evaluation of a function": (lambda: evaluate(lambda x: x, DATA, {}), r"the model is a function"),
    "an evaluation of numpy images": (
        lambda: evaluate(toy_net(), TensorData(X.numpy(), Y, DATA.classes), {}),
        r"evaluation images are a numpy array",
    ),
    "an evaluation of images in another size": (
        lambda: evaluate(toy_net(), TensorData(torch.rand(24, 1, 5, 5), Y, DATA.classes), {}),
        r"does not take images of 1x5x5",
    ),
    "an evaluation that changes its images": (
        lambda: evaluate(SurrogateGradient(lambda x: x.sub_(0.5)), DATA, {}),
        r"changes the images that it is given",
    ),
    "an evaluation with half a batch": (
        lambda: evaluate(toy_net(), DATA, {}, batch_size=0.5),
        r"batch_size = 0.5 is no",
    ),
    "an evaluation with a text as seed": (lambda: evaluate(toy_net(), DATA, {}, seed="1"), r"seed = '1' is no whole"),
    "AutoAttack on a function": (lambda: autoattack(lambda x: x, X, Y, Linf(0.1)), r"the model is a function"),
    "AutoAttack on another size": (
        lambda: autoattack(toy_net(), torch.rand(24, 1, 5, 5), Y, Linf(0.1)),
        r"does not take images of 1x5x5",
    ),
    "an audit with a surrogate of another size": (
        lambda: audit(toy_net(), DATA, Linf(0.1), surrogate=nn.Sequential(nn.Flatten(), nn.Linear(25, 3))),
        r"does not take images of 1x4x4",
    ),
    "a method without an attack": (lambda: Method(None, CrossEntropy()), r"None is no attack"),
    "a method with the class of an attack": (
        lambda: Method(PGD, CrossEntropy()),
        r"PGD is a class: wanted is an attack",
    ),
    "an audit of a class": (lambda: audit(nn.Flatten, DATA, Linf(0.1)), r"the model is the class Flatten"),
    "an audit with a seed below 0": (
        lambda: audit(toy_net(), DATA, Linf(0.1), seed=-1),
        r"seed = -1 is no whole number",
    ),
    "a landscape of a function": (lambda: measure_landscape(lambda x: x, DATA, Linf(0.1)), r"the model is a function"),
    "a landscape of images in another size": (
        lambda: measure_landscape(toy_net(), TensorData(torch.rand(24, 1, 5, 5), Y, DATA.classes), Linf(0.1)),
        r"does not take images of 1x5x5",
    ),
    "stability of a class": (
        lambda: measure_gradient_stability(nn.Flatten, DATA, {}),
        r"the model is the class Flatten",
    ),
    "a first step on images of another size": (lambda: stepped(toy_net(), torch.rand(24, 1, 5, 5)), r"of 1x5x5"),
    "a first step on float64 images": (lambda: stepped(toy_net(), X.double()), r"images are torch.float64"),
    "a first step of a model that changes its images": (
        lambda: stepped(SurrogateGradient(lambda x: x.sub_(0.5)), X),
        r"changes the images that it is given",
    ),
}


def stepped(model, x=X, backend=None, attack=ATTACK):
    method = Method(attack, CrossEntropy())
    state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1))
    return train_step(method, state, Batch(x, Y, torch.arange(len(x))), Progress(0, 2, 1), backend=backend)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "an exported model" else name for name in WRONG]
)
@pytest.mark.filterwarnings("ignore")
def test_a_mistake_is_said_in_a_sentence(name):
    make, sentence = WRONG[name]
    with pytest.raises(UserError, match=sentence):
        make()


def test_what_is_given_by_keyword_is_checked_too():
    model, threat = toy_net(), Linf(0.1)
    bad = TensorData(X * 255, Y, DATA.classes)
    with pytest.raises(UserError, match=r"outside \[0, 1\]"):
        measure_landscape(model=model, data=bad, threat=threat)
    with pytest.raises(UserError, match="the model is a int"):
        measure_landscape(data=DATA, model=3, threat=threat)
    assert measure_landscape(threat=threat, data=DATA[:2], model=model)


def test_images_that_a_model_would_change_are_as_they_were():
    x = X.clone()
    for call in (
        seen(SurrogateGradient(lambda x: x.sub_(0.5)), x),
        lambda: stepped(SurrogateGradient(lambda x: x.sub_(0.5)), x),
    ):
        with pytest.raises(UserError, match="in place"):
            call()
    data = TensorData(x, Y, DATA.classes)
    with pytest.raises(UserError, match="in place"):
        evaluate(SurrogateGradient(lambda x: x.sub_(0.5)), data, {})
    assert torch.equal(x, X)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_where_the_caller_has_switched_them_off(off):
    model, other = toy_net(), toy_net()
    wanted = perturb(model, X, Y, ATTACK)
    with warnings.catch_warnings(), off():
        warnings.simplefilter("ignore")
        found = perturb(model, X, Y, ATTACK)
        result = evaluate(model, DATA, {"pgd": WhiteBox(ATTACK)})
        stepped(other)
    assert torch.equal(found, wanted)
    assert set(result.robust) == {"clean", "pgd"}


def test_images_that_want_a_gradient_can_be_evaluated():
    x = X.clone().requires_grad_()
    evaluate(toy_net(), TensorData(x, Y, DATA.classes), {"pgd": WhiteBox(ATTACK)})
    assert x.requires_grad
    assert x.grad is None


def test_an_attack_with_a_wider_reach_than_its_set_is_let_through():
    z = perturb(toy_net(), X, Y, NFGSM(Linf(0.05)))
    assert 0.05 < float((z - X).abs().max()) <= 0.15 + 1e-6


class Slow(nn.Module):
    """Waits in its forward, so that another thread would come in between, and notes the mode that it finds."""

    def __init__(self):
        super().__init__()
        self.net, self.modes, self.gate = toy_net(), [], threading.Event()

    def forward(self, x):
        self.modes.append(self.training)
        self.gate.wait(0.002)
        self.modes.append(self.training)
        return self.net(x)


def test_two_threads_attack_one_model_as_one_would():
    model = Slow().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted, found = perturb(model, X, Y, ATTACK), []
    threads = [threading.Thread(target=lambda: found.append(perturb(model, X, Y, ATTACK))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(z, wanted) for z in found)
    assert not any(model.modes)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_training_beside_an_evaluation_goes_on_when_that_has_ended():
    model, trouble = Slow().train(), []

    def evaluated():
        try:
            evaluate(model, DATA, {"pgd": WhiteBox(ATTACK)}, backend=None)
        except Exception as error:
            trouble.append(error)

    thread = threading.Thread(target=evaluated)
    thread.start()
    stepped(model)
    thread.join()
    assert not trouble
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.filterwarnings("ignore")
def test_a_zero_gradient_is_noted():
    found = evaluate(SurrogateGradient(lambda x: (x * 4).round() / 4), DATA, {"pgd": WhiteBox(ATTACK)})
    assert any("the gradient of the loss is zero for 24 of 24 images" in note for note in found.notes)
    assert not any("is zero for" in note for note in evaluate(toy_net(), DATA, {}).notes)


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model_is_noted_too():
    model = torch.ao.quantization.quantize_dynamic(toy_net(), {nn.Linear}, dtype=torch.qint8)
    found = evaluate(model, DATA, {"square": WhiteBox(Square(Linf(0.1), 5), Margin)})
    assert any("the gradient of the loss is zero for 24 of 24 images" in note for note in found.notes)


class Hooked(nn.Module):
    """A hook that is a method of its own."""

    def __init__(self):
        super().__init__()
        self.net = toy_net()
        self.net[1].register_forward_hook(self.look)

    def look(self, module, args, out):
        return out

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("fast", [None, AcceleratedCopy()])
def test_models_that_were_trained_are_freed(fast):
    seen = []
    for _ in range(3):
        model = Hooked()
        stepped(model, backend=fast)
        seen.append(weakref.ref(model))
        del model
    gc.collect()
    assert [each() for each in seen] == [None] * 3


@pytest.mark.parametrize("setting", ["matmul", "convolution", "everything"])
def test_full_precision_holds_under_a_precision_of_the_users_own(setting):
    a, conv = torch.rand(128, 128, generator=make_rng(0)), nn.Conv2d(8, 8, 3)
    x = torch.rand(4, 8, 16, 16, generator=make_rng(1))
    with torch.no_grad():
        exact, true = a.double() @ a.double(), conv.double()(x.double())
        conv.float()
    backends = torch.backends
    before = (torch.get_float32_matmul_precision(), backends.mkldnn.conv.fp32_precision)
    try:
        if setting in ("matmul", "everything"):
            torch.set_float32_matmul_precision("medium")
        if setting in ("convolution", "everything"):
            backends.mkldnn.conv.fp32_precision = "bf16"
        places = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.cuda.matmul, backends.cudnn.conv)
        chosen = [place.fp32_precision for place in places]
        with full_precision(), torch.no_grad():
            assert (a @ a - exact).abs().max() < 1e-3
            assert (conv(x) - true).abs().max() < 1e-5
        assert [place.fp32_precision for place in places] == chosen
    finally:
        torch.set_float32_matmul_precision(before[0])
        backends.mkldnn.conv.fp32_precision = before[1]


def test_l2_points_on_the_sphere_are_inside():
    assert perturb(toy_net(), X, Y, PGD(L2(0.3), 5)).shape == X.shape
    assert isinstance(np.asarray(perturb(toy_net(), X, Y, ATTACK)), np.ndarray)


def test_a_layer_of_ours_that_says_what_is_wrong_is_not_taken_for_a_wrong_size():
    model = nn.Sequential(nn.Flatten(), KNN(3))
    with pytest.raises(UserError, match=r"^the bank of the nearest neighbours is empty"):
        evaluate(model, toy_data(), {})
