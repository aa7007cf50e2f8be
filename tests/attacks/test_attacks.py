import pytest
import torch
from conftest import Linear, count, toy_data, toy_net
from torch import nn

from sparring import (
    APGD,
    CE,
    FAB,
    FGSM,
    L1,
    L2,
    PGD,
    Batch,
    Benign,
    CleanStart,
    CrossEntropy,
    GaussianStart,
    Linf,
    Margin,
    Method,
    Progress,
    RandomStart,
    Restarts,
    Square,
    State,
    UserError,
    Worst,
    make_rng,
    train_step,
)
from sparring.acceleration import OriginalModel
from sparring.attacks import (
    MSD,
    NFGSM,
    Highest,
    KLDivergence,
    MixedStart,
    MultiGrad,
    Split,
    TargetedCE,
    Union,
    ZeroGrad,
)
from sparring.core.modes import batch_statistics, eval_mode, train_mode
from sparring.core.rng import PerExample
from sparring.core.types import pixels
from sparring.core.whole_batch import WholeBatch
from sparring.testing import check_attack

EPS = 8 / 255
BALL = Linf(EPS)
BOTH = Union((BALL, L2(0.5)))

# one line for a new attack: the value, and the set that it promises to stay in
ATTACKS = [
    (Benign(), BALL),
    (FGSM(BALL), BALL),
    (FGSM(BALL, "10/255", RandomStart()), BALL),
    (PGD(BALL, step_size="2/255"), BALL),
    (PGD(BALL, steps=3, start=GaussianStart()), BALL),
    (PGD(BALL, steps=5, patience=0), BALL),
    (PGD(BALL, steps=5, patience=2), BALL),
    (PGD(L2(0.5)), L2(0.5)),
    (PGD(L1(4.0)), L1(4.0)),
    (NFGSM(BALL), Linf(3 * EPS)),
    (ZeroGrad(BALL), BALL),
    (MultiGrad(BALL), BALL),
    *((APGD(threat, steps=10), threat) for threat in (BALL, L2(0.5), L1(4.0))),
    (APGD(BALL, steps=10, to_the_end=True), BALL),
    *((FAB(threat, steps=5), threat) for threat in (BALL, L2(0.5))),
    (FAB(L1(4.0), steps=3), L1(4.0)),  # few steps: each moves some pixels all the way, and the last bit decides which
    *((Square(threat, queries=60), threat) for threat in (BALL, L2(0.5), L1(4.0))),
    (Split(((0.5, Benign()), (0.5, FGSM(BALL)))), BALL),
    (Restarts(PGD(BALL, steps=2), 3), BALL),
    (Highest((FGSM(BALL), PGD(BALL, steps=2))), BALL),
    (MSD(BOTH, steps=3), BOTH),
    (PGD(BOTH, steps=3), BOTH),
    (Worst((FGSM(BALL), PGD(BALL, steps=2), PGD(BALL, steps=2, patience=0))), BALL),
]


def loss_for(attack):
    """FAB alone needs to know the boundaries."""
    return Margin if isinstance(attack, FAB) else CE


@pytest.mark.parametrize(("attack", "within"), ATTACKS, ids=lambda v: repr(v)[:70])
def test_every_attack_keeps_its_contract(attack, within):
    check_attack(attack, within, loss=loss_for(attack))


@pytest.mark.parametrize("attack", [attack for attack, _ in ATTACKS], ids=lambda v: repr(v)[:70])
def test_the_points_carry_no_graph_even_if_the_images_do(attack):
    model, x = toy_net().eval(), torch.rand(6, 1, 4, 4).requires_grad_()
    assert not attack(loss_for(attack)(model, torch.arange(6) % 3), x, make_rng(0)).requires_grad


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5), L1(2.0)], ids=repr)
def test_double_precision_stays_double_precision(threat):
    model, x = toy_net().eval().double(), torch.rand(6, 1, 4, 4, dtype=torch.float64)
    z = Restarts(PGD(threat, steps=3, patience=1), 2)(CE(model, torch.arange(6) % 3), x, make_rng(0))
    assert z.dtype == torch.float64
    assert threat.norm(z - x).max() <= threat.eps * (1 + 1e-12)


