"""Contrasts against slow loops, and the bound on mutual information where it is known."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparring import Benign, LossOutput, UserError
from sparring.analysis import effective_rank, mutual_information
from sparring.core.rng import make_rng
from sparring.objectives.contrastive_losses import (
    FeatureContrast,
    FeatureDistance,
    LazyLoss,
    ScaleContrast,
    Scales,
    WithPredictions,
    info_nce,
    information_bound,
    nt_xent,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=make_rng(seed), dtype=torch.float64)


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def loop(a, b, temperature):
    """-log softmax of each pair, from `a` to `b`, number by number."""
    found = []
    for i in range(len(a)):
        scores = [math.exp(cosine(a[i], b[j]) / temperature) for j in range(len(b))]
        found.append(-math.log(scores[i] / sum(scores)))
    return np.array(found)


def test_info_nce_is_the_loop_in_one_direction_and_in_both():
    a, b = normal(5, 7), normal(5, 7, seed=1)
    there, back = loop(a, b, 0.3), loop(b, a, 0.3)
    assert np.allclose(info_nce(a, b, 0.3, both=False), there)
    assert np.allclose(info_nce(a, b, 0.3), (there + back) / 2)


def test_nt_xent_has_the_other_images_of_the_own_side_too():
    a, b = normal(4, 6), normal(4, 6, seed=1)
    z = torch.cat([a, b])
    found = []
    for i in range(8):
        scores = {j: math.exp(cosine(z[i], z[j]) / 0.5) for j in range(8) if j != i}
        found.append(-math.log(scores[(i + 4) % 8] / sum(scores.values())))
    assert np.allclose(nt_xent(a, b, temperature=0.5), (np.array(found[:4]) + np.array(found[4:])) / 2)


def multiscale_loop(a, b, places, clip):
    """From `a` to `b`: global with fine, global with coarse, a place of the coarse map with the coarse map."""
    flat = a[1].flatten(2)
    sources = [a[0], a[0], torch.stack([flat[i, :, places[i]] for i in range(len(flat))])]
    total = np.zeros(len(a[0]))
    for u, v in zip(sources, (b[2], b[1], b[1]), strict=True):
        v = v.flatten(2)
        count, dims, where = v.shape

        def score(i, j, spot, u=u, v=v, dims=dims):
            return clip * math.tanh(float(u[i] @ v[j, :, spot]) / (clip * math.sqrt(dims)))

        for i in range(count):
            others = sum(math.exp(score(i, j, s)) for j in range(count) if j != i for s in range(where))
            for s in range(where):
                own = math.exp(score(i, i, s))
                total[i] -= math.log(own / (own + others)) / where
    return total


def parts(count=3, dims=4, seed=0):
    return (
        normal(count, dims, seed=seed),
        normal(count, dims, 2, 2, seed=seed + 1),
        normal(count, dims, 3, 3, seed=seed + 2),
    )


def test_the_multiscale_contrast_is_the_double_loop():
    a, b, places = parts(), parts(seed=9), torch.tensor([0, 3, 2])
    a = tuple(8 * part for part in a)  # so that the clip at 20 matters
    there, back = multiscale_loop(a, b, places, 20.0), multiscale_loop(b, a, places, 20.0)
    assert np.allclose(Scales(places).pairs(a, b, both=False), there)
    assert np.allclose(Scales(places).pairs(a, b), (there + back) / 2)


def test_an_image_by_itself_is_contrasted_as_in_a_batch_where_all_others_are_as_known():
    known, places = parts(), torch.tensor([1, 0, 2])
    moved = parts(seed=20)
    scales = Scales(places)
    for i in range(3):
        alone = tuple(part[i : i + 1] for part in moved)
        batch = tuple(torch.cat([old[:i], new[i : i + 1], old[i + 1 :]]) for old, new in zip(known, moved, strict=True))
        there = multiscale_loop(batch, known, places, 20.0)[i]
        back = multiscale_loop(known, batch, places, 20.0)[i]
        found = float(scales.one(alone, known, torch.tensor([i])))
        assert found == pytest.approx((there + back) / 2)


def test_the_regulariser_is_the_mean_squared_raw_score_of_one_look_with_the_other():
    a, b, places = parts(), parts(seed=9), torch.tensor([0, 0, 0])

    def towards(a, b):
        sources = (a[0], a[0], a[1].flatten(2)[:, :, 0])
        raw = [
            torch.einsum("bd,ndl->bnl", u, v.flatten(2)) / 2 for u, v in zip(sources, (b[2], b[1], b[1]), strict=True)
        ]
        return sum(float(r.square().mean()) for r in raw)

    assert float(Scales(places).size(a, b)) == pytest.approx((towards(a, b) + towards(b, a)) / 2)


@pytest.mark.parametrize(
    "call", [lambda a: info_nce(a, a, 0.1), lambda a: nt_xent(a, a, temperature=0.1)], ids=["nce", "ntxent"]
)
def test_a_batch_of_one_is_refused_with_what_to_do(call):
    with pytest.raises(UserError, match="larger batches"):
        call(normal(1, 4))


def test_a_multiscale_contrast_of_one_image_is_refused():
    with pytest.raises(UserError, match="larger batches"):
        Scales(torch.tensor([0])).pairs(parts(1), parts(1))


# -- what attacks raise


def test_a_distance_is_squared_and_a_cosine_from_one():
    target, x = normal(3, 4), normal(3, 4, seed=1)
    distance = FeatureDistance(lambda z: z, target)
    assert torch.allclose(distance(x).value, ((x - target) ** 2).sum(1))
    assert torch.allclose(
        FeatureDistance(lambda z: z, target, cosine=True)(x).value, 1 - F.cosine_similarity(x, target, dim=1)
    )
    rows = torch.tensor([2, 0])
    assert torch.equal(distance[rows](x[rows]).value, distance(x).value[rows])


@pytest.mark.parametrize("kind", ["vector", "scales"])
def test_some_of_the_images_have_the_contrast_that_they_have_among_all(kind):
    if kind == "vector":
        keys, x, own = normal(5, 4), normal(5, 4, seed=1), torch.arange(5)
        loss = FeatureContrast(lambda z: z, keys, own, 0.2)
        assert np.allclose(loss(x).value, loop(x, keys, 0.2))
    else:
        known, moved, own = parts(), parts(seed=20), torch.arange(3)
        loss = ScaleContrast(lambda z: tuple(p[z.long()[:, 0]] for p in moved), known, own, Scales(own))
        x = torch.arange(3.0)[:, None]
    rows = torch.tensor([2, 0])
    assert torch.allclose(loss[rows](x[rows]).value, loss(x).value[rows])


def test_a_loss_is_told_who_is_fooled_by_logits():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    told = WithPredictions(
        FeatureDistance(lambda z: z, torch.zeros(2, 2)), lambda z: logits[: len(z)], torch.tensor([0, 0])
    )
    assert told(torch.ones(2, 2)).fooled.tolist() == [False, True]
    assert told[torch.tensor([1])].y.tolist() == [0]


def test_what_nobody_asks_for_is_never_made():
    made = []

    def make():
        made.append(torch.is_grad_enabled())
        return lambda x: LossOutput(x.sum(1))

    loss = LazyLoss(make)
    Benign()(loss, torch.ones(2, 2), make_rng(0))
    assert made == []
    assert loss(torch.ones(2, 2)).value.tolist() == [2.0, 2.0]
    loss(torch.ones(2, 2))
    assert made == [False], "once, and without gradients"


# -- information


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_the_bound_is_near_the_information_of_a_gaussian_pair_with_the_best_critic(rho):
    """The density ratio of a pair of correlation rho is the best critic; its information is -log(1 - rho²) / 2."""
    known, count = -0.5 * math.log(1 - rho**2), 4096
    a = normal(count)
    b = rho * a + math.sqrt(1 - rho**2) * normal(count, seed=1)
    variance = 1 - rho**2
    scores = -((b - rho * a[:, None]) ** 2) / (2 * variance) + b**2 / 2 - 0.5 * math.log(variance)
    bound = information_bound(scores)
    assert float(bound.mean()) == pytest.approx(known, abs=4 * float(bound.std()) / math.sqrt(count) + 0.01)
    assert float(information_bound(torch.zeros(8, 8)).mean()) == pytest.approx(0.0, abs=1e-6), "a blind critic knows 0"


def test_the_bound_never_exceeds_the_logarithm_of_the_number_of_images():
    z = normal(32, 16)
    found = mutual_information(z, z)
    assert found.ceiling == pytest.approx(math.log(16))
    assert 0.99 * found.ceiling < found.value <= found.ceiling
    other = mutual_information(z, normal(32, 16, seed=1))
    assert other.value < 0.3, "nothing in common, nothing found: the temperature is chosen on other pairs"


def test_two_halves_need_two_pairs_each():
    with pytest.raises(UserError, match="at least 4 pairs"):
        mutual_information(normal(3, 4), normal(3, 4))


def test_the_effective_rank_counts_directions():
    assert effective_rank(torch.cat([torch.eye(4), -torch.eye(4)])) == pytest.approx(4.0)
    assert effective_rank(torch.ones(5, 3)) == 0.0
    assert effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(1.0)
