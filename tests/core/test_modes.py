import pytest
import torch
from conftest import toy_data, toy_net
from forked import ended, started
from torch import nn

from sparring import (
    PGD,
    SGD,
    AcceleratedCopy,
    Batch,
    CrossEntropy,
    Linf,
    Method,
    OriginalModel,
    Progress,
    State,
    UserError,
    eval_mode,
    frozen,
    train_mode,
    train_step,
)
from sparring.acceleration import computes_bf16
from sparring.acceleration.convolution import FrozenConv
from sparring.core.modes import (
    ComposedMode,
    batch_statistics,
    full_precision,
    mode_matters,
    statistics_kept,
    unchanged,
)
from sparring.models import SmoothBackward, small_cnn


def modes(model):
    return [(m.training, type(m), sorted(vars(m))) for m in model.modules()]


VIEWS = [
    *(eval_mode, train_mode, batch_statistics, statistics_kept, frozen, unchanged),
    *(SmoothBackward(), ComposedMode((eval_mode, SmoothBackward(2.0)))),
]


@pytest.mark.parametrize("view", VIEWS, ids=lambda v: getattr(v, "__name__", repr(v)))
def test_every_view_undoes_itself_also_after_an_exception(view):
    model = toy_net().train()
    model[2].eval()
    model[1].weight.requires_grad_(False)
    before = modes(model), [p.requires_grad for p in model.parameters()], model[2].track_running_stats
    with pytest.raises(KeyError), view(model):
        raise KeyError
    with view(model):
        pass
    after = modes(model), [p.requires_grad for p in model.parameters()], model[2].track_running_stats
    assert after == before


def test_batch_norm_goes_by_the_batch_and_its_statistics_stay():
    model, x = toy_net().train(), torch.rand(8, 1, 4, 4)
    with batch_statistics(model):
        kept = model(x)
    assert int(model[2].num_batches_tracked) == 0
    assert torch.equal(model[2].running_mean, torch.zeros(32))
    assert torch.equal(kept, model(x))  # in training mode, the same answer
    assert int(model[2].num_batches_tracked) == 1
    model.eval()
    with batch_statistics(model):
        assert torch.equal(model(x), kept)
    assert not model.training


def test_views_do_what_they_say():
    model = toy_net().train()
    with eval_mode(model):
        assert not any(m.training for m in model.modules())
    with eval_mode(model), train_mode(model):
        assert all(m.training for m in model.modules())
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters())


def test_only_layers_that_act_differently_make_the_mode_matter():
    assert mode_matters(toy_net().train()) == "2 (BatchNorm1d)"
    assert mode_matters(toy_net().eval()) is None
    assert mode_matters(nn.Sequential(nn.Linear(2, 2), nn.ReLU()).train()) is None
    assert mode_matters(nn.Dropout()) == "itself (Dropout)"


# -- smooth gradients


def smooth(model, x, alpha=10.0):
    """Logits, and their gradient by the images, with the gradient of ReLU smoothed."""
    x = x.clone().requires_grad_()
    with SmoothBackward(alpha)(model):
        out = model(x)
        (grad,) = torch.autograd.grad(out.pow(2).sum(), x)
    return out.detach(), grad


def test_a_smooth_gradient_leaves_logits_bit_identical_and_is_the_chain_rule_with_a_sigmoid():
    torch.manual_seed(0)
    first, last = nn.Linear(16, 9), nn.Linear(9, 3)
    model, x = nn.Sequential(nn.Flatten(), first, nn.ReLU(inplace=True), last), torch.randn(5, 1, 4, 4)
    out, grad = smooth(model, x)
    assert torch.equal(out, model(x))
    hidden = first(x.flatten(1))
    by_hidden = (2 * out @ last.weight) * torch.sigmoid(10 * hidden)
    assert torch.allclose(grad.flatten(1), by_hidden @ first.weight, atol=1e-5)
    assert type(model[2]) is nn.ReLU


def test_a_harder_softplus_has_the_gradient_of_relu():
    torch.manual_seed(0)
    model, x = small_cnn(shape=(1, 8, 8), width=4, batch_norm=True).eval(), torch.rand(4, 1, 8, 8)
    z = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(model(z).pow(2).sum(), z)
    apart = [float((smooth(model, x, alpha)[1] - plain).norm() / plain.norm()) for alpha in (1.0, 100.0, 1e6)]
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] < 1e-4


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(x) + torch.relu(x)


