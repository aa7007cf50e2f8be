import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import count, toy_data, toy_net

import sparring as sp
from sparring import (
    FGSM,
    PGD,
    Batch,
    Benign,
    Build,
    Context,
    CrossEntropy,
    GaussianStart,
    Linf,
    Method,
    OptimizerStep,
    Progress,
    State,
    Sum,
    UserError,
    train_step,
)
from sparring.acceleration import AcceleratedCopy, OriginalModel
from sparring.core.rng import PerExample, mixed_seed, uniform
from sparring.core.schedules import Cycle
from sparring.core.teachers import Teacher
from sparring.core.types import ForwardCache, pixels
from sparring.models import small_cnn
from sparring.objectives import (
    ARD,
    FARE,
    FATTRADES,
    HAT,
    IKL,
    LBGAT,
    MAILAT,
    MAILTRADES,
    MLCAT,
    SCORE,
    AdaAD,
    DualTeacher,
)
from sparring.recipes import find
from sparring.testing import _toy, check_objective

BALL = Linf(8 / 255)
TEACHER = Teacher.of(_toy((3, 8, 8), seed=5)[0])
SHORT = PGD(BALL, steps=3)

# one line for a new method
OBJECTIVES = [
    sp.CrossEntropy(),
    sp.CrossEntropy(label_smoothing=0.2),
    sp.Sum((sp.CrossEntropy(),)),
    sp.TRADES(),
    sp.CrossEntropy(clean=0.5),
    sp.CrossEntropy(clean=0.5, weight=2.0),
    sp.MART(),
    sp.objectives.MixUp(),
    sp.Sum((sp.CrossEntropy(clean=0.5), sp.LogitPairing())),
    sp.Sum((sp.CrossEntropy(), sp.objectives.GradAlign(BALL))),
    sp.objectives.Staged(((2, sp.objectives.MixUp()), (1, sp.TRADES()))),
    sp.objectives.BatchNormStatistics(sp.CrossEntropy(), "both"),
    sp.Sum((sp.CrossEntropy(), sp.TemporalEnsembling(3.0))),
    sp.Sum((sp.TRADES(), sp.TemporalEnsembling(sp.core.schedules.Ramp(3.0, 2, 2), on="clean"))),
    HAT(TEACHER),
    ARD(TEACHER, share=0.9),
    AdaAD(TEACHER, share=0.9),
    FARE(TEACHER),
    DualTeacher(TEACHER, TEACHER),
    IKL(attack_beta=1.0),
    LBGAT(Build(small_cnn, width=2), beta=2.0),
    SCORE(clip=0.01),
    MAILAT(),
    MAILTRADES(),
    FATTRADES(),
    MLCAT(1.0),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(Benign(), id="benign", marks=pytest.mark.slow),
        pytest.param(SHORT, id="pgd"),
        pytest.param(
            Cycle(((2, Benign()), (1, FGSM(BALL, start=GaussianStart())))), id="cycle", marks=pytest.mark.slow
        ),
    ],
)
def test_every_objective_keeps_its_contract(objective, attack):
    check_objective(objective, attack)


def one_step(objective, attack, model, backend=OriginalModel()):  # noqa: B008
    """Not the very first, which also runs 8 images to check them."""
    data = toy_data()
    state = State.start(Method(attack, objective), model, torch.optim.SGD(model.parameters(), lr=0.1), data)
    state.notes["search"] = backend.kind(model)  # what the step before took
    index = torch.arange(12)
    batch = Batch(pixels(data.x[index]), data.y[index], index)
    return train_step(Method(attack, objective), state, batch, Progress(1, 5, 1), OptimizerStep(), backend)


