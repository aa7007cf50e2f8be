"""Checks that a threat, an attack, an objective or a model of your own works with the rest of the library.

Call a check in a test of your own; it raises `AssertionError`, which names the property that does not hold.

    def test_my_attack_keeps_its_contract():
        check_attack(MyAttack(Linf("8/255")), within=Linf("8/255"))
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attacks.losses import CE
from .core.errors import UserError
from .core.modes import eval_mode, frozen
from .core.rng import PerExample, make_rng
from .core.types import (
    Attack,
    Batch,
    Classifier,
    Context,
    Forward,
    ForwardCache,
    Objective,
    PerExampleLoss,
    Progress,
    Schedule,
    TensorData,
    Threat,
    at,
)
from .core.validation import check_logits, checked_loss, checked_output, checked_terms
from .core.walk import walk
from .training.engine import Method, State, train_step

ROUNDING = 1e-5


def check_threat(threat: Threat, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0) -> None:
    """Check a threat: its `sample`, `project`, `ascent` and `norm`.

    `sample` and `project` give points in the ball and in [0, 1], and `project` leaves points inside unchanged. A step
    of `ascent` increases the loss, has norm 1 at most, and is finite for a zero gradient. Examples do not influence
    each other.

    Args:
        threat: threat to check.
        shape: channels, height and width of the images.
        seed: seed of the images and of the samples.

    Raises:
        AssertionError: when a property does not hold.
    """
    rng = make_rng(seed)
    x = torch.rand(16, *shape, generator=rng)
    x[:4] = x[:4].round()  # corners of [0, 1], where clipping acts
    sampled = threat.sample(x, rng)
    _inside(threat, sampled, x, "a sample")
    _expect(not torch.equal(sampled, threat.sample(x, rng)), "two samples differ")
    _expect(torch.equal(threat.sample(x, make_rng(1)), threat.sample(x, make_rng(1))), "equal seeds give equal samples")
    far = x + 3 * torch.randn(x.shape, generator=rng)
    kept = x.clone(), far.clone()
    z = threat.project(far, x)
    _expect(torch.equal(x, kept[0]) and torch.equal(far, kept[1]), "project leaves its arguments as they were")
    _inside(threat, z, x, "a projected point")
    _close(threat.project(z, x), z, "projecting twice is projecting once")
    _close(threat.project(sampled, x), sampled, "a point inside is its own projection")
    _close(
        torch.cat([threat.project(f[None], o[None]) for f, o in zip(far, x, strict=True)]),
        z,
        "examples do not influence each other",
    )
    grad = torch.randn(x.shape, generator=rng)
    grad[0] = 0
    step = threat.ascent(grad)
    _expect(bool(step.isfinite().all()), "a zero gradient gives a finite step")
    _expect(float(threat.norm(step).max()) <= 1 + ROUNDING, "a step is no longer than 1")
    _expect(bool(((step * grad).flatten(1).sum(1)[1:] > 0).all()), "a step increases the loss")


def check_attack(
    attack: Attack,
    within: Threat,
    shape: tuple[int, int, int] = (3, 8, 8),
    seed: int = 0,
    loss: Callable[[Forward, Tensor], PerExampleLoss] = CE,
) -> None:
    """Check an attack: its adversarial examples, and that it changes nothing else.

    The adversarial examples lie in `within`, are equal for equal seeds, and do not decrease the loss on average. The
    attack returns a detached tensor, leaves the images, the model, its mode and its gradients unchanged, and takes a
    batch of a single example.

    Args:
        attack: attack to check.
        within: threat in which the adversarial examples must lie.
        shape: channels, height and width of the images.
        seed: seed of the model, of the images and of the attack.
        loss: makes the loss that is attacked from a model and labels `[B]`.

    Raises:
        AssertionError: when a property does not hold.
    """
    model, x, y = _toy(shape, seed)
    before, kept = copy.deepcopy(model.state_dict()), x.clone()
    with eval_mode(model):
        attacked = loss(model, y)
        z = attack(attacked, x, make_rng(seed))
        again = attack(attacked, x, make_rng(seed))
        with torch.no_grad():
            rise = float((attacked(z).value - attacked(x).value).mean())
        single = attack(loss(model, y[:1]), x[:1], make_rng(seed))
        exact, fine, index = copy.deepcopy(model).double(), x.double(), torch.arange(len(x))
        each = attack(loss(exact, y), fine, PerExample(seed, index))
        few = attack(loss(exact, y[3:6]), fine[3:6], PerExample(seed, index[3:6]))
    _expect(torch.equal(x, kept), "the images are as they were")
    _expect(z.shape == x.shape and z.dtype == x.dtype and not z.requires_grad, "the result is a detached image batch")
    _expect(single.shape == x[:1].shape, "a single example is a batch")
    _inside(within, z, x, "an adversarial example")
    _expect(torch.equal(z, again), "equal seeds give equal points")
    _close(
        few,
        each[3:6],
        "with one random stream per example, a part of the examples gets the same points as in the whole batch",
    )
    _expect(rise >= -ROUNDING, f"the loss increases; here it decreased by {-rise:.3g} on average")
    _expect(all(torch.equal(t, before[n]) for n, t in model.state_dict().items()), "the model is as it was")
    _expect(all(p.grad is None for p in model.parameters()), "no gradient is left in the parameters")
    _expect(all(p.requires_grad for p in model.parameters()) and model.training, "mode and flags are as they were")


def check_objective(
    objective: Objective, attack: Attack | Schedule[Attack], shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0
) -> None:
    """Check an objective: its inner loss, its terms and its memory.

    The inner loss is one number per example, and `loss[rows]` is the loss of some of them. The terms are scalars with a
    gradient with respect to the weights. Neither loss changes the memory. Training is reproducible from its seed, and
    resumes bit for bit from a saved state.

    Args:
        objective: objective to check.
        attack: attack of the training steps, or a schedule of attacks.
        shape: channels, height and width of the images.
        seed: seed of the model, of the images and of the training.

    Raises:
        AssertionError: when a property does not hold.
    """
    try:
        _check_one_step(objective, attack, shape, seed)
    except UserError as error:  # what a training would say
        raise AssertionError(f"it should hold that a training takes the objective: {error}") from error
    method = Method(attack, objective)
    whole, half = (_trained(method, shape, seed, steps) for steps in (6, 3))
    _same(whole, _trained(method, shape, seed, 6), "training is reproducible from its seed")
    fresh = _start(method, shape, seed, other=True)
    for name, module in fresh.modules().items():
        module.load_state_dict(copy.deepcopy(half.modules()[name].state_dict()))
    fresh.load_state_dict(copy.deepcopy(half.state_dict()))
    _same(whole, _steps(method, fresh, shape, seed, 6), "training resumes from a saved state bit for bit")
    finite = all(bool(p.isfinite().all()) for p in whole.model.parameters())
    _expect(finite, "the parameters stay finite")


def _check_one_step(
    objective: Objective, attack: Attack | Schedule[Attack], shape: tuple[int, int, int], seed: int
) -> None:
    model, x, y = _toy(shape, seed)
    memory = objective.init(TensorData(x, y, ("a", "b", "c")))
    batch = _batch(objective, x, y, torch.arange(len(x)))
    x, ctx = batch.x, Context(ForwardCache(model), batch, memory, progress := Progress(0, 4, 2))
    with eval_mode(model), frozen(model):
        with torch.no_grad():
            objective.observe(ctx)
            ctx = replace(ctx, start=objective.start(ctx))
        remembered = copy.deepcopy(memory.state_dict())
        loss = checked_loss(objective.inner(ctx), objective)
        rows = torch.tensor([2, 0])
        value = checked_output(loss(x), x, loss).value
        _expect(value.shape == (len(x),), f"the inner loss is one number per example, not {tuple(value.shape)}")
        _close(loss[rows](x[rows]).value, value[rows], "loss[rows] is the same function for some of the examples")
        _unchanged(memory, remembered, "the loss of the attack changes no memory")
        z = objective.attacking(ctx, at(attack, progress))(loss, x, make_rng(seed))
        with torch.no_grad():
            objective.remember(ctx, z)
    remembered = copy.deepcopy(memory.state_dict())
    terms = checked_terms(objective.outer(ctx.on(model), z), objective)
    torch.stack(list(terms.values())).sum().backward()
    _expect(
        any(p.grad is not None and bool(p.grad.any()) for p in model.parameters()),
        "the terms have a gradient with respect to the weights",
    )
    _unchanged(memory, remembered, "the loss of the update changes no memory")


def _unchanged(memory: nn.Module, before: dict[str, Tensor], what: str) -> None:
    _expect(all(torch.equal(t, before[n]) for n, t in memory.state_dict().items()), what)


def check_model(model: nn.Module, shape: tuple[int, int, int], num_classes: int, seed: int = 0) -> None:
    """Check a model: its logits, its gradient and its weights.

    The model gives finite logits for any batch of images in [0, 1]; in eval mode, images do not influence each other.
    Every image has a finite, nonzero gradient, and saved and loaded weights give the same logits.

    Args:
        model: model to check.
        shape: channels, height and width of the images.
        num_classes: number of classes.
        seed: seed of the images.

    Raises:
        AssertionError: when a property does not hold.
    """
    x = torch.rand(4, *shape, generator=make_rng(seed))
    kept = x.clone()
    with eval_mode(model):
        with torch.no_grad():
            out = model(x)
            alone = torch.cat([model(image[None]) for image in x])
        z = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(z), torch.zeros(4, dtype=torch.long)), z)
    try:
        check_logits(out, len(x), num_classes)
    except UserError as error:
        raise AssertionError(f"it should hold that the model gives logits: {error}") from error
    _expect(bool(out.isfinite().all()), "logits are finite")
    _expect(torch.allclose(out, alone, atol=1e-4, rtol=1e-4), "in eval mode images do not influence each other")
    _expect(bool(grad.isfinite().all()) and bool(grad.flatten(1).any(1).all()), "every image has a gradient")
    _expect(torch.equal(x, kept), "the images are as they were")
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    copied.load_state_dict(model.state_dict())
    with eval_mode(copied), torch.no_grad():
        _expect(torch.equal(copied(x), out), "saved and loaded weights give the same logits")


# -- a toy model and toy data for the checks


def _toy(shape: tuple[int, int, int], seed: int) -> tuple[Classifier, Tensor, Tensor]:
    """A classifier with batch norm, and twelve images in three classes."""
    size = shape[0] * shape[1] * shape[2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.BatchNorm1d(16), nn.ReLU())
        model = Classifier(body, nn.Linear(16, 3))
    x = torch.rand(12, *shape, generator=make_rng(seed))
    return model, x, torch.arange(12) % 3


def _start(method: Method, shape: tuple[int, int, int], seed: int, other: bool = False) -> State:
    """Initial state; with `other`, on the same images with other weights and another seed of training."""
    model, x, y = _toy(shape, seed)
    if other:
        model = _toy(shape, seed + 1)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return State.start(method, model, optimizer, TensorData(x, y, ("a", "b", "c")), seed + other)


def _steps(method: Method, state: State, shape: tuple[int, int, int], seed: int, until: int) -> State:
    """Train to step `until`, on batches that depend on the step alone."""
    _, x, y = _toy(shape, seed)
    while state.step < until:
        index = torch.randperm(len(x), generator=make_rng(state.step))[:6]
        batch = _batch(method.objective, x[index], y[index], index)
        train_step(method, state, batch, Progress(state.step, 3, 2))
        state.step += 1
    return state


def _batch(objective: Objective, x: Tensor, y: Tensor, index: Tensor) -> Batch:
    """Return a batch with as many views as the objective needs, of which the others are mirrored."""
    views = max(each.needs_views for each in walk(objective) if isinstance(each, Objective))
    images = torch.cat([x, *[x.flip(3)] * (views - 1)])
    return Batch(images, y.repeat(views), index.repeat(views), views=views)


def _trained(method: Method, shape: tuple[int, int, int], seed: int, until: int) -> State:
    return _steps(method, _start(method, shape, seed), shape, seed, until)


def _same(a: State, b: State, what: str) -> None:
    for left, right in ((a.model, b.model), (a.memory, b.memory)):
        pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
        _expect(all(torch.equal(p, q) for p, q in pairs), what)


def _inside(threat: Threat, z: Tensor, x: Tensor, what: str) -> None:
    largest = float(threat.norm(z - x).max())
    _expect(largest <= threat.eps * (1 + ROUNDING) + 1e-6, f"{what} lies within {threat!r}, not {largest:.6g} away")
    _expect(float(z.min()) >= 0 and float(z.max()) <= 1, f"{what} lies in [0, 1], not in [{z.min():g}, {z.max():g}]")


def _close(a: Tensor, b: Tensor, what: str) -> None:
    _expect(torch.allclose(a, b, atol=ROUNDING, rtol=ROUNDING), what)


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(f"it should hold that {what}")
