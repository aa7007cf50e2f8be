import copy
import math
import signal
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import Linear, count, toy_data, toy_net
from forked import ended, started
from torch import nn

from sparring import (
    APGD,
    FAB,
    L1,
    L2,
    PGD,
    AutoAttack,
    Classifier,
    Linf,
    Margin,
    Restarts,
    Square,
    TensorData,
    UserError,
    WhiteBox,
    autoattack,
    evaluate,
    make_rng,
    perturb,
)
from sparring.acceleration import AcceleratedCopy, OriginalModel
from sparring.attacks import NFGSM, Benign, MultiGrad, RandomEps
from sparring.attacks.losses import TargetedCE, TargetedDLR
from sparring.core.types import pixels
from sparring.evaluation import MinimumNorm, MultiTargeted
from sparring.evaluation.adversaries import threats_of
from sparring.evaluation.audit_checks import output
from sparring.evaluation.cost import passes
from sparring.evaluation.verifier import random_share
from sparring.models import Normalize


@dataclass(frozen=True)
class Quick:
    """AutoAttack in small: every kind of attack, a few steps each."""

    threat: Linf | L2 | L1 = Linf(0.06)  # noqa: RUF009
    draws: int = 1

    def stages(self, num_classes):
        return {
            "apgd-ce": WhiteBox(APGD(self.threat, 5)),
            "apgd-t": MultiTargeted(APGD(self.threat, 5), Margin),
            "fab-t": MultiTargeted(FAB(self.threat, 4), Margin),
            "square": WhiteBox(Square(self.threat, 60), Margin),
        }

    def notes(self, num_classes):
        return ()


@pytest.fixture(scope="module")
def net():
    """A small net that has learned the toy data, so that some examples fall and others stand."""
    model, data = toy_net().train(), toy_data()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixels(data.x)), data.y).backward()
        optimizer.step()
    return model.eval()


# -- the same answer whatever the batch


class InFloat64(nn.Module):
    """Sums in float64, so that rounding, which depends on the size of a batch, cannot lead an attack elsewhere."""

    def __init__(self, net):
        super().__init__()
        self.net = copy.deepcopy(net).double()

    def forward(self, x):
        return self.net(x.double()).float()


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.07, 0.08])
def test_batch_size_order_and_sharding_change_no_verdict(net, eps):
    net, data, quick = InFloat64(net), toy_data(), {"quick": Quick(Linf(eps))}
    whole = evaluate(net, data, quick, batch_size=128)
    robust = whole.robust["quick"]
    assert 5 < robust.sum() < whole.robust["clean"].sum() - 3
    assert len(set(whole.broken_by("quick"))) >= 3, "several attacks have work to do"
    for size in (1, 7):
        again = evaluate(net, data, quick, batch_size=size)
        assert all(np.array_equal(again.robust[name], flags) for name, flags in whole.robust.items())
        assert np.allclose(again.margin["quick"], whole.margin["quick"], atol=1e-6)
    order = torch.randperm(len(data), generator=make_rng(1))
    shuffled = evaluate(net, data[order], quick, batch_size=7, index=order)
    assert np.array_equal(shuffled.robust["quick"], robust[order.numpy()])
    shards = [torch.arange(0, 25), torch.arange(25, 60)]
    parts = [evaluate(net, data[rows], quick, index=rows).robust["quick"] for rows in shards]
    assert np.array_equal(np.concatenate(parts), robust)


def test_another_seed_draws_other_numbers_and_another_adversary_beside_does_not(net):
    data, attack = toy_data(), WhiteBox(PGD(Linf(0.05), steps=1))
    alone = evaluate(net, data, {"pgd": attack}).margin["pgd"]
    beside = evaluate(net, data, {"first": WhiteBox(Square(Linf(0.05), 5), Margin), "pgd": attack}).margin["pgd"]
    assert np.array_equal(alone, beside)
    assert not np.array_equal(alone, evaluate(net, data, {"pgd": attack}, seed=1).margin["pgd"])


def test_perturb_gives_an_image_the_same_noise_in_any_batch(net):
    data = toy_data()
    x = pixels(data.x)
    whole = perturb(net, x, data.y, PGD(Linf(0.05), steps=1))
    some = perturb(net, x[20:30], data.y[20:30], PGD(Linf(0.05), steps=1), index=torch.arange(20, 30))
    assert torch.allclose(some, whole[20:30], atol=1e-6)


# -- a cascade


