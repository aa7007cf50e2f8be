"""Text embeddings as a head. With cross-entropy, they are TeCoA."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparring import PGD, Classifier, CrossEntropy, Linf, Method, State, UserError, train_step
from sparring.core.rng import make_rng
from sparring.core.types import Batch, Context, ForwardCache, GivenStart, Progress
from sparring.models import ZeroShotHead

X = (0.1 + 0.8 * torch.rand(12, 1, 8, 8, generator=make_rng(0))).double()
NEAR = X + 0.001 * torch.randn(X.shape, generator=make_rng(2)).double()
Y = torch.arange(12) % 3
TEXTS = torch.randn(3, 5, generator=make_rng(3)).double()
BALL = Linf(0.05)


def model(scale=100.0):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 5)).double()
    return Classifier(encoder, ZeroShotHead(TEXTS, scale))


def test_tecoa_is_cross_entropy_of_scaled_cosine_similarities_to_the_texts():
    student, objective = model(7.0), CrossEntropy()
    texts = TEXTS / TEXTS.norm(dim=1, keepdim=True)

    def loss(z):
        image = student.body(z)
        return F.cross_entropy(7 * image @ texts.T / image.norm(dim=1, keepdim=True), Y)

    z = NEAR
    for _ in range(4):
        z = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(z), z)
        z = (z + 0.02 * grad.sign()).clamp(X - 0.05, X + 0.05).clamp(0, 1)
    ctx = Context(ForwardCache(student), Batch(X, Y, torch.arange(12)), nn.Module(), Progress(0, 1, 1))
    found = PGD(BALL, 4, 0.02, GivenStart(NEAR))(objective.inner(ctx), X, make_rng(0))
    assert torch.allclose(found, z.detach(), rtol=0, atol=1e-10)
    assert torch.allclose(objective.outer(ctx, found)["ce"], loss(found), rtol=0, atol=1e-10)


def test_the_encoder_is_trained_and_the_texts_are_not_though_they_are_saved():
    student = model()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    method = Method(PGD(BALL, 2), CrossEntropy())
    state = State.start(method, student, torch.optim.SGD(student.parameters(), lr=0.1, weight_decay=0.1))
    train_step(method, state, Batch(X, Y, torch.arange(12)), Progress(0, 2, 1))
    moved = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.startswith("body.")} and "head.weight" in before


def test_neither_the_length_of_a_text_nor_that_of_an_image_matters():
    plain, other = ZeroShotHead(TEXTS), ZeroShotHead(TEXTS * torch.tensor([[1.0], [2.0], [3.0]]).double())
    z = torch.randn(4, 5, generator=make_rng(4)).double()
    assert torch.allclose(other(5 * z), plain(z)) and float(plain(TEXTS).diagonal().min()) == pytest.approx(100)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (torch.ones(3), r"text embeddings of shape \(3,\) are no matrix"),
        (torch.tensor([[1.0, 2.0], [0.0, 0.0]]), "the text embedding of class 1 is 0 or not finite"),
        (torch.tensor([[float("nan"), 2.0], [1.0, 0.0]]), "the text embedding of class 0 is 0 or not finite"),
    ],
)
def test_texts_without_a_direction_are_refused(texts, reason):
    with pytest.raises(UserError, match=reason):
        ZeroShotHead(texts)