# forwards, backwards: what the theory asks for
PASSES = [
    (CrossEntropy(), Benign(), 1, 1),
    (CrossEntropy(), PGD(BALL, steps=10), 11, 11),
    # 1 + steps + 2 forwards; the first is not differentiated
    (sp.TRADES(), PGD(BALL, steps=10, start=GaussianStart()), 13, 12),
    # added terms share the forward pass of the adversarial point, and the attack that of each iterate
    (Sum((CrossEntropy(), sp.TRADES())), PGD(BALL, steps=10, start=GaussianStart()), 13, 12),
    (sp.MART(), PGD(BALL, steps=10), 12, 12),
    # clean images that the attack leaves alone share their forward pass with the clean term
    (CrossEntropy(clean=0.5), Benign(), 1, 1),
    (CrossEntropy(clean=0.5), FGSM(BALL), 3, 3),
    (Sum((CrossEntropy(clean=0.5), sp.LogitPairing())), PGD(BALL, steps=10), 12, 12),
    (CrossEntropy(), sp.attacks.NFGSM(BALL), 2, 2),
    (CrossEntropy(), sp.attacks.ZeroGrad(BALL), 2, 2),
    (CrossEntropy(), sp.attacks.MultiGrad(BALL, points=3), 4, 4),
    # two input gradients besides, one of them differentiated again
    (Sum((CrossEntropy(), sp.objectives.GradAlign(BALL))), FGSM(BALL), 4, 5),
    (sp.objectives.MixUp(), Benign(), 1, 1),
    (sp.objectives.BatchNormStatistics(CrossEntropy(), "adversarial"), FGSM(BALL), 2, 2),
    (sp.objectives.BatchNormStatistics(CrossEntropy(), "both"), FGSM(BALL), 3, 2),
    # the second net takes passes of its own
    (LBGAT(Build(small_cnn)), PGD(BALL, steps=10, start=GaussianStart()), 13, 12),
    # one clean pass for the bank; the terms share the others
    (Sum((CrossEntropy(), sp.TemporalEnsembling(30.0))), PGD(BALL, steps=10), 12, 11),
    (Sum((sp.TRADES(), sp.TemporalEnsembling(30.0, on="clean"))), PGD(BALL, steps=10, start=GaussianStart()), 14, 12),
]


@pytest.mark.parametrize(("objective", "attack", "forwards", "backwards"), PASSES, ids=lambda v: repr(v)[:40])
def test_a_training_step_takes_as_many_passes_as_the_theory_says(objective, attack, forwards, backwards):
    for backend in (OriginalModel(), AcceleratedCopy()):
        model = toy_net().train()
        seen = count(model)
        one_step(objective, attack, model, backend)
        seen.forwards = seen.backwards = 0  # the first step also proves the copy
        one_step(objective, attack, model, backend)
        assert (seen.forwards, seen.backwards) == (forwards, backwards), backend


def test_label_smoothing_acts_on_the_update_and_not_on_the_attack():
    model, data = toy_net().eval(), toy_data(12)
    ctx = Context(
        ForwardCache(model), Batch(pixels(data.x), data.y, torch.arange(12)), torch.nn.Module(), Progress(0, 1, 1)
    )
    objective = CrossEntropy(label_smoothing=0.3)
    logits = model(ctx.batch.x)
    assert torch.allclose(objective.inner(ctx)(ctx.batch.x).value, F.cross_entropy(logits, data.y, reduction="none"))
    target = torch.full_like(logits, 0.15).scatter_(1, data.y[:, None], 0.7)  # 1 - s, and s / (C - 1) elsewhere
    assert torch.allclose(objective.outer(ctx, ctx.batch.x)["ce"], F.cross_entropy(logits, target))


def test_two_terms_of_one_name_are_refused():
    with pytest.raises(UserError, match="both call a term 'ce'"):
        one_step(Sum((CrossEntropy(), CrossEntropy())), Benign(), toy_net())


def context(model, step=0):
    data = toy_data(12)
    return Context(
        ForwardCache(model),
        Batch(pixels(data.x), data.y, torch.arange(12)),
        torch.nn.Module(),
        Progress(step, 10, 1),
        step,
    )


def number(tensor):
    return tensor.detach().item()


