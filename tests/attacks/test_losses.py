import pytest
import torch
from conftest import toy_net

from sparring import CE, DLR, Margin, UserError, make_rng
from sparring.attacks import EOT, KLDivergence, SumLoss, TargetedCE, TargetedDLR
from sparring.attacks.gradients import value_and_grad, values_and_grads
from sparring.core.types import LossOutput

LOGITS = torch.tensor([[3.0, 1.0, 0.5, -1.0], [0.0, 2.0, 1.0, 5.0], [1.0, 1.5, 2.0, 2.5]])
Y = torch.tensor([0, 1, 3])


def test_the_margin_is_how_far_another_class_is_above():
    assert Margin(lambda x: LOGITS, Y)(LOGITS).value.tolist() == [-2.0, 3.0, -0.5]
    assert Margin(lambda x: LOGITS, Y, torch.tensor([3, 2, 0]))(LOGITS).value.tolist() == [-4.0, -1.0, -1.5]
    assert Margin(lambda x: LOGITS, Y).differences(LOGITS).value[0].tolist() == [-2.0, -2.5, -4.0]
    assert Margin(lambda x: LOGITS, Y)(LOGITS).fooled.tolist() == [False, True, False]


def test_dlr_is_its_formula():
    """-(z_y - max other) / (z_(1) - z_(3)), and towards a class with (z_(3) + z_(4)) / 2."""
    assert DLR(lambda x: LOGITS, Y)(LOGITS).value.tolist() == pytest.approx([-2 / 2.5, 3 / 4, -0.5 / 1.0])
    found = TargetedDLR(lambda x: LOGITS, Y, torch.tensor([3, 2, 0]))(LOGITS).value
    assert found.tolist() == pytest.approx([-4 / (3 - (0.5 - 1) / 2), -1 / (5 - (1 + 0) / 2), -1.5 / (2.5 - 1.25)])


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_no_scale_of_the_logits_changes_dlr(scale):
    same = DLR(lambda x: LOGITS, Y)(LOGITS).value
    assert torch.allclose(DLR(lambda x: scale * LOGITS, Y)(LOGITS).value, same)


@pytest.mark.parametrize(
    ("loss", "classes", "message"),
    [
        (lambda f: DLR(f, Y), 2, "DLR loss needs 3 classes, not 2: use Margin"),
        (lambda f: TargetedDLR(f, Y, Y), 3, "targeted DLR loss needs 4 classes, not 3: use Margin"),
    ],
)
def test_dlr_says_with_how_few_classes_it_is_not_defined(loss, classes, message):
    with pytest.raises(UserError, match=message):
        loss(lambda x: LOGITS[:, :classes])(LOGITS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_have_fooled(bad):
    out = LOGITS.clone()
    out[0, 1] = bad
    for loss in (CE, Margin, DLR):
        assert loss(lambda x: out, Y)(out).fooled.tolist() == [True, True, False]
    assert not TargetedCE(lambda x: out, torch.tensor([1, 3, 0]))(out).fooled[0]


LOSSES = [
    lambda f: CE(f, Y),
    lambda f: TargetedCE(f, Y),
    lambda f: Margin(f, Y),
    lambda f: Margin(f, Y, (Y + 1) % 4),
    lambda f: DLR(f, Y),
    lambda f: TargetedDLR(f, Y, (Y + 1) % 4),
    lambda f: KLDivergence(f, LOGITS.softmax(1)),
    lambda f: SumLoss((CE(f, Y), KLDivergence(f, LOGITS.softmax(1)))),
    lambda f: EOT(CE(f, Y), 2),
]


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), torch.tensor([True, False, True])], ids=["numbers", "flags"])
def test_a_loss_for_some_of_the_examples_is_the_same_loss(make, rows):
    model, x = toy_net(classes=4).eval(), torch.rand(3, 1, 4, 4, generator=make_rng(0))
    loss = make(model)
    assert torch.allclose(loss[rows](x[rows]).value, loss(x).value[rows], atol=1e-6)


class Noisy(torch.nn.Module):
    """A linear model whose weights are shaken anew in each pass."""

    def __init__(self):
        super().__init__()
        self.rng, self.passes = make_rng(0), 0

    def forward(self, x):
        self.passes += 1
        w = 1 + torch.randn(16, generator=self.rng)
        score = x.flatten(1) @ w
        return torch.stack([score, -score], 1)


def test_an_expectation_is_differentiated_draw_by_draw():
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.long)
    model, singles = Noisy(), Noisy()
    found = value_and_grad(EOT(Margin(model, y), 5), x)
    each = [value_and_grad(Margin(singles, y), x) for _ in range(5)]
    assert model.passes == 5
    assert torch.allclose(found.grad, torch.stack([s.grad for s in each]).mean(0))
    assert torch.allclose(found.value, torch.stack([s.value for s in each]).mean(0))


def test_fooled_in_expectation_is_who_is_fooled_in_more_than_half_of_the_draws():
    answers = iter([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]] * 2)

    def moody(x):
        return torch.tensor([next(answers)])

    loss = EOT(CE(moody, torch.tensor([0])), 3)
    assert loss(torch.zeros(1, 1)).fooled.tolist() == [True]
    with pytest.raises(UserError, match="draws = 0 is no whole number from 1 on"):
        EOT(loss, 0)


def test_the_slopes_of_the_margin_are_those_of_each_class():
    model, x = toy_net(classes=4).eval(), torch.rand(3, 1, 4, 4, generator=make_rng(0))
    values, grads = values_and_grads(Margin(model, Y), x)
    assert values.shape == (3, 3)
    for k, target in enumerate((torch.tensor([1, 0, 0]), torch.tensor([2, 2, 1]), torch.tensor([3, 3, 2]))):
        one = value_and_grad(Margin(model, Y, target), x)
        assert torch.allclose(values[:, k], one.value, atol=1e-6)
        assert torch.allclose(grads[:, k], one.grad, atol=1e-6)


def test_a_model_that_detaches_the_image_is_said_to():
    with pytest.raises(UserError, match="no gradient reaches the image: the model detaches it"):
        value_and_grad(CE(lambda x: toy_net().eval()(x.detach()).detach(), Y % 3), torch.rand(3, 1, 4, 4))


def test_a_sum_takes_who_is_fooled_from_the_first_part_that_knows():
    class Unknowing:
        def __call__(self, x):
            return LossOutput(x.flatten(1).sum(1))

    model, x = toy_net(classes=4).eval(), torch.rand(3, 1, 4, 4, generator=make_rng(0))
    fooled = model(x).argmax(1) != Y
    both = SumLoss((Unknowing(), CE(model, Y)))(x)
    assert torch.equal(both.fooled, fooled)
    assert torch.allclose(both.value, x.flatten(1).sum(1) + CE(model, Y)(x).value)
    assert SumLoss((Unknowing(), Unknowing()))(x).fooled is None