def linear_case():
    """A linear model in the middle of [0, 1], where no pixel is clipped: the worst case is eps x the dual norm."""
    model = Linear()
    return model, torch.full((5, 1, 4, 4), 0.5), torch.zeros(5, dtype=torch.long)


def drop(model, x, z):
    return (model(x) - model(z))[:, 0].detach()


@pytest.mark.parametrize(
    ("threat", "dual"),
    [
        (Linf(0.1), lambda w: w.abs().sum()),
        (L2(0.4), lambda w: w.norm()),
        (L1(0.4, share=0.0), lambda w: w.abs().max()),
    ],
    ids=lambda v: repr(v)[:20],
)
@pytest.mark.parametrize("steps", [1, 100])
def test_on_a_linear_model_pgd_reaches_the_worst_case_in_every_norm(threat, dual, steps):
    model, x, y = linear_case()
    start = CleanStart() if steps == 1 else RandomStart()
    z = PGD(threat, steps=steps, step_size=threat.eps / min(steps, 5), start=start)(CE(model, y), x, make_rng(0))
    best = threat.eps * dual(model.w.detach())
    assert torch.allclose(drop(model, x, z), best.expand(5), rtol=1e-4)


def test_with_an_eps_too_small_to_move_a_pixel_accuracy_is_clean_accuracy():
    model, x = toy_net().eval(), torch.rand(50, 1, 4, 4, generator=make_rng(0))
    y = model(x).argmax(1).where(torch.arange(50) % 5 > 0, torch.tensor(0))
    z = Restarts(PGD(Linf(1e-12), steps=10), 3)(CE(model, y), x, make_rng(0))
    assert torch.equal(z, x)
    assert torch.equal(model(z).argmax(1), model(x).argmax(1))


def test_pgd_takes_one_forward_and_one_backward_pass_a_step_and_no_weight_gradient():
    model, x, y = toy_net().eval(), torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    seen = count(model)
    PGD(BALL, steps=7)(CE(model, y), x, make_rng(0))
    assert (seen.forwards, seen.backwards) == (7, 7)
    assert all(p.grad is None for p in model.parameters())


def test_patience_lets_fooled_examples_go_and_saves_their_passes():
    model, x, y = toy_net().eval(), torch.rand(64, 1, 4, 4, generator=make_rng(1)), torch.arange(64) % 3
    seen = count(model)
    PGD(BALL, steps=10)(CE(model, y), x, make_rng(0))
    full, seen.examples = seen.examples, 0
    PGD(BALL, steps=10, patience=0)(CE(model, y), x, make_rng(0))
    assert full == 640
    assert 64 <= seen.examples < full / 2


def test_a_start_that_returns_the_images_leaves_them_as_they_were():
    model, x = toy_net().eval(), torch.rand(6, 1, 4, 4, generator=make_rng(0))
    y, kept = model(x).argmax(1), x.clone()
    for patience in (None, 1):
        z = PGD(BALL, steps=3, start=lambda threat, x, rng: x, patience=patience)(CE(model, y), x, make_rng(0))
        assert torch.equal(x, kept)
        assert 0 < (z - x).abs().max() <= BALL.eps + 1e-6


def test_with_patience_0_an_example_that_is_fooled_already_does_not_move():
    model, x = toy_net().eval(), torch.rand(20, 1, 4, 4, generator=make_rng(1))
    wrong = (model(x).argmax(1) + 1) % 3
    z = PGD(BALL, steps=5, start=CleanStart(), patience=0)(CE(model, wrong), x, make_rng(0))
    assert torch.equal(z, x)