def test_trades_is_the_formula_of_its_paper():
    """Written out in numpy, all in double precision: CE(z(x), y) + beta mean_i sum_c p_ic log(p_ic / q_ic)."""
    model, data = toy_net().eval().double(), toy_data(12)
    batch = Batch(pixels(data.x).double(), data.y, torch.arange(12))
    ctx = Context(ForwardCache(model), batch, torch.nn.Module(), Progress(0, 1, 1))
    x_adv = (ctx.batch.x + 0.05).clamp(0, 1)
    with torch.no_grad():
        p, q = (model(x).softmax(1).numpy() for x in (ctx.batch.x, x_adv))
        terms = sp.TRADES(beta=4.0).outer(ctx, x_adv)
        inner = sp.TRADES(beta=4.0).inner(ctx)(x_adv).value.numpy()
    assert float(terms["kl"]) == pytest.approx(4.0 * (p * np.log(p / q)).sum(1).mean(), rel=1e-9)
    assert float(terms["ce_clean"]) == pytest.approx(-np.log(p[np.arange(12), ctx.batch.y]).mean(), rel=1e-9)
    assert inner == pytest.approx(4.0 * (p * np.log(p / q)).sum(1), rel=1e-8)


def test_trades_differentiates_both_predictions_in_the_update():
    """The released code does; with the clean prediction detached the gradient is another."""
    model = toy_net().eval()
    ctx = context(model)
    x_adv = (ctx.batch.x + 0.05).clamp(0, 1)
    (ours,) = torch.autograd.grad(sp.TRADES().outer(ctx, x_adv)["kl"], model[1].weight)
    clean, adv = model(ctx.batch.x), model(x_adv).log_softmax(1)
    both = 6 * F.kl_div(adv, clean.softmax(1), reduction="batchmean")
    held = 6 * F.kl_div(adv, clean.detach().softmax(1), reduction="batchmean")
    (wanted,) = torch.autograd.grad(both, model[1].weight, retain_graph=True)
    (other,) = torch.autograd.grad(held, model[1].weight)
    assert torch.allclose(ours, wanted, atol=1e-6)
    assert not torch.allclose(ours, other, atol=1e-4)


def test_a_sum_adds_the_inner_losses_and_asks_each_part_for_its_terms():
    model = toy_net().eval()
    ctx = Context(
        ForwardCache(model),
        context(model).batch,
        Sum((CrossEntropy(), sp.TRADES())).init(toy_data()),
        Progress(0, 1, 1),
    )
    both = Sum((CrossEntropy(), sp.TRADES()))
    x_adv = (ctx.batch.x + 0.05).clamp(0, 1)
    parts = [part.inner(context(model))(x_adv).value for part in both.parts]
    assert torch.allclose(both.inner(ctx)(x_adv).value, sum(parts))
    assert set(both.outer(ctx, x_adv)) == {"ce", "ce_clean", "kl"}
    assert both.inner(ctx)(x_adv).fooled is not None


