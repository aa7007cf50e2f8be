"""The audit: masked models fail it, each for its own reason, and an honestly trained one passes."""

import copy
import re
from functools import cache

import pytest
import torch
from torch import nn

from sparring import PGD, CrossEntropy, GaussianStart, Linf, Method, TensorData, UserError, audit
from sparring.core.rng import make_rng
from sparring.core.types import Batch, Progress, pixels
from sparring.data import Digits
from sparring.evaluation import AuditBudget
from sparring.models import small_cnn
from sparring.records.results import passed
from sparring.training import State, train_step

pytestmark = pytest.mark.slow

THREAT = Linf(0.1)
FEW = AuditBudget(steps=15, queries=200, samples=10, surrogate_steps=60)


@pytest.fixture(scope="module")
def images():
    return Digits().load()[1][:60]


@pytest.fixture(scope="module")
def honest():
    """A small net trained against PGD: ten seconds."""
    train = Digits().load()[0]
    torch.manual_seed(0)
    model = small_cnn(10, (1, 8, 8), width=8)
    method = Method(PGD(THREAT, steps=3, step_size=0.05), CrossEntropy())
    state = State.start(method, model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True), None, 0)
    order = torch.randperm(len(train), generator=make_rng(0))
    for epoch in range(12):
        for rows in order.split(64):
            batch = Batch(pixels(train.x[rows]), train.y[rows], rows)
            train_step(method, state, batch, Progress(state.step, 23, 12))
            state.step += 1
        del epoch
    return model.eval()


def findings(model, data, **options):
    return {finding.name: finding for finding in audit(model, data, THREAT, budget=FEW, **options)}


@pytest.fixture(scope="module")
def under(honest, images):
    """What the audit finds of the honest model under a mask: each is audited once."""
    return cache(lambda mask: findings(mask(honest), images))


class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = copy.deepcopy(model)


class Quantised(Wrapped):
    def forward(self, x):
        return self.inner((x * 16).round() / 16)


class Saturated(Wrapped):
    def forward(self, x):
        return 1000 * self.inner(x)


class Shaken(Wrapped):
    def forward(self, x):
        return self.inner(x + 0.1 * torch.randn_like(x))


class Detached(Wrapped):
    def forward(self, x):
        return self.inner(x.detach()).detach()


class Optimising(Wrapped):
    """Moves the image to where it is surer, before it answers."""

    def forward(self, x):
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.inner(z).amax(1).sum(), z)
        return self.inner(x + 0.01 * grad.sign())


def test_an_honestly_trained_model_passes_and_is_left_as_it_was(honest, images):
    before = {name: t.clone() for name, t in honest.state_dict().items()}
    state = torch.random.get_rng_state()
    found = findings(honest, images)
    assert all(torch.equal(t, before[name]) for name, t in honest.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state), "and the global randomness, too"
    assert all(p.requires_grad for p in honest.parameters())
    assert passed(found.values()), [f"{f.name}: {f.meaning}" for f in found.values() if f.verdict == "fail"]
    assert list(found) == [
        "train mode",
        "output",
        "optimisation inside",
        "randomness",
        "gradient flow",
        "saturated logits",
        "shattered gradients",
        "large eps",
        "black box",
        "random points",
        "climbing",
        "more steps",
        "transfer",
    ]
    assert all(finding.figure is not None and finding.threshold for finding in found.values())
    assert found["shattered gradients"].figure > 0.3


@pytest.mark.parametrize(
    ("mask", "check", "reason"),
    [
        (Quantised, "gradient flow", r"zero gradient of the margin for 100\.0 %"),
        (Saturated, "gradient flow", r"zero gradient of cross-entropy for \d"),
        (Saturated, "saturated logits", "probability exactly 1"),
        (Shaken, "randomness", "100.0 % of examples get other logits"),
        (Detached, "gradient flow", "no gradient reaches the image"),
        (Optimising, "optimisation inside", "autograd runs 1 times in one forward"),
    ],
)
def test_a_masked_model_fails_for_the_right_reason(under, mask, check, reason):
    found = under(mask)
    assert found[check].verdict == "fail"
    assert re.search(reason, found[check].meaning), found[check].meaning
    assert found[check].advice
    assert not passed(found.values())