def test_each_attack_sees_only_what_stands(net):
    seen, data = count(net), toy_data()
    found = evaluate(net, data, {"quick": Quick()})
    rows = [f"quick/{name}" for name in Quick().stages(3)]
    counts = [found.robust[name].sum() for name in ("clean", *rows)]
    assert counts == sorted(counts, reverse=True)
    assert np.array_equal(found.robust["quick"], found.robust[rows[-1]])
    by = found.broken_by("quick")
    assert (by == "").sum() == counts[-1]
    for before, name, after in zip(counts, Quick().stages(3), counts[1:], strict=False):
        assert (by == name).sum() == before - after
    # beside the passes of the attack: on what was searched on, on the model where that is fooled, to confirm
    most = sum(n * c for n, c in zip(counts, (8 + 2, 16 + 2, 34 + 2, 64 + 2), strict=False))
    assert seen.examples <= most + 5 * len(data) + 2 * 8


def test_what_broke_an_example_is_kept_with_its_size_and_image(net):
    data, threat = toy_data(), Linf(0.06)
    found = evaluate(net, data, {"quick": Quick(threat)}, keep_images=True)
    fallen = found.robust["clean"] & ~found.robust["quick"]
    x, z = pixels(data.x), torch.from_numpy(found.adversarial["quick"])
    with torch.no_grad():
        assert (net(z).argmax(1) == data.y).numpy().tolist() == found.robust["quick"].tolist()
    assert torch.equal(z[~fallen], x[~fallen])
    sizes = threat.norm(z - x).numpy()
    assert np.allclose(found.norm["quick"][fallen], sizes[fallen])
    assert np.isnan(found.norm["quick"][~fallen]).all()
    assert sizes.max() <= 0.06 + 1e-6
    assert (found.margin["quick"][fallen] <= 0).all()
    assert (found.margin["quick"][found.robust["quick"]] > 0).all()
    assert (found.margin["quick"] <= found.margin["clean"]).all()


# -- AutoAttack


def test_the_versions_have_the_published_attacks_in_the_published_order():
    assert list(AutoAttack(Linf(0.1)).stages(10)) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    plus = ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert list(AutoAttack(Linf(0.1), "plus").stages(10)) == plus
    assert list(AutoAttack(Linf(0.1), "rand").stages(10)) == ["apgd-ce", "apgd-dlr"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "wanted"),
    [
        (AutoAttack(Linf(0.1)), {"apgd-ce": 101, "apgd-t": 9 * 101, "square": 5001}),
        (AutoAttack(L2(0.5)), {"apgd-ce": 101, "apgd-t": 9 * 101}),
        (AutoAttack(L1(5.0)), {"apgd-ce": 5 * 103, "apgd-t": 5 * 103}),
        (AutoAttack(Linf(0.1), "plus"), {"apgd-ce": 5 * 101, "apgd-dlr": 5 * 101}),
        (AutoAttack(Linf(0.1), "rand"), {"apgd-ce": 20 * 101, "apgd-dlr": 20 * 101}),
    ],
    ids=repr,
)
def test_the_attacks_take_as_many_passes_as_published(attack, wanted):
    """On a model that cannot be broken: steps + 1 a run (L1: three runs), and a few to look at the results."""

    class Sure(nn.Module):
        def forward(self, x):
            out = torch.zeros(len(x), 12) + 1e-3 * x.flatten(1).sum(1)[:, None] * torch.arange(12)
            return out + 50 * nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 12)

    model, x = Sure(), torch.full((1, 1, 4, 4), 0.5)
    seen = count(model)
    for name, least in wanted.items():
        seen.forwards = 0
        attack.stages(12)[name](model, x, torch.zeros(1, dtype=torch.long), make_rng(0))
        assert least <= seen.forwards <= least + (21 if attack.draws > 1 else 12), name


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_work_and_the_result_says_what_was_raised(classes):
    model, data = toy_net(classes=classes).eval(), toy_data(6, classes)
    loss = {2: ["apgd-dlr maximises the margin: with 2 classes", "apgd-t maximises"], 3: ["apgd-t maximises"], 4: []}
    notes = AutoAttack(Linf(0.02), "plus").notes(classes)
    assert len(notes) == len(loss[classes])
    assert all(start in note for start, note in zip(loss[classes], notes, strict=True))
    stages = AutoAttack(Linf(0.02), "plus").stages(classes)
    x = pixels(data.x)
    with torch.no_grad():
        y = model(x).argmax(1)
    for name in ("apgd-dlr", "apgd-t", "fab-t"):
        seen = count(model)
        z = stages[name](model, x, y, make_rng(0))
        assert Linf(0.02).norm(z - x).max() <= 0.02 + 1e-6
        assert seen.forwards <= (classes - 1) * 205 + 505 * (name == "apgd-dlr"), "as many targets as other classes"