def test_patience_counts_the_steps_after_the_first_that_fools():
    """A loss that is fooled from the start: the example takes exactly `patience` steps of known length."""
    model, x = Linear(), torch.full((3, 1, 4, 4), 0.5)
    fooled = CE(model, model(x).argmin(1))
    for patience in (0, 1, 3):
        z = PGD(Linf(0.4), steps=10, step_size=0.01, start=CleanStart(), patience=patience)(fooled, x, make_rng(0))
        assert (z - x).abs().amax() == pytest.approx(0.01 * patience, abs=1e-6)


def test_patience_with_a_loss_that_cannot_tell_who_is_fooled_is_refused():
    model, x, _ = linear_case()
    loss = KLDivergence(model, model(x).softmax(1).detach())
    with pytest.raises(
        UserError, match="patience = 1 needs a loss that reports which examples are fooled, and KLDivergence does not"
    ):
        PGD(BALL, patience=1)(loss, x, make_rng(0))


class Fixed:
    """Adds a constant: an attack whose outcome is known."""

    def __init__(self, shift):
        self.shift, self.sizes = shift, []

    def __call__(self, loss, x, rng):
        self.sizes.append(len(x))
        return (x + self.shift).clamp(0, 1)


def threshold_model():
    """Class 1 where the mean pixel is above 0.5."""
    return lambda x: torch.stack([0.5 - x.flatten(1).mean(1), x.flatten(1).mean(1) - 0.5], 1)


def test_restarts_are_kept_example_by_example_and_fooled_ones_rest():
    x = torch.tensor([0.45, 0.2, 0.05]).view(3, 1, 1, 1).expand(3, 1, 2, 2).clone()
    first, second = Fixed(0.1), Fixed(0.4)
    z = Worst((first, second))(CE(threshold_model(), torch.zeros(3, dtype=torch.long)), x, make_rng(0))
    assert first.sizes == [3]
    assert second.sizes == [2], "the first example had fallen"
    assert torch.allclose(z[:, 0, 0, 0], torch.tensor([0.55, 0.6, 0.45]))


def test_a_later_restart_never_replaces_a_better_point():
    x = torch.full((2, 1, 2, 2), 0.1)
    z = Worst((Fixed(0.2), Fixed(-0.1)))(CE(threshold_model(), torch.zeros(2, dtype=torch.long)), x, make_rng(0))
    assert torch.allclose(z, torch.full_like(z, 0.3))


def test_restarts_serve_a_loss_that_cannot_tell_who_is_fooled():
    model, x, _ = linear_case()
    loss = KLDivergence(model, model(x).softmax(1).detach())
    one = loss(Restarts(PGD(BALL, steps=1), 1)(loss, x, make_rng(0))).value
    five = loss(Restarts(PGD(BALL, steps=1), 5)(loss, x, make_rng(0))).value
    assert (five >= one - 1e-6).all()


def test_split_sends_shares_to_its_parts_and_spends_nothing_on_benign():
    model, x, y = toy_net().eval(), torch.rand(400, 1, 4, 4, generator=make_rng(0)), torch.arange(400) % 3
    seen = count(model)
    z = Split(((0.25, Benign()), (0.75, FGSM(BALL))))(CE(model, y), x, make_rng(0))
    moved = (z != x).flatten(1).any(1).float().mean()
    assert moved == pytest.approx(0.75, abs=0.06)
    assert seen.examples == int((z != x).flatten(1).any(1).sum())


def test_n_fgsm_leaves_the_ball_and_stays_in_its_reach():
    model, x, y = linear_case()
    attack = NFGSM(Linf(0.05))
    size = (attack(CE(model, y), x, make_rng(0)) - x).abs().amax()
    assert 0.05 < size <= attack.reach.eps == pytest.approx(0.15)