def test_trades_has_a_finite_gradient_where_a_probability_underflows():
    """With probabilities instead of their logarithms the gradient is NaN from here on (0 / 0)."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[100.0], [0.0], [-100.0]]).expand(3, 16))
    ctx = context(model)
    assert (model(ctx.batch.x).softmax(1) == 0).any()
    sum(sp.TRADES().outer(ctx, (ctx.batch.x + 0.05).clamp(0, 1)).values()).backward()
    assert model[1].weight.grad.isfinite().all()


def test_mart_is_the_formula_of_its_code():
    model = toy_net().eval()
    ctx = context(model)
    z = (ctx.batch.x + 0.03).clamp(0, 1)
    terms = sp.MART(beta=5.0).outer(ctx, z)
    p, q = (model(x).detach().double().softmax(1).numpy() for x in (ctx.batch.x, z))
    y = ctx.batch.y.numpy()
    bce, kl = [], []
    for clean, other, label in zip(p, q, y, strict=True):
        wrong = max(v for k, v in enumerate(other) if k != label)
        bce.append(-np.log(other[label]) - np.log(1.0001 - wrong + 1e-12))
        kl.append(np.sum(clean * (np.log(clean) - np.log(other))) * (1.0000001 - clean[label]))
    assert number(terms["bce"]) == pytest.approx(np.mean(bce), rel=1e-5)
    assert number(terms["kl"]) == pytest.approx(5.0 * np.mean(kl), rel=1e-2)


def test_mixed_cross_entropy_weighs_clean_and_adversarial_images():
    model = toy_net().eval()
    ctx = context(model)
    z = (ctx.batch.x + 0.1).clamp(0, 1)
    terms = CrossEntropy(clean=0.25).outer(ctx, z)
    assert number(terms["ce"]) == pytest.approx(0.75 * number(F.cross_entropy(model(z), ctx.batch.y)), rel=1e-5)
    clean = number(F.cross_entropy(model(ctx.batch.x), ctx.batch.y))
    assert number(terms["ce_clean"]) == pytest.approx(0.25 * clean, rel=1e-5)
    with pytest.raises(UserError, match="sum to 1, and clean = 1 is not"):
        CrossEntropy(clean=1.0)


@pytest.mark.parametrize("classes", [3, 7])
def test_logit_pairing_is_the_mean_squared_error_over_all_logits(classes):
    model = toy_net(classes=classes).eval()
    ctx = context(model)
    z = (ctx.batch.x + 0.1).clamp(0, 1)
    clean, moved = model(ctx.batch.x), model(z)
    found = number(sp.LogitPairing(0.5).outer(ctx, z)["pairing"])
    assert found == pytest.approx(0.5 * number(F.mse_loss(clean, moved)), rel=1e-5)
    length = number(sp.LogitPairing(0.5, "length").outer(ctx, z)["pairing"])
    assert length == pytest.approx(0.5 * np.linalg.norm((clean - moved).detach().numpy(), axis=1).mean(), rel=1e-5)
    with pytest.raises(UserError, match="distance = 'l1' is not one of squared, length"):
        sp.LogitPairing(0.5, "l1")


def test_the_recipe_of_logit_pairing_has_the_summed_loss_of_the_number_that_it_quotes():
    model = toy_net().eval()
    ctx = context(model)
    z = (ctx.batch.x + 0.1).clamp(0, 1)
    clean, moved = model(ctx.batch.x), model(z)
    both = F.cross_entropy(clean, ctx.batch.y) + F.cross_entropy(moved, ctx.batch.y)
    for summed, share in ((True, 1.0), (False, 0.5)):
        objective = find("cifar10_rn18_alp")(summed=summed).method.objective
        ctx = Context(ctx.lens, ctx.batch, objective.init(toy_data()), ctx.progress)
        found = sum(number(term) for term in objective.outer(ctx, z).values())
        assert found == pytest.approx(number(share * both + 0.5 * F.mse_loss(clean, moved)), rel=1e-5)
    with pytest.raises(UserError, match="weight = 0 of the cross-entropy is not a finite number above 0"):
        CrossEntropy(weight=0.0)


def test_consistency_is_the_divergence_of_two_sharpened_views():
    model = toy_net().eval()
    data = toy_data()
    x, index = pixels(data.x[:12]), torch.arange(6).repeat(2)
    ctx = Context(ForwardCache(model), Batch(x, data.y[index], index, 2), torch.nn.Module(), Progress(0, 10, 1))
    found = number(sp.objectives.Consistency(weight=2.0, temperature=0.5).outer(ctx, x)["consistency"])
    p, q = (model(x) / 0.5).softmax(1).detach().numpy().reshape(2, 6, 3)
    m = (p + q) / 2
    wanted = np.mean(np.sum(p * np.log(p / m), 1) + np.sum(q * np.log(q / m), 1)) / 2
    assert found == pytest.approx(2.0 * wanted, rel=1e-4, abs=1e-7)  # differences of float32
    alone = Context(ForwardCache(model), Batch(x, data.y[:12], torch.arange(12)), torch.nn.Module(), Progress(0, 10, 1))
    with pytest.raises(UserError, match="every image twice"):
        sp.objectives.Consistency().outer(alone, x)
    odd = Context(ForwardCache(model), Batch(x[:3], data.y[:3], torch.arange(3)), torch.nn.Module(), Progress(0, 10, 1))
    with pytest.raises(UserError, match="every image twice"):
        sp.objectives.Consistency().outer(odd, x[:3])


def test_a_term_alone_is_no_method():
    with pytest.raises(UserError, match="add it to a method"):
        sp.LogitPairing().inner(context(toy_net()))
    with pytest.raises(UserError, match="a sum needs a method"):
        Sum((sp.LogitPairing(), sp.objectives.Consistency()))


def test_grad_align_is_nothing_for_a_linear_model_and_straightens_a_bent_one():
    torch.manual_seed(0)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))  # one direction, up or down
    ctx = context(linear)
    ctx = Context(ctx.lens, Batch(ctx.batch.x, ctx.batch.y % 2, ctx.batch.index), ctx.memory, ctx.progress)
    term = sp.objectives.GradAlign(Linf(0.3), 1.0)
    assert number(term.outer(ctx, ctx.batch.x)["misalignment"]) == pytest.approx(0.0, abs=1e-6)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3))
    with torch.no_grad():
        model[1].weight.mul_(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    first = number(term.outer(context(model), ctx.batch.x)["misalignment"])
    for step in range(60):
        OptimizerStep()(model, optimizer, lambda step=step: term.outer(context(model, step), ctx.batch.x))
    assert number(term.outer(context(model), ctx.batch.x)["misalignment"]) < 0.5 * first


def test_grad_align_has_the_gradient_of_finite_differences_with_the_first_place_held():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    model, weight, step, size = model.double(), model[1].weight, 1e-5, 0.2
    data = toy_data()
    x, y = pixels(data.x[:12]).double(), data.y[:12]
    ctx = Context(ForwardCache(model), Batch(x, y, torch.arange(12)), torch.nn.Module(), Progress(0, 10, 1))
    sp.objectives.GradAlign(Linf(size), 1.0).outer(ctx, x)["misalignment"].backward()
    near = x + uniform(x, PerExample(mixed_seed(0, "alignment"), torch.arange(len(x))), -size, size)

    def value_and_grad(points):
        points = points.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(model(points), y, reduction="sum"), points)[0].flatten(1)

    here, found = value_and_grad(x), []
    for side in (step, -step):
        with torch.no_grad():
            weight[2, 5] += side
        found.append(1 - F.cosine_similarity(here, value_and_grad(near), dim=1).mean().item())
        with torch.no_grad():
            weight[2, 5] -= side
    assert weight.grad[2, 5].item() == pytest.approx((found[0] - found[1]) / (2 * step), rel=1e-4)


@pytest.mark.slow
def test_grad_align_refuses_what_cannot_be_differentiated_twice():
    compiled = torch.compile(toy_net(), backend="eager")
    with pytest.raises(UserError, match="differentiates twice"):
        sp.objectives.GradAlign(BALL).outer(context(compiled), context(compiled).batch.x)
    inside = toy_net()
    inside.compile(backend="eager")
    with pytest.raises(UserError, match="before torch"):
        sp.objectives.GradAlign(BALL).outer(context(inside), context(inside).batch.x)


def test_images_without_a_gradient_are_left_out_of_grad_align():
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.w * torch.zeros(len(x), 3) + 0 * x.flatten(1)[:, :3]

    terms = sp.objectives.GradAlign(BALL).outer(context(Flat()), context(Flat()).batch.x)
    assert number(terms["misalignment"]) == 0.0


def test_the_paper_weights_of_grad_align():
    for pixel, weight in ((1, 0.027), (2, 0.036), (4, 0.063), (8, 0.2), (12, 0.632), (16, 2.0)):
        assert sp.objectives.GradAlign.weight_for(pixel / 255) == pytest.approx(weight, rel=0.02)


def test_mixup_is_a_function_of_the_step_and_mixes_the_labels_as_the_images():
    model = toy_net().eval()
    ctx = context(model, step=3)
    one, two = (number(sp.objectives.MixUp(1.0).outer(ctx, ctx.batch.x)["ce_mixed"]) for _ in range(2))
    assert one == two
    assert one != number(sp.objectives.MixUp(1.0).outer(context(model, step=4), ctx.batch.x)["ce_mixed"])
    # where all images and labels are alike, there is nothing to mix
    x, y = ctx.batch.x[:1].repeat(4, 1, 1, 1), ctx.batch.y[:1].repeat(4)
    alike = Context(ForwardCache(model), Batch(x, y, torch.arange(4)), torch.nn.Module(), Progress(1, 10, 1))
    plain = number(F.cross_entropy(model(x), y))
    assert number(sp.objectives.MixUp(0.4).outer(alike, x)["ce_mixed"]) == pytest.approx(plain, rel=1e-5)
    with pytest.raises(UserError, match="alpha = 0 of mixup"):
        sp.objectives.MixUp(0.0)


def test_stages_take_turns_and_each_keeps_its_memory():
    staged = sp.objectives.Staged(((2, sp.objectives.MixUp()), (1, CrossEntropy())))
    model = toy_net().eval()
    names = []
    for step in range(6):
        ctx = context(model, step)
        ctx = Context(ctx.lens, ctx.batch, staged.init(toy_data()), ctx.progress)
        names += list(staged.outer(ctx, ctx.batch.x))
    assert names == ["ce_mixed", "ce_mixed", "ce"] * 2
    for lengths in ((0, 1), (1.5, 1)):
        with pytest.raises(UserError, match="whole steps"):
            sp.objectives.Staged(tuple((n, CrossEntropy()) for n in lengths))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "order"), [("cifar10_rn18_pgd", "adv clean clean"), ("cifar10_wrn34_10_trades", "clean adv clean")]
)
def test_released_statistics_are_moved_in_the_order_of_the_released_codes(name, order):
    model = toy_net().train()
    ctx = context(model)
    z, seen = (ctx.batch.x + 0.3).clamp(0, 1), []
    model.register_forward_pre_hook(lambda module, args: seen.append("clean" if args[0] is ctx.batch.x else "adv"))
    find(name)(moved="released").method.objective.outer(ctx, z)
    assert seen == order.split()
    clean, adv = (model[1](x.flatten(1)).mean(0) for x in (ctx.batch.x, z))
    steps, momentum = 60, 0.1
    for _ in range(steps - 1):
        find(name)(moved="released").method.objective.outer(context(model), z)
    share = (model[2].running_mean - adv) / (clean - adv)
    wanted = sum(momentum * (1 - momentum) ** i for i, kind in enumerate(order.split()[::-1]) if kind == "clean")
    assert share.median().item() == pytest.approx(wanted / (1 - (1 - momentum) ** 3), abs=1e-3)  # 70 %, 67 %
    with pytest.raises(UserError, match="moved = 'all' is not one of update, released"):
        find(name)(moved="all")


@pytest.mark.parametrize(
    ("of", "wanted"), [("adversarial", "adversarial"), ("clean", "clean"), ("both", "adversarial, clean")]
)
@pytest.mark.parametrize("method", [CrossEntropy(), sp.TRADES()], ids=repr)
def test_only_the_chosen_forward_passes_move_the_statistics(method, of, wanted):
    model = toy_net().train()
    ctx = context(model)
    z = (ctx.batch.x + 0.3).clamp(0, 1)
    before = model[2].running_mean.clone()
    sp.objectives.BatchNormStatistics(method, of).outer(ctx, z)
    found, moved = model[2].running_mean.clone(), int(model[2].num_batches_tracked)
    means = {"adversarial": model[1](z.flatten(1)).mean(0), "clean": model[1](ctx.batch.x.flatten(1)).mean(0)}
    each = wanted.split(", ")
    assert moved == len(each)
    if len(each) == 1:
        assert torch.allclose(found, 0.9 * before + 0.1 * means[each[0]], atol=1e-6)
    else:  # TRADES runs the clean images first, cross-entropy last
        order = each[::-1] if isinstance(method, sp.TRADES) else each
        for name in order:
            before = 0.9 * before + 0.1 * means[name]
        assert torch.allclose(found, before, atol=1e-6)