@pytest.mark.slow
def test_autoattack_breaks_a_linear_model_to_its_closed_form():
    """Two classes; an example falls if its margin is below 2 eps |w|_1."""
    model = Linear()
    x = 0.5 + 0.08 * torch.rand(30, 1, 4, 4, generator=make_rng(0))
    with torch.no_grad():
        y, margin = model(x).argmax(1), 2 * (x.flatten(1) @ model.w).abs()
    eps = float(margin.quantile(0.5) / (2 * model.w.detach().abs().sum()))
    threat = Linf(eps)
    found = autoattack(model, x, y, threat)
    wanted = (margin > 2 * eps * model.w.abs().sum()).detach().numpy()
    assert np.array_equal(found.robust["autoattack"], wanted)
    assert set(found.broken_by("autoattack")) == {"", "apgd-ce"}
    assert found.table()["autoattack"].correct == 15
    assert "apgd-t maximises the margin" in found.notes[0]


def test_bytes_are_images_too():
    data, model = toy_data(8, 4), toy_net(classes=4).eval()
    found = [autoattack(model, x, data.y, Linf(0.4)) for x in (data.x, pixels(data.x))]
    assert np.array_equal(found[0].margin["autoattack"], found[1].margin["autoattack"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoAttack(Linf(0.1), "custom"), "no version 'custom': choose standard, plus or rand"),
        (lambda: AutoAttack(PGD(Linf(0.1))), "defined for Linf, L2 and L1, not for PGD"),
        (lambda: MultiTargeted(PGD(Linf(0.1)), targets=0), "targets = 0 is no whole number from 1 on"),
        (
            lambda: MultiTargeted(PGD(Linf(0.1)), TargetedCE),
            "TargetedCE is no function of a model, labels and",
        ),
        (lambda: MultiTargeted(PGD(Linf(0.1)), 3), "loss = 3 is no function of a model, labels and targets"),
        (lambda: WhiteBox(PGD(Linf(0.1)), TargetedDLR), "loss = TargetedDLR is no function of a model and labels"),
        (lambda: WhiteBox(PGD(Linf(0.1)), TargetedCE), "TargetedCE needs targets, which WhiteBox has not"),
        (lambda: MinimumNorm.of(PGD(Linf(0.1))), "are found for Linf, L2 and L1"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_threat_too_large_for_the_box_is_refused(net):
    data = toy_data(6)
    with pytest.raises(UserError, match=r"L2 eps = 9 is not in \(0, 4\]"):
        autoattack(net, pixels(data.x), data.y, L2(9))


def test_an_empty_set_after_the_clean_pass_is_a_result():
    data = toy_data()
    model = toy_net().eval()
    with torch.no_grad():
        misclassified = (model(pixels(data.x)).argmax(1) + 1) % 3
    found = evaluate(
        model, TensorData(data.x, misclassified, data.classes), {"quick": Quick(), "nearest": MinimumNorm.of(Linf(0.1))}
    )
    assert found.table()["quick"].value == 0.0
    assert set(found.broken_by("quick")) == {"clean"}
    assert (found.distance == 0).all()


def test_a_batch_of_one_is_a_batch(net):
    data = toy_data()
    assert evaluate(net, data[:1], {"quick": Quick()}).table()["quick"].examples == 1


# -- what counts


@dataclass(frozen=True)
class Far:
    """Leaves its ball."""

    threat: Linf

    def __call__(self, model, x, y, rng):
        return (x + 1.0).clamp(0, 1)


def test_a_point_outside_the_ball_is_brought_back_before_it_counts():
    """Class 1 where the mean pixel is above 0.5; within 0.1 of 0.3, nothing is."""

    class Bright(nn.Module):
        def forward(self, x):
            return torch.stack([0.5 - x.flatten(1).mean(1), x.flatten(1).mean(1) - 0.5], 1)

    data = TensorData(torch.full((4, 1, 2, 2), 0.3), torch.zeros(4, dtype=torch.long), ("a", "b"))
    found = evaluate(Bright(), data, {"far": Far(Linf(0.1)), "farther": Far(Linf(0.4))}, keep_images=True)
    assert found.robust["far"].all()
    assert not found.robust["farther"].any()
    assert found.adversarial["farther"].max() == pytest.approx(0.7)


def test_a_model_that_changes_itself_in_forward_is_refused_with_the_modules_name():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, 3))

        def forward(self, x):
            self.inner[1].train()
            return self.inner(x)

    class Learning(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            with torch.no_grad():
                self.head.weight.mul_(0.99)
            return self.head(x.flatten(1))

    data = toy_data()
    with pytest.raises(UserError, match=r"sets the mode of inner.1 \(Dropout\) in its forward"):
        evaluate(Moody(), data, {"quick": Quick()})
    with pytest.raises(UserError, match=r"changes weight of head \(Linear\) in its forward"):
        evaluate(Learning(), data, {"quick": Quick()})


def test_pgd_at_eps_0_is_always_tried(net):
    class Trap(nn.Module):
        """Right when nobody asks for gradients."""

        def forward(self, x):
            return net(x) * (-1 if torch.is_grad_enabled() else 1)

    data = toy_data()
    with pytest.warns(UserWarning, match=r"PGD at eps 0 changes the verdict on \d+ of 60 images"):
        found = evaluate(Trap(), data, {"square": WhiteBox(Square(Linf(0.01), 2), Margin)})
    assert "eps 0" in found.notes[0]


class Noisy(nn.Module):
    """A linear model with noise on its input."""

    def __init__(self, sigma):
        super().__init__()
        self.linear, self.sigma = Linear(), sigma

    def forward(self, x):
        return self.linear(x + self.sigma * torch.randn_like(x))


@pytest.mark.slow
def test_a_randomised_model_is_said_to_be_one_and_judged_by_the_majority():
    torch.manual_seed(0)
    model = Noisy(0.2)
    x = 0.5 + 0.08 * torch.rand(20, 1, 4, 4, generator=make_rng(0))
    y = model.linear(x).argmax(1)
    with pytest.warns(UserWarning, match='it is randomised.*version="rand"'):
        once = evaluate(model, TensorData(x, y, ("a", "b")), {"quick": Quick(Linf(0.001))})
    assert once.robust["clean"].sum() > 0
    often = autoattack(model, x, y, Linf(0.001), "rand")
    assert often.robust["clean"].all(), "more than half of 20 passes are right"
    assert all("randomised" not in note for note in often.notes)


# -- distances


def test_the_smallest_eps_is_the_closed_form_of_a_linear_model_and_gives_a_curve():
    model = Linear()
    x = 0.5 + 0.08 * torch.rand(30, 1, 4, 4, generator=make_rng(0))
    with torch.no_grad():
        score = x.flatten(1) @ model.w
        y = model(x).argmax(1)
    y[:3] = 1 - y[:3]
    found = evaluate(model, TensorData(x, y, ("a", "b")), {"nearest": MinimumNorm.of(Linf(0.1))})
    wanted = (score.abs() / model.w.detach().abs().sum()).numpy()
    assert (found.distance[:3] == 0).all()
    assert np.allclose(found.distance[3:], wanted[3:], rtol=0.01)
    assert "nearest" not in found.table()
    for eps in (0.0, float(np.median(wanted)), 0.5):
        assert found.robust_at(eps).correct == (found.distance > eps).sum()
    shown = found.hardest
    assert len(shown.label) == 8
    assert np.allclose(np.sort(found.distance[found.distance > 0])[:8], shown.norm, rtol=1e-5)


def test_what_another_attack_found_nearer_counts_too(net):
    data = toy_data()
    found = evaluate(net, data, {"quick": Quick(), "nearest": MinimumNorm.of(Linf(0.1), steps=2)})
    broken = found.robust["clean"] & ~found.robust["quick"]
    assert (found.distance[broken] <= found.norm["quick"][broken]).all()
    assert found.robust_at(0.06).correct <= found.table()["quick"].correct


def test_distances_that_were_not_looked_for_are_not_there(net):
    with pytest.raises(UserError, match="the result has no distances"):
        evaluate(net, toy_data(), {}).robust_at(0.1)


# -- resuming


def test_a_state_found_by_another_search_is_refused(net, tmp_path):
    evaluate(net, toy_data(), {"quick": Quick()}, state=tmp_path, backend=AcceleratedCopy("fp32"))
    with pytest.raises(UserError, match="holds the state of another evaluation"):
        evaluate(net, toy_data(), {"quick": Quick()}, state=tmp_path, backend=OriginalModel())


class Killed(Exception): ...  # noqa: N818


def stop_after(batches):
    left = iter(range(batches))

    def hear(news):
        if not news.stage_done and next(left, None) is None:
            raise Killed

    return hear


@pytest.mark.slow
@pytest.mark.parametrize("batches", [0, 3, 9])
def test_an_evaluation_that_was_killed_goes_on_and_ends_the_same(net, tmp_path, batches):
    """Smooth: on pieces of a linear function, a step of FAB ends where the last bit decides whether a point fools."""
    net, data = copy.deepcopy(net).double(), toy_data()
    net[3] = nn.Tanh()
    adversaries = {"quick": Quick(), "nearest": MinimumNorm.of(Linf(0.1), steps=3)}
    untouched = evaluate(net, data, adversaries, batch_size=8, keep_images=True)
    with pytest.raises(Killed):
        evaluate(net, data, adversaries, batch_size=8, state=tmp_path, on_progress=stop_after(batches))
    done = {path: len(np.load(path)["rows"]) for path in tmp_path.glob("*.npz")}
    assert sum(done.values()) >= 8 * batches and max(done.values()) <= 8
    again = evaluate(net, data, adversaries, batch_size=16, state=tmp_path, keep_images=True)
    by_stage = {}
    for path in tmp_path.glob("*.npz"):
        by_stage.setdefault(path.stem[:-33], []).extend(np.load(path)["rows"].tolist())
    assert sum(map(len, by_stage.values())) > sum(done.values())
    assert all(len(rows) == len(set(rows)) for rows in by_stage.values()), "nothing was done twice"
    for name, values in untouched.arrays().items():
        if name.startswith("seconds/"):
            continue
        found = again.arrays()[name]
        if values.dtype.kind == "f":
            assert np.allclose(found, values, atol=1e-5, equal_nan=True), name
        else:
            assert np.array_equal(found, values), name
    seen = count(net)
    evaluate(net, data, adversaries, state=tmp_path)
    shown = 2 * len(data)  # confidences of the gallery, which has all of these few
    assert seen.examples <= 6 * len(data) + shown + 20, "all is known: clean pass, its checks, the gallery"


@pytest.mark.slow
def test_a_damaged_part_is_done_again(net, tmp_path):
    data = toy_data()
    whole = evaluate(net, data, {"quick": Quick()}, batch_size=8, state=tmp_path)
    parts = sorted(tmp_path.glob("*.npz"))
    parts[1].write_bytes(parts[1].read_bytes()[:100])
    parts[-1].write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged .*: its examples are attacked again"):
        again = evaluate(net, data, {"quick": Quick()}, batch_size=8, state=tmp_path)
    assert all(np.array_equal(again.robust[name], flags) for name, flags in whole.robust.items())


def test_the_state_of_another_evaluation_is_refused(net, tmp_path):
    data = toy_data()
    evaluate(net, data, {"quick": Quick()}, state=tmp_path)
    with pytest.raises(UserError, match=r"the state of another evaluation \(seed: 0 -> 1\)"):
        evaluate(net, data, {"quick": Quick()}, state=tmp_path, seed=1)
    with pytest.raises(UserError, match="images: "):
        evaluate(net, data[:30], {"quick": Quick()}, state=tmp_path)
    with pytest.raises(UserError, match="model: "):
        evaluate(toy_net(seed=5).eval(), data, {"quick": Quick()}, state=tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files that are not of an evaluation"):
        evaluate(net, data, {"quick": Quick()}, state=tmp_path / "more")


def search_for_long(folder):
    attack = WhiteBox(Square(Linf(0.004), 400), Margin)
    return evaluate(toy_net().eval(), toy_data(40), {"a": attack}, batch_size=2, state=folder)


@pytest.mark.slow
def test_a_sigkill_loses_nothing(tmp_path):
    process, state = started(search_for_long, tmp_path), []
    until = time.monotonic() + 60
    while len(state) < 2 and process.is_alive() and time.monotonic() < until:
        time.sleep(0.005)
        state = list(tmp_path.glob("*.npz"))
    process.kill()
    assert ended(process) == -signal.SIGKILL
    before = {path: path.read_bytes() for path in tmp_path.glob("*.npz")}
    assert before
    found = search_for_long(tmp_path)
    assert all(path.read_bytes() == content for path, content in before.items())
    attack = WhiteBox(Square(Linf(0.004), 400), Margin)
    whole = evaluate(toy_net().eval(), toy_data(40), {"a": attack})
    assert 0 < whole.robust["a"].sum() < whole.robust["clean"].sum()
    assert np.array_equal(found.robust["a"], whole.robust["a"])


# -- the time left


def test_the_time_left_is_reckoned_from_passes():
    stages = AutoAttack(Linf(0.1)).stages(10)
    costs = {name: passes(adversary, 10) for name, adversary in stages.items()}
    assert costs == pytest.approx({"apgd-ce": 280, "apgd-t": 2520, "fab-t": 3420, "square": 5000})
    assert passes(MinimumNorm.of(Linf(0.1)), 10) == pytest.approx(50 * (2 + 9 * 1.8))
    assert passes(object(), 10) is None
    pgd, threat = PGD(Linf(0.1), 5), Linf(0.1)
    known = {
        pgd: 5,
        MultiGrad(threat, 3): 3,
        NFGSM(threat): 1,
        RandomEps(pgd): 5,
        Restarts(pgd, 3): 15,
    }
    assert {attack: passes(WhiteBox(attack), 10) / 2.8 for attack in known} == pytest.approx(known)
    assert passes(WhiteBox(Benign()), 10) == 1.0


def test_every_attack_of_the_package_has_a_cost():
    from sparring import attacks
    from sparring.evaluation.cost import _COSTS

    values = {getattr(attacks, name) for name in attacks.__all__}
    made = {kind for kind in values if isinstance(kind, type) and ("threat" in getattr(kind, "__slots__", ()))}
    assert len(made) > 5 and made <= set(_COSTS)
    assert passes(WhiteBox(Restarts(Stated(), 3)), 10) == 60


class Stated:
    """An attack of a user's own that says what it costs."""

    passes = 20

    def __call__(self, loss, x, rng):
        return x


def test_without_a_stated_cost_no_time_is_estimated(net):
    left = {}
    for name, adversary in {"stated": WhiteBox(Stated()), "own": lambda model, x, y, rng: x}.items():
        evaluate(net, toy_data(), {name: adversary}, on_progress=lambda p, n=name: left.setdefault(n, p.seconds_left))
    assert left["stated"] >= 0 and math.isnan(left["own"])


@pytest.mark.slow
def test_the_guess_ends_at_nothing(net):
    told = []
    evaluate(net, toy_data(), {"quick": Quick()}, batch_size=16, on_progress=told.append)
    assert told[0].seconds_left > 0
    assert told[-1].seconds_left == pytest.approx(0, abs=1e-6)
    assert all(math.isfinite(news.seconds_left) for news in told)


# -- models as they are found


class Viewing(nn.Module):
    """What most users write: `view`, which needs images in the usual order of memory."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 16, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).view(x.size(0), -1))


def test_models_that_use_view_are_evaluated():
    torch.manual_seed(0)
    data = TensorData(torch.rand(8, 3, 4, 4), torch.arange(8) % 3, ("a", "b", "c"))
    model = Viewing()
    before = {name: t.stride() for name, t in model.state_dict().items()}
    assert evaluate(model, data, {"quick": Quick()}).table()["quick"].examples == 8
    assert {name: t.stride() for name, t in model.state_dict().items()} == before


@pytest.mark.slow
def test_dropout_that_stays_on_can_be_attacked_in_expectation():
    class Always(nn.Dropout):
        def train(self, mode=True):
            return super().train(True)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), Always(0.2), nn.Linear(16, 3))
    data = toy_data(4)
    found = autoattack(model, data.x, data.y, Linf(0.01), "rand")
    assert found.table()["autoattack"].examples == 4


@pytest.mark.slow
def test_logits_that_look_like_probabilities_by_chance_are_logits(net):
    """One row of two logits may sum to 1; all of them do not."""

    class Near(nn.Module):
        def forward(self, x):
            score = 0.4 + 0.2 * x.flatten(1).mean(1)
            return torch.stack([score, 1 - score + (x.flatten(1).mean(1) > 0.3) * 0.2], 1)

    data = toy_data(30, 2)
    found = evaluate(Near(), data, {"quick": Quick()}, batch_size=1)
    assert found.table()["clean"].examples == 30

    class Softmax(nn.Module):
        def forward(self, x):
            return net(x).softmax(1)

    with pytest.raises(UserError, match="gives probabilities"):
        evaluate(Softmax(), toy_data(), {"quick": Quick()})


def test_outputs_of_a_sigmoid_are_noted_and_found_by_the_audit(net):
    class Sigmoid(nn.Module):
        def forward(self, x):
            z = net(x)
            return (20 * (z - z.amin(1, keepdim=True)) - 1).sigmoid()

    data = toy_data()
    data = TensorData(pixels(data.x), data.y, data.classes)
    with pytest.warns(UserWarning, match=r"all outputs of the model lie in \[0, 1\], as behind a sigmoid"):
        found = evaluate(Sigmoid(), data, {"quick": Quick()})
    assert any("as behind a sigmoid" in note for note in found.notes)
    assert output(Sigmoid(), data).verdict == "warn"
    assert output(net, data).verdict == "pass"


def test_steps_that_do_not_reach_eps_are_noted(net):
    attacks = {"short": PGD(Linf(0.1), 3, "2/255"), "reaches": PGD(Linf(0.1), 4, 0.025), "of eps": PGD(Linf(0.1), 3)}
    notes = [note for note in evaluate(net, toy_data(), attacks).notes if "moves by at most" in note]
    assert notes == ["short moves by at most 3 steps of 0.00784 from its start, less than eps = 0.1"]


def test_a_model_is_not_normalised_twice(net):
    front = Normalize([0.5], [0.2])
    for model in (nn.Sequential(front, net), Classifier(nn.Flatten(), nn.Linear(16, 3), front)):
        with pytest.raises(UserError, match="would be normalised twice"):
            evaluate(model, toy_data(), "fgsm", eps=0.1, normalize=([0.5], [0.2]))


def test_a_set_beside_an_attack_with_its_own_is_refused(net):
    for attack in (PGD(Linf(0.01), 2), {"mine": PGD(Linf(0.01), 2)}):
        with pytest.raises(UserError, match="eps and threat are for attacks given by name"):
            evaluate(net, toy_data(), attack, eps=0.3)


@pytest.mark.parametrize("way", ["data", "batch_norm", "only with gradients"])
def test_every_way_to_change_itself_is_seen(way):
    class Sly(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, 3)
            self.register_buffer("m", torch.zeros(16))
            self.register_buffer("v", torch.ones(16))

        def forward(self, x):
            x = x.flatten(1)
            if way == "data" or (way == "only with gradients" and torch.is_grad_enabled()):
                self.head.weight.data.mul_(0.999)
            if way == "batch_norm" and len(x) > 1:
                nn.functional.batch_norm(x, self.m, self.v, training=True)
            return self.head(x)

    with pytest.raises(UserError, match=r"the model changes (weight of head \(Linear\)|m of itself \(Sly\)) in its"):
        evaluate(Sly(), toy_data(), {"quick": Quick()})


def test_an_answer_that_depends_on_the_batch_is_told(net):
    class Centred(nn.Module):
        def forward(self, x):
            return net((x - x.mean(0)).clamp(0, 1))

    with pytest.warns(UserWarning, match="depends on the rest of its batch"):
        evaluate(Centred(), toy_data(), {"quick": Quick()})


def test_optimisation_inside_the_forward_is_told(net):
    class Optimising(nn.Module):
        def forward(self, x):
            with torch.enable_grad():
                z = x.detach().requires_grad_()
                (grad,) = torch.autograd.grad(net(z).amax(1).sum(), z)
            return net(x + 0.01 * grad.sign())

    with pytest.warns(UserWarning, match="autograd runs inside the model's forward"):
        evaluate(Optimising(), toy_data(), {"quick": Quick()})


def test_a_gradient_that_is_nan_is_named_before_the_attacks_meet_it(net):
    class Rooted(nn.Module):
        def forward(self, x):
            return net(x) + (x * 0).sqrt().flatten(1).sum(1, keepdim=True)

    with pytest.warns(UserWarning, match="the gradient is NaN or infinite for 60 of 60 images"):
        evaluate(Rooted(), toy_data(), {"square": WhiteBox(Square(Linf(0.01), 2), Margin)})


def test_double_precision_models_take_double_precision_images_and_half_ones_are_refused(net):
    import copy

    found = evaluate(copy.deepcopy(net).double(), toy_data(), {"quick": Quick()})
    assert found.table()["quick"].examples == 60
    with pytest.raises(UserError, match=r"weights of the model are torch.bfloat16.*model.float\(\)"):
        evaluate(copy.deepcopy(net).bfloat16(), toy_data(), {"quick": Quick()})


def test_convolutions_are_not_computed_in_tf32_while_it_counts(net):
    seen = []

    class Looking(nn.Module):
        def forward(self, x):
            seen.append(torch.backends.cudnn.conv.fp32_precision)
            return net(x)

    before = torch.backends.cudnn.conv.fp32_precision
    evaluate(Looking(), toy_data(), {"quick": Quick()})
    assert set(seen) == {"ieee"}
    assert torch.backends.cudnn.conv.fp32_precision == before


class Undeclared:
    """An adversary that is no dataclass, with a ball all the same."""

    def __init__(self, eps):
        self.threat = Linf(eps)

    def __call__(self, model, x, y, rng):
        return 1 - x


class UndeclaredAttack:
    """An attack that is no dataclass, with another inside, and with itself."""

    def __init__(self, eps, inner=None):
        self.threat, self.inner, self.me = Linf(eps), inner, self

    def __call__(self, loss, x, rng):
        return 1 - x


def test_the_ball_of_any_adversary_is_found_and_its_lack_is_told(net):
    data = toy_data()
    found = evaluate(net, data, {"mine": Undeclared(0.01)})
    assert not found.notes
    assert np.nanmax(found.norm["mine"], initial=0) <= 0.01 + 1e-6
    inside = evaluate(net, data, {"mine": UndeclaredAttack(0.01), "same": WhiteBox(UndeclaredAttack(0.01))})
    assert not inside.notes
    assert all(np.nanmax(inside.norm[name], initial=0) <= 0.01 + 1e-6 for name in ("mine", "same"))
    assert threats_of({"mine": WhiteBox(UndeclaredAttack(0.01, UndeclaredAttack(0.01)))}) == [Linf(0.01)] * 2
    free = evaluate(net, data, {"mine": lambda model, x, y, rng: 1 - x})
    assert free.notes == ("nothing bounds mine: it names no threat, or several",)


@pytest.mark.parametrize(
    ("adversaries", "message"),
    [
        ({"clean": Quick()}, "no adversary can be called 'clean'"),
        ({"a/b": Quick()}, "no adversary can be called 'a/b'"),
        ({"a": MinimumNorm.of(Linf(0.1)), "b": MinimumNorm.of(L2(0.1))}, "one norm at a time"),
    ],
)
def test_names_with_a_meaning_and_two_norms_are_refused(net, adversaries, message):
    with pytest.raises(UserError, match=message):
        evaluate(net, toy_data(), adversaries)


@pytest.mark.slow
def test_adversaries_with_like_names_have_parts_of_their_own(net, tmp_path):
    data = toy_data()
    adversaries = {"α": WhiteBox(PGD(Linf(0.0001), 1)), "β": WhiteBox(PGD(Linf(0.5), 5)), "a.": Quick(), "a_": Quick()}
    found = evaluate(net, data, adversaries, state=tmp_path)
    assert found.robust["α"].sum() > found.robust["β"].sum()
    again = evaluate(net, data, adversaries, state=tmp_path)
    assert all(np.array_equal(again.robust[name], flags) for name, flags in found.robust.items())


def test_a_state_is_refused_when_the_code_of_the_model_has_changed(net, tmp_path):
    class Wrapper(nn.Module):
        levels = 2

        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x):
            return self.inner((x * self.levels).round() / self.levels if self.levels else x)

    data, model = toy_data(), Wrapper()
    evaluate(model, data, {"square": WhiteBox(Square(Linf(0.01), 2), Margin)}, state=tmp_path)
    Wrapper.levels = 0
    with pytest.raises(UserError, match="its code has changed"):
        evaluate(model, data, {"square": WhiteBox(Square(Linf(0.01), 2), Margin)}, state=tmp_path)


def test_a_state_needs_adversaries_that_say_what_they_are(net, tmp_path):
    with pytest.raises(UserError, match=r"does not say what it is.*make it a dataclass"):
        evaluate(net, toy_data(), {"mine": Undeclared(0.01)}, state=tmp_path)


def test_a_kill_before_the_first_word_leaves_a_folder_that_can_be_used(net, tmp_path):
    (tmp_path / ".about.json.writing").write_text("{")
    evaluate(net, toy_data(), {"quick": Quick()}, state=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_whatever_bits_flip_a_part_is_whole_or_done_again(net, tmp_path, seed):
    import warnings

    data = toy_data(12)
    whole = evaluate(net, data, {"quick": Quick()}, state=tmp_path)
    part = min(tmp_path.glob("*.npz"))
    content = bytearray(part.read_bytes())
    for place in np.random.default_rng(seed).integers(0, len(content), 3):
        content[place] ^= 1 << (seed % 8)
    part.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = evaluate(net, data, {"quick": Quick()}, state=tmp_path)
    assert all(np.array_equal(again.robust[name], flags) for name, flags in whole.robust.items())


def test_what_square_alone_finds_is_told(net):
    class Rounded(nn.Module):
        def forward(self, x):
            return net((x * 8).round() / 8 + 0 * x)

    found = evaluate(Rounded(), toy_data(), {"quick": Quick(Linf(0.15))})
    assert any("Square, which needs no gradients, breaks" in note for note in found.notes)


def test_the_share_of_random_answers_does_not_depend_on_the_scale_of_the_logits():
    first = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    second = first.clone()
    second[0, 1] = 3e-4  # the first answer differs by more than 1e-4 of its length, the second by less
    second[1, 0] = 3e-5
    for scale in (1.0, 1e-3, 1e4):
        assert random_share(scale * first, scale * second) == pytest.approx(1 / 3)
    assert random_share(torch.zeros(2, 3), torch.zeros(2, 3)) == 0.0