def test_zero_grad_leaves_the_pixels_of_the_smallest_gradients_where_they_started():
    model, x, y = linear_case()
    x = torch.full_like(x, 0.5)
    z = ZeroGrad(Linf(0.1), quantile=0.25)(CE(model, y), x, make_rng(0))
    start = Linf(0.1).sample(x, make_rng(0))
    still = (z == start).flatten(1)
    size = model.w.abs()
    assert (still.sum(1) == 4).all()  # a quarter of 16
    for row in still:
        assert size[row].max() < size[~row].min()
    assert torch.allclose((z - x).abs().flatten(1)[~still], torch.tensor(0.1))  # the rest crossed the set


def test_multi_grad_moves_where_all_the_gradients_agree_and_by_all_of_eps():
    model, x, y = linear_case()
    x = torch.full_like(x, 0.5)
    z = MultiGrad(Linf(0.1), points=3)(CE(model, y), x, make_rng(0))
    assert torch.allclose((z - x).abs(), torch.tensor(0.1))  # the gradient of a linear model is the same everywhere

    class Torn(nn.Module):
        def forward(self, x):
            bend = (x.flatten(1)[:, :1] - 0.5).abs()  # a gradient of either sign, by the random point
            return torch.cat([x.flatten(1)[:, 1:2] + bend, 1 - x.flatten(1)[:, 1:2]], 1)

    x = torch.full((200, 1, 1, 2), 0.5)
    z = MultiGrad(Linf(0.1), points=3)(CE(Torn(), torch.zeros(200, dtype=torch.long)), x, make_rng(0))
    moved = (z != x).flatten(1).float().mean(0)
    assert float(moved[1]) == 1.0
    assert float(moved[0]) == pytest.approx(0.25, abs=0.1)  # three random signs agree in a quarter of the cases


def test_a_targeted_attack_reaches_its_target():
    model, x = toy_net().eval(), torch.rand(30, 1, 4, 4, generator=make_rng(0))
    loss = TargetedCE(model, (model(x).argmax(1) + 1) % 3)
    z = PGD(Linf(0.5), steps=20)(loss, x, make_rng(0))
    assert loss(z).fooled.float().mean() > 0.9 > 0.1 > loss(x).fooled.float().mean()


def test_attacking_a_model_in_training_mode_is_refused_where_the_mode_matters():
    y = torch.zeros(2, dtype=torch.long)
    with pytest.raises(UserError, match=r"training mode, where 2 \(BatchNorm1d\)"):
        CE(toy_net().train(), y)
    with pytest.raises(UserError, match="Dropout"):
        TargetedCE(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 2)), y)
    with pytest.raises(UserError, match="training mode"):
        KLDivergence(toy_net().train(), torch.ones(2, 3) / 3)

    class DropPath(nn.Module): ...

    with pytest.raises(UserError, match="DropPath"):
        CE(nn.Sequential(DropPath()), y)
    CE(nn.Linear(4, 2).train(), y)  # nothing there depends on the mode
    CE(toy_net().train().forward, y)  # a function is given on purpose


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(BALL, steps=0), "steps = 0 is no whole number from 1 on"),
        (lambda: PGD(BALL, step_size=-0.1), "step_size = -0.1 is not above 0"),
        (lambda: PGD(BALL, step_size="a lot"), "is no number"),
        (lambda: PGD(BALL, patience=-1), "patience = -1 is no whole number from 0 on"),
        (lambda: Restarts(Benign(), 0), "times = 0 is no whole number"),
        (lambda: Split(((0.5, Benign()), (0.4, Benign()))), r"sum to 1, unlike \[0.5, 0.4\]"),
        (lambda: NFGSM(L2(1.0)), "defined for Linf"),
        (lambda: ZeroGrad(L2(1.0)), "ZeroGrad is defined for Linf"),
        (lambda: ZeroGrad(BALL, quantile=1.0), r"quantile = 1 is not in \[0, 1\)"),
        (lambda: MultiGrad(BALL, points=0), "points = 0 is no whole number"),
    ],
)
def test_an_attack_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_the_default_step_size_crosses_the_set():
    model, x, y = linear_case()
    z = PGD(Linf(0.2), steps=4)(CE(model, y), x, make_rng(0))
    assert torch.allclose((z - x).abs(), torch.full_like(x, 0.2), atol=1e-6)


