"""A threat of the user's own is enforced like ours."""

from dataclasses import dataclass, field

import pytest
import torch
from conftest import toy_data, toy_net
from torch import Tensor, nn

from sparring import APGD, FGSM, L1, L2, PGD, Linf, UserError, WhiteBox, evaluate, perturb
from sparring.attacks.threats import ScaledThreat
from sparring.core.types import pixels
from sparring.evaluation.adversaries import beyond, bound, threats_of
from sparring.evaluation.audit_checks import replace_eps
from sparring.testing import check_threat
from sparring.training import Free

DATA = toy_data(24)
X, Y = pixels(DATA.x), DATA.y


@dataclass(frozen=True)
class Upper:
    """The upper half of an image may change by eps; it keeps no base class of ours."""

    eps: float = 0.2
    ball: Linf = field(default=Linf(0.2), repr=False)

    def sample(self, x, rng):
        return self.project(self.ball.sample(x, rng), x)

    def project(self, z, x):
        z = self.ball.project(z, x)
        half = x.shape[-2] // 2
        return torch.cat([z[..., :half, :], x[..., half:, :]], -2)

    def ascent(self, grad):
        half = grad.shape[-2] // 2
        return torch.cat([grad[..., :half, :].sign(), torch.zeros_like(grad[..., half:, :])], -2)

    def norm(self, delta):
        return self.ball.norm(delta)


@dataclass(frozen=True)
class Away:
    """An attack that respects nothing: it goes to white."""

    threat: object

    def __call__(self, loss, x, rng):
        return torch.ones_like(x)


@dataclass(frozen=True)
class Held:
    """A set that holds a tensor, whose equality is no bool."""

    mask: Tensor
    eps: float = 0.1

    def sample(self, x, rng):
        return x

    def project(self, z, x):
        return x + self.mask * (z - x).clamp(-self.eps, self.eps)

    def ascent(self, grad):
        return grad.sign()

    def norm(self, delta):
        return delta.flatten(1).abs().amax(1)


def test_the_threat_of_these_tests_keeps_the_contract():
    check_threat(Upper())


@pytest.mark.parametrize("attack", [PGD(Upper()), APGD(Upper()), Away(Upper())], ids=lambda a: type(a).__name__)
def test_an_attack_is_bound_by_a_threat_that_is_not_ours(attack):
    assert threats_of(attack) == [Upper()], "the ball inside is a part of it, and no set of its own"
    assert bound(WhiteBox(attack)) == Upper()


def test_perturb_refuses_points_outside_of_ones_own_threat():
    with pytest.raises(UserError, match=r"24 of 24 points of the attack are outside of Upper"):
        perturb(toy_net(), X, Y, Away(Upper()))
    assert perturb(toy_net(), X, Y, PGD(Upper())).shape == X.shape


def test_an_evaluation_brings_points_back_into_ones_own_threat():
    found = evaluate(toy_net(), DATA, {"away": WhiteBox(Away(Upper()))}, keep_images=True)
    assert not any("nothing bounds" in note for note in found.notes)
    moved = torch.from_numpy(found.adversarial["away"]) - X
    assert not beyond(Upper(), X + moved, X).any()
    assert float(moved.abs().amax()) > 0.1, "some images were broken, or nothing was tested"
    assert float(moved[..., 2:, :].abs().amax()) == 0.0


def test_what_a_projection_moves_is_outside_though_it_is_short_enough():
    z = X.clone()
    z[:, :, 3, 3] = (z[:, :, 3, 3] - 0.1).clamp_min(0)
    assert float(Upper().norm(z - X).max()) <= Upper().eps
    assert beyond(Upper(), z, X).any()


def test_models_tensors_and_classes_are_not_taken_for_threats():
    class Odd(nn.Module):
        eps, sample, project, ascent, norm = 0.1, None, None, None, None

    assert threats_of(((Odd(), X, Linf, Upper), {"a": Odd()})) == []


def test_a_set_shrunk_for_one_batch_stands_for_its_whole():
    assert threats_of(PGD(ScaledThreat(L2(0.5), torch.ones(3)))) == [L2(0.5)]


def test_threats_that_hold_tensors_are_one_only_if_they_are_the_same():
    one, other = Held(torch.ones(4, 4)), Held(torch.ones(4, 4))
    assert bound((PGD(one), PGD(one))) is one
    assert bound((PGD(one), PGD(other))) is None


def test_another_eps_keeps_the_share_of_an_l1_threat():
    assert replace_eps(L1(12, share=0.5), 3) == L1(3, share=0.5)


@pytest.mark.parametrize("make", [PGD, FGSM, APGD, Free])
@pytest.mark.parametrize("wrong", ["linf:8/255", 0.1, Linf, None], ids=str)
def test_the_threat_of_an_attack_is_a_threat(make, wrong):
    with pytest.raises(UserError, match=r"is not a threat: give a set such as Linf\('8/255'\)"):
        make(wrong)


def test_evaluate_takes_a_bare_attack_as_white_box():
    bare = evaluate(toy_net(), DATA, {"pgd": PGD(Linf(0.1))})
    told = evaluate(toy_net(), DATA, {"pgd": WhiteBox(PGD(Linf(0.1)))})
    assert (bare.robust["pgd"] == told.robust["pgd"]).all()
    assert bare.about == told.about


def test_a_function_of_four_arguments_is_an_adversary_as_it_is():
    found = evaluate(toy_net(), DATA, {"none": lambda model, x, y, rng: x})
    assert (found.robust["none"] == found.robust["clean"]).all()


@pytest.mark.parametrize(("wrong", "why"), [(PGD, "PGD is a class"), ("pgd", "'pgd' is no attack")])
def test_evaluate_says_what_is_no_attack_at_all(wrong, why):
    with pytest.raises(UserError, match=why):
        evaluate(toy_net(), DATA, {"pgd": wrong})
