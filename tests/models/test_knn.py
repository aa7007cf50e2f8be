"""Nearest neighbours as a classifier, against brute force that counts one by one."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparring.models.knn as room
from sparring import APGD, PGD, AutoAttack, Linf, Restarts, UserError, WhiteBox, audit, evaluate, perturb
from sparring.acceleration import AcceleratedCopy, OriginalModel
from sparring.attacks import Margin
from sparring.core.rng import make_rng
from sparring.core.types import Classifier
from sparring.evaluation import AuditBudget, FeatureAttack, KNNAttackSuite, KNNVoteAttack, PGDkNN, ProbeTransfer
from sparring.evaluation.neighbours import _probe
from sparring.models import KNN, amdim, contrastive_encoder, encode_bank, knn_head, linear_probe
from sparring.models.guided import GuideLoss
from sparring.testing import check_model

BALL = Linf(0.1)


def bank(count=60, features=5, classes=3, seed=0, **options):
    head = KNN(classes, **{"k": 7, **options})
    z = torch.randn(count, features, generator=make_rng(seed))
    y = torch.arange(count) % classes
    z[:, 0] += 2 * y
    head.fit(z, y)
    return head, z, y


def brute(head, z, y, queries):
    """Votes and winners, one query and one example after the other; ties go by the place in the order of classes."""
    order = sorted(range(len(y)), key=lambda i: (int(y[i]), i))
    rows, queries = F.normalize(z, dim=1)[order], F.normalize(queries, dim=1)
    labels, soft = y[order], []
    winners, counts = [], []
    for q in queries:
        similar = (rows @ q).tolist()
        nearest = sorted(range(len(rows)), key=lambda i: (-similar[i], i))[: head.k]
        votes = np.zeros(head.num_classes)
        for i in nearest:
            weight = np.exp((similar[i] - similar[nearest[0]]) / head.temperature)
            votes[int(labels[i])] += weight if head.vote == "weighted" else 1
        soft = [
            np.logaddexp.reduce([similar[i] / head.softness for i in range(len(rows)) if labels[i] == c])
            for c in range(head.num_classes)
        ]
        most = [c for c in range(head.num_classes) if np.isclose(votes[c], votes.max())]
        winners.append(max(most, key=lambda c: round(soft[c], 3)))
        counts.append(votes)
    return np.array(winners), np.array(counts)


@pytest.mark.parametrize("vote", ["uniform", "weighted"])
@pytest.mark.parametrize("block", [16_384, 16])
def test_blocked_neighbours_are_those_of_brute_force(vote, block, monkeypatch):
    monkeypatch.setattr(room, "BLOCK", block)
    head, z, y = bank(vote=vote)
    queries = torch.randn(40, 5, generator=make_rng(1))
    winners, votes = brute(head, z, y, queries)
    assert np.allclose(head.votes(queries), votes, atol=1e-4)
    assert np.array_equal(head(queries).argmax(1), winners)


@pytest.mark.parametrize("block", [16_384, 8])
def test_examples_that_are_equally_near_go_by_their_place_and_classes_by_soft_votes(block, monkeypatch):
    """Rows that exist many times over, of unlike labels: what is kept of them must not hang on the order of a sort."""
    monkeypatch.setattr(room, "BLOCK", block)
    some = torch.eye(4)[[0, 1, 1, 0, 1, 1, 2, 1, 0, 1, 1, 1]].repeat(3, 1)
    y = torch.tensor([0, 1, 0, 2, 1, 2, 0, 1, 1, 2, 0, 1] * 3)
    for k in (1, 3, 5, 8):
        head = KNN(3, k)
        head.fit(some, y)
        queries = torch.cat([torch.eye(4)[:3], torch.ones(1, 4)])
        winners, votes = brute(head, some, y, queries)
        assert np.array_equal(head.votes(queries), votes)
        assert np.array_equal(head(queries).argmax(1), winners)
        where = head.nearest(queries, k)[1]
        similar = head.rows @ F.normalize(queries, dim=1).T
        for column, found in enumerate(where):
            wanted = sorted(range(len(some)), key=lambda i, column=column: (-float(similar[i, column]), i))[:k]
            assert found.tolist() == wanted


def test_negative_and_zero_similarities_keep_their_order():
    head = KNN(2, 3)
    head.fit(
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [-1.0, -1.0]]), torch.tensor([0, 1, 0, 1, 0])
    )
    similar, where = head.nearest(torch.tensor([[1.0, 0.0]]), 5)
    assert torch.allclose(similar, torch.tensor([[1.0, 0.0, 0.0, -(0.5**0.5), -1.0]]))
    assert where.tolist() == [[0, 3, 4, 2, 1]], "in the bank, classes follow each other"


@pytest.mark.slow
@pytest.mark.parametrize("block", [16_384, 8])
def test_soft_votes_have_the_gradient_of_finite_differences(block, monkeypatch):
    monkeypatch.setattr(room, "BLOCK", block)
    head = bank()[0].double()
    z = torch.randn(3, 5, generator=make_rng(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q: head.soft(q, 0.3), (z,))
    assert torch.autograd.gradgradcheck(lambda q: head.soft(q, 0.3), (z,)), "curvature can be measured too"


def test_blocks_change_no_logit_and_keep_nothing_of_the_size_of_the_bank(monkeypatch):
    head = bank(400)[0]
    z = torch.randn(6, 5, generator=make_rng(2), requires_grad=True)
    whole = head(z)
    (wanted,) = torch.autograd.grad(whole[:, 0].sum(), z)
    monkeypatch.setattr(room, "BLOCK", 32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        parts = head(z)
    (found,) = torch.autograd.grad(parts[:, 0].sum(), z)
    assert torch.allclose(parts, whole, atol=1e-5)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert max(kept) < 400 * 5, "neither images x bank nor a copy of the bank"


def test_votes_decide_and_soft_votes_lead_where_they_agree():
    """Two classes: two near examples of one against five of the other a little further away."""
    near = torch.tensor([[1.0, 0.02], [1.0, 0.01]])
    far = torch.tensor([[1.0, 0.5]]).repeat(5, 1)
    head = KNN(2, k=7, softness=0.02)
    head.fit(torch.cat([near, far]), torch.tensor([0, 0, 1, 1, 1, 1, 1]))
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    soft, out = head.soft(x), head(x)
    assert int(soft.argmax()) == 0
    assert int(out.argmax()) == 1, "five votes against two"
    assert float((out[0, 1] - out[0, 0]).detach()) == pytest.approx(1e-3, abs=1e-4)
    (a,) = torch.autograd.grad(soft[0, 1], x)
    (b,) = torch.autograd.grad(head(x)[0, 1], x)
    assert torch.equal(a, b), "what lifts a logit has no gradient"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h, z, y: KNN(3, k=61).fit(z, y), "smaller k"),
        (lambda h, z, y: h.fit(z, y.clamp_max(1)), "no example of class 2"),
        (lambda h, z, y: h.fit(z, y + 1), "another data set"),
        (lambda h, z, y: h.fit(z / 0, y), "diverged"),
        (lambda h, z, y: KNN(3)(z), "bank of the nearest neighbours is empty"),
        (lambda h, z, y: KNN(3, k=0), "at least 1"),
        (lambda h, z, y: KNN(3, softness=0.0), "above 0"),
        (lambda h, z, y: KNN(3, vote="most"), "not one of uniform, weighted"),
    ],
)
def test_a_bank_that_cannot_be_is_refused_with_the_reason(change, words):
    head, z, y = bank()
    with pytest.raises(UserError, match=words):
        change(head, z, y)


# -- as a model


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 6))
    model = Classifier(body, KNN(10, k=5)).eval()
    data = toy_digits()
    encode_bank(model, data[:200])
    return model, data


def toy_digits():
    from sparring.data import Digits

    return Digits().load()[0][:260]


def test_the_model_is_a_classifier_like_any_other(reader):
    model, _ = reader
    check_model(model, (1, 8, 8), 10)


def test_a_copy_that_attacks_search_on_shares_the_bank_and_gives_its_logits(reader):
    model, data = reader
    x = data[200:].x.float() / 255
    for precision in ("fp32", "bf16"):
        with AcceleratedCopy(precision)(model, x[:8]) as attacked:
            head = knn_head(attacked)
            assert head is not None and head.rows is model.head.rows
            assert (attacked(x).argmax(1) == model(x).argmax(1)).float().mean() > 0.9
        encode_bank(model, data[:200])  # in place: the copy sees it
        assert head.rows is model.head.rows


def test_saved_and_loaded_weights_bring_their_bank(reader):
    model, data = reader
    x = data[200:].x.float() / 255
    fresh = Classifier(copy.deepcopy(model.body), KNN(10, k=5)).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    assert fresh.head.bounds == model.head.bounds


def test_a_bank_that_is_filled_again_elsewhere_has_its_own_classes():
    head, z, _y = bank()
    assert head.bounds == [0, 20, 40, 60]
    other = copy.deepcopy(head).double().float()
    other.fit(z, torch.cat([torch.zeros(50, dtype=torch.long), torch.ones(5, dtype=torch.long), torch.full((5,), 2)]))
    assert other.bounds == [0, 50, 55, 60]


def test_a_model_in_double_precision_is_evaluated_and_attacked(reader):
    model, data = reader
    wide = copy.deepcopy(model).double()
    few = data[200:220]
    found = evaluate(wide, few, {"guides": PGDkNN(PGD(BALL, 2), 10), "votes": KNNVoteAttack(PGD(BALL, 2))})
    x = few.x.double() / 255
    assert np.array_equal(found.robust["clean"], (model(x.float()).argmax(1) == few.y).numpy())


def test_a_bank_that_is_exchanged_is_searched_on_anew(reader):
    model = copy.deepcopy(reader[0])
    x, fast = reader[1][200:].x.float() / 255, AcceleratedCopy("fp32")
    with fast(model, x[:8]) as attacked:
        assert torch.allclose(attacked(x), model(x), atol=1e-3)
    model.head.rows = F.normalize(torch.randn(model.head.rows.shape, generator=make_rng(5)), dim=1)
    with fast(model, x[:8]) as attacked:
        assert torch.allclose(attacked(x), model(x), atol=1e-3)


def test_an_average_of_weights_has_a_bank_of_its_own(reader):
    model, _ = reader
    assert copy.deepcopy(model).head.rows is not model.head.rows


@pytest.mark.slow
def test_autoattack_and_the_audit_apply_unchanged(reader):
    model, data = reader
    few = data[200:230]
    found = evaluate(model, few, {"aa": AutoAttack(BALL)}, backend=OriginalModel())
    right = found.table()["clean"].correct
    assert right > 15 and found.table()["aa"].correct < right
    assert "apgd-ce" in " ".join(map(str, found.broken_by("aa")))
    assert not [
        f
        for f in audit(model, few, BALL, budget=AuditBudget(5, 20, 5, 5))
        if f.name == "output" and f.verdict == "fail"
    ]
    z = perturb(model, few.x.float() / 255, few.y, PGD(BALL, 3))
    assert float((z - few.x.float() / 255).abs().max()) <= 0.1 + 1e-6


ATTACKS = [
    FeatureAttack(PGD(BALL, 8, 0.03)),
    FeatureAttack(PGD(BALL, 8, 0.03), "cosine"),
    FeatureAttack(PGD(BALL, 8, 0.03), "contrast"),
    KNNVoteAttack(Restarts(PGD(BALL, 8, 0.03), 2), 0.05),
    PGDkNN(PGD(BALL, 8, 0.03), 20),
    ProbeTransfer(PGD(BALL, 8, 0.03)),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: f"{type(a).__name__}-{getattr(a, 'maximizes', '')}")
def test_every_attack_on_a_representation_breaks_some_and_stays_in_the_ball(reader, attack):
    model, data = reader
    few = data[200:]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = evaluate(model, few, {"a": attack})
    broken = found.table()["clean"].correct - found.table()["a"].correct
    assert broken >= 5
    assert np.nanmax(found.norm["a"]) <= 0.1 + 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert found.defense_success_rate("a").examples == found.table()["clean"].correct


def test_the_worst_case_leaves_fewer_standing_than_any_of_its_attacks(reader):
    model, data = reader
    worst = KNNAttackSuite(BALL, steps=5, restarts=1, softness=(0.05,))
    assert list(worst.stages(10)) == ["apgd-ce", "soft-0.05", "guides", "probe", "distance", "cosine", "apgd-t"]
    assert worst.stages(3)["apgd-t"].loss is Margin, "no DLR for three classes"
    found = evaluate(model, data[200:], {"worst": worst, "apgd": WhiteBox(APGD(BALL, 5))})
    assert found.table()["worst"].correct <= found.table()["apgd"].correct


def test_attacks_on_neighbours_refuse_a_model_without_them():
    from sparring.models import small_cnn

    model, data = small_cnn(width=2, shape=(1, 8, 8)), toy_digits()
    for attack in (KNNVoteAttack(PGD(BALL)), PGDkNN(PGD(BALL)), ProbeTransfer(PGD(BALL))):
        with pytest.raises(UserError, match="nearest neighbours"):
            attack(model, data.x[:2].float() / 255, data.y[:2], make_rng(0))


def test_the_probe_of_a_bank_is_fitted_once_until_the_bank_or_the_penalty_changes():
    head, _z, _y = bank(k=3)
    first = _probe(head, 0.01)
    assert _probe(head, 0.01) is first
    assert _probe(head, 0.02) is not first
    again = _probe(head, 0.01)
    head.rows.mul_(1.0)
    assert _probe(head, 0.01) is not again


def test_guides_are_those_of_the_loop():
    head, _z, _y = bank(k=7)
    queries, labels = torch.randn(6, 5, generator=make_rng(3)), torch.tensor([0, 1, 2, 0, 1, 2])
    found = GuideLoss(lambda q: q, head, labels, guides=8)(queries).value
    rows, classes = head.rows, head.labels
    for q, label, value in zip(F.normalize(queries, dim=1), labels.tolist(), found.tolist(), strict=True):
        apart = ((rows - q) ** 2).sum(1)
        nearest = {c: apart[classes == c].sort().values[:4] for c in range(3)}
        other = min((c for c in range(3) if c != label), key=lambda c: float(nearest[c].mean()))
        limit = apart.sort().values[6]
        left = (limit - nearest[label]).clamp_min(0).sum() + (nearest[other] - limit).clamp_min(0).sum()
        assert value == pytest.approx(-float(left), abs=1e-4)
    with pytest.raises(UserError, match="two classes"):
        GuideLoss(lambda q: q, head, labels, guides=1)


# -- probes and encoders


def test_a_linear_probe_is_the_logistic_regression_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    _, z, y = bank(90)
    z = 3 * z + 5
    layer = linear_probe(z, y, 3, penalty=0.01)
    scaled = (z - z.mean(0)) / z.std(0)
    known = LogisticRegression(C=1 / (0.01 * len(z)), tol=1e-8, max_iter=1000).fit(scaled.numpy(), y.numpy())
    assert np.allclose(layer(z).softmax(1).detach(), known.predict_proba(scaled.numpy()), atol=1e-3)
    with pytest.raises(UserError, match="diverged"):
        linear_probe(z / 0, y, 3)


@pytest.mark.parametrize(
    ("shape", "coarse", "fine"), [((3, 32, 32), 5, 7), ((1, 28, 28), 5, 7), ((1, 8, 8), 3, 5)], ids=str
)
def test_the_amdim_encoder_has_the_shapes_of_its_paper(shape, coarse, fine):
    model = amdim(10, shape, width=4, dim=8, depth=2)
    body = model.eval().body
    x = torch.rand(2, *shape)
    whole, near, far = body(x, parts=True)
    assert (whole.shape, near.shape, far.shape) == ((2, 8), (2, 8, coarse, coarse), (2, 8, fine, fine))
    assert torch.equal(body(x), whole)


def test_a_place_of_a_map_sees_a_part_of_the_image_only():
    body = amdim(10, (3, 32, 32), width=4, dim=8, depth=1).eval().body
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    fine = body(x, parts=True)[2]
    (grad,) = torch.autograd.grad(fine[0, :, 0, 0].sum(), x)
    rows = grad.abs().sum((0, 1, 3)).nonzero()[:, 0]
    assert rows.max() < 12, "4 pixels a step, windows without padding"


def test_a_residual_block_begins_as_an_average():
    from sparring.models.encoders import _Residual

    block = _Residual(3, 5, 2, 2).eval()
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(block(x), F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 0, 2)))


def test_images_of_another_size_and_unknown_bodies_are_refused():
    with pytest.raises(UserError, match="64x64, 32x32, 28x28, 8x8"):
        amdim(10, (3, 48, 48))
    with pytest.raises(UserError, match="small_cnn"):
        contrastive_encoder(body="small_cn")


def test_a_projection_is_of_the_features():
    model = contrastive_encoder(10, (1, 28, 28), width=4, projection=6, k=1).eval()
    x = torch.rand(3, 1, 28, 28)
    features, projection = model.body(x, parts=True)
    assert torch.equal(features, model.features(x)) and projection.shape == (3, 6)
    assert torch.equal(projection, model.body.projector(features))


def test_a_model_without_a_bank_has_none_to_encode():
    with pytest.raises(UserError, match="with another head"):
        encode_bank(nn.Flatten(), toy_digits())