def test_masked_gradients_lose_to_an_attack_without_any(under):
    found = under(Quantised)
    assert found["black box"].verdict == "fail"
    assert "are broken by Square" in found["black box"].meaning


def test_checks_that_need_a_gradient_are_skipped_with_the_reason_where_there_is_none(under):
    found = under(Detached)
    skipped = [f for f in found.values() if f.verdict == "skip"]
    assert {f.name for f in skipped} == {"shattered gradients", "large eps", "climbing", "more steps"}
    assert all("no gradient reaches the image" in f.meaning for f in skipped)


def test_gradients_that_point_elsewhere_are_shattered(honest, images):
    class Rough(Wrapped):
        """A fine ripple on the input, whose slope hides that of the model."""

        def forward(self, x):
            return self.inner((x + 1e-4 * torch.sin(5e5 * x) - 0.25) * 2)

    grey = TensorData(0.25 + pixels(images.x) / 2, images.y, images.classes)  # no pixel is clipped
    assert findings(Rough(honest), grey)["shattered gradients"].verdict == "fail"


def test_an_attack_that_fails_in_a_ball_that_holds_everything_is_told(under):
    assert under(Quantised)["large eps"].verdict == "fail"


def test_probabilities_end_the_audit(honest, images):
    class Softmax(Wrapped):
        def forward(self, x):
            return self.inner(x).softmax(1)

    found = findings(Softmax(honest), images)
    assert found["output"].verdict == "fail"
    assert "probabilities" in found["output"].meaning
    assert "randomness" not in found


def test_a_model_that_reads_other_pixels_is_warned_of(honest, images):
    class Bytes(Wrapped):
        def forward(self, x):
            return self.inner(x / 255)

    assert findings(Bytes(honest), images)["output"].verdict == "warn"


def test_a_model_in_training_mode_is_warned_of_and_audited_in_eval_mode(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5)).train()
    found = findings(model, images)
    assert found["train mode"].verdict == "warn"
    assert "2 (Dropout)" in found["train mode"].meaning
    assert found["randomness"].verdict == "pass"
    assert model.training


def test_a_surrogate_that_is_given_is_the_one_that_is_used(honest, images):
    """Attacks on the model under its own name transfer perfectly, so they find what the mask hides."""
    found = findings(Quantised(honest), images, surrogate=honest)
    assert "the surrogate given" in found["transfer"].meaning
    assert found["transfer"].verdict == "fail"


def test_what_cannot_be_audited_is_refused(honest, images):
    with pytest.raises(UserError, match="defined for Linf, L2 and L1"):
        audit(honest, images, GaussianStart(0.1))
    misclassified = TensorData(images.x, (honest(pixels(images.x)).argmax(1) + 1) % 10, images.classes)
    with pytest.raises(UserError, match="gets none of these images right"):
        audit(honest, misclassified, THREAT, budget=FEW)


def test_gradients_that_are_nan_are_no_gradients_and_break_nothing(honest, images):
    class Rooted(Wrapped):
        def forward(self, x):
            return self.inner(x) + (x * 0).sqrt().flatten(1).sum(1, keepdim=True)

    found = findings(Rooted(honest), images)
    assert found["gradient flow"].verdict == "fail"
    assert "NaN or infinite for 100.0 %" in found["gradient flow"].meaning
    assert found["shattered gradients"].verdict == "fail"
    assert found["shattered gradients"].figure is None, "JSON knows no NaN"
    assert found["large eps"].verdict == "fail", "a point that is NaN breaks nothing"
    assert found["black box"].verdict == "fail"


def test_a_few_images_need_not_have_the_highest_class(honest, images):
    few = images[images.y < 5]
    found = findings(honest, (few.x, few.y))
    assert found["output"].verdict == "pass" and found["output"].threshold.startswith("at least twice chance, 20 %")
    assert found.keys() == findings(honest, images).keys()


def test_a_model_in_float64_is_audited(honest, images):
    wide = copy.deepcopy(honest).double()
    found, single = findings(wide, images[:30]), findings(honest, images[:30])
    assert {name: finding.verdict for name, finding in found.items()} == {n: f.verdict for n, f in single.items()}


def test_labels_without_a_class_of_the_model_are_said_to_be(images):
    torch.manual_seed(0)
    found = findings(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), images)
    assert "gives 3 classes, but the data have 10" in found["output"].meaning