def test_a_start_is_sometimes_the_image_itself_for_the_whole_batch():
    x, threat, rng = torch.full((8, 1, 4, 4), 0.5), Linf(0.1), make_rng(0)
    clean = [torch.equal(MixedStart(RandomStart(), 0.3)(threat, x, rng), x) for _ in range(400)]
    assert 0.23 < sum(clean) / 400 < 0.37
    moved = MixedStart(RandomStart(), 0.0)(threat, x, rng)
    assert (moved != x).flatten(1).any(1).all()
    assert torch.equal(MixedStart(RandomStart(), 1.0)(threat, x, rng), x)
    many = x.repeat(40, 1, 1, 1)
    each = PerExample(0, torch.arange(len(many)))
    alike = (MixedStart(RandomStart(), 0.3)(threat, many, each) == many).flatten(1).all(1)
    assert 0.2 < float(alike.float().mean()) < 0.4, "in evaluation each example draws for itself"
    alone = MixedStart(RandomStart(), 0.3)(threat, many[7:8], PerExample(0, torch.tensor([7])))
    assert torch.equal(
        alone == many[7:8],
        (MixedStart(RandomStart(), 0.3)(threat, many, PerExample(0, torch.arange(320))) == many)[7:8],
    )
    with pytest.raises(UserError, match=r"clean = 1.5 is not a probability"):
        MixedStart(RandomStart(), 1.5)


# -- crafting by the statistics of the batch


def crafted(attack, view, seen=None):
    """One step of a method on 64 images, and how many of them each forward pass had."""
    torch.manual_seed(0)
    model, data, sizes = toy_net().train(), toy_data(64), []
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    method = Method(attack, CrossEntropy(), inner_mode=view)
    state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=0.1))
    batch = Batch(pixels(data.x), data.y, torch.arange(64))
    train_step(method, state, batch, Progress(1, 10, 1), backend=OriginalModel())
    return sizes


@pytest.mark.parametrize("view", [train_mode, batch_statistics])
def test_batch_norm_that_goes_by_the_batch_sees_all_images_at_every_step_of_patience(view):
    assert set(crafted(PGD(Linf(0.3), steps=5, patience=0), view)) == {64}
    assert min(crafted(PGD(Linf(0.3), steps=5, patience=0), eval_mode)) < 64


def test_patience_on_whole_batches_moves_the_same_images_as_on_parts():
    model, data = toy_net().eval(), toy_data(64)
    loss, x = CE(model, data.y), pixels(data.x)
    for patience in (0, 1, 3):
        attack = PGD(Linf(0.2), steps=6, patience=patience)
        whole = attack(WholeBatch(loss, "norm"), x, make_rng(0))
        assert torch.allclose(whole, attack(loss, x, make_rng(0)), atol=1e-6)
    with pytest.raises(
        UserError, match="patience = 1 needs a loss that reports which examples are fooled, and KLDivergence does not"
    ):
        PGD(BALL, patience=1)(WholeBatch(KLDivergence(model, model(x).softmax(1).detach()), "norm"), x, make_rng(0))


@pytest.mark.parametrize(
    "attack", [Restarts(PGD(BALL, 2), 2), Worst((FGSM(BALL), FGSM(BALL))), Split(((0.5, Benign()), (0.5, FGSM(BALL))))]
)
def test_attacks_that_take_rows_out_of_a_batch_are_refused_where_batch_norm_goes_by_the_batch(attack):
    crafted(attack, eval_mode)
    with pytest.raises(UserError, match=r"takes some rows out of a batch of which 2 \(BatchNorm1d\)"):
        crafted(attack, train_mode)