def test_a_smooth_gradient_refuses_what_it_cannot_smooth():
    with pytest.raises(UserError, match=r"cannot be smoothed: torch\.relu in Hidden"), SmoothBackward()(Hidden()):
        pass
    with SmoothBackward(strict=False)(Hidden()) as nothing:
        assert nothing is None
    with pytest.raises(UserError, match=r"Sequential has no nn\.ReLU"), SmoothBackward()(nn.Sequential(nn.SiLU())):
        pass
    with pytest.raises(UserError, match="alpha = 0 is no number above 0"):
        SmoothBackward(0.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_fast_path_sees_the_smooth_gradient_and_makes_its_copy_once(precision):
    if precision == "bf16" and not computes_bf16(torch.device("cpu")):
        pytest.skip("this processor has no bf16, for which convolutions are replaced")
    torch.manual_seed(0)
    model, x = small_cnn(shape=(1, 8, 8), width=4, batch_norm=True).eval(), torch.rand(4, 1, 8, 8)
    fast = AcceleratedCopy(precision, "off")
    _, wanted = smooth(model, x)
    copies = set()
    for _ in range(3):
        with SmoothBackward()(model), fast(model, x) as attacked:
            z = x.clone().requires_grad_()
            (grad,) = torch.autograd.grad(attacked(z).pow(2).sum(), z)
            copies.add(id(attacked))
            convolutions = [m for m in attacked.modules() if isinstance(m, FrozenConv)]
    assert len(copies) == 1
    assert len(convolutions) == 4 and not any(conv.relu for conv in convolutions)
    assert float((grad - wanted).norm() / wanted.norm()) < (1e-4 if precision == "fp32" else 0.05)
    with fast(model, x) as attacked:
        plain = attacked
        assert all(conv.relu for conv in attacked.modules() if isinstance(conv, FrozenConv))
    with torch.no_grad():
        model.head.bias += 1.0
    for _ in range(2):  # now and then another view: both copies are kept, and filled anew
        with SmoothBackward()(model), fast(model, x) as attacked:
            assert id(attacked) in copies
            assert torch.allclose(attacked(x), model(x), atol=1e-4 if precision == "fp32" else 0.05)
        with fast(model, x) as attacked:
            assert attacked is plain


def test_views_go_together_and_come_apart():
    model = small_cnn(shape=(1, 8, 8), width=2).train()
    both = ComposedMode((eval_mode, SmoothBackward(3.0)))
    with both(model):
        assert not model.training and type(model.body[1]) is not nn.ReLU
    assert model.training and type(model.body[1]) is nn.ReLU


@pytest.mark.parametrize(("attacker", "update"), [(True, False), (False, True), (True, True)])
def test_a_method_trains_with_smooth_gradients_in_either_place(attacker, update):
    """A step with the gradients as they are, and with each of the two smoothed: the weights end elsewhere."""

    def step(attacker, update):
        torch.manual_seed(0)
        model = small_cnn(3, shape=(1, 4, 4), width=2)
        inner = ComposedMode((eval_mode, SmoothBackward())) if attacker else eval_mode
        method = Method(PGD(Linf(0.2), 2, 0.1), CrossEntropy(), inner, SmoothBackward() if update else unchanged)
        optimizer = SGD().build(model)
        data = toy_data()
        state = State.start(method, model, optimizer, data)
        optimizer.param_groups[0]["lr"] = 0.1
        batch = Batch(data.x / 255, data.y, torch.arange(len(data)))
        train_step(method, state, batch, Progress(0, 1, 1), backend=OriginalModel())
        assert type(model.body[1]) is nn.ReLU
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert not torch.equal(step(attacker, update), step(False, False))
    assert torch.equal(step(attacker, update), step(attacker, update))


def _new():
    backends = torch.backends
    places = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
    return [place.fp32_precision for place in places]


def _old():
    found = []
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:
            found.append("mixed")
    return found


SETTINGS = {
    "none": lambda: None,
    "set_float32_matmul_precision": lambda: torch.set_float32_matmul_precision("high"),
    "cudnn.allow_tf32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "cuda.matmul": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "cudnn.conv": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    "mkldnn.conv": lambda: setattr(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
}


def check_full_precision(setting):
    SETTINGS[setting]()
    before = _new(), _old()
    for _ in range(2):
        with full_precision():
            assert _new() == ["ieee"] * 4, _new()
            assert _old() == ["highest", False], _old()
    assert _new() == before[0], (before, _new())
    assert _old() == before[1], (before, _old())


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_full_precision_can_be_read_by_both_interfaces_whatever_the_user_has_set(setting):
    """In a process of its own, since torch has no way back from mixed settings."""
    assert ended(started(check_full_precision, setting)) == 0
