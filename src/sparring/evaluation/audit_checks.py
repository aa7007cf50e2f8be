"""The signs of masked gradients, one function each: a figure, a threshold with its source, a verdict, and advice."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks import APGD, PGD, RandomStart
from ..attacks.gradients import value_and_grad
from ..attacks.losses import CE, Margin
from ..attacks.threats import L1, L2, Linf
from ..core.errors import UserError
from ..core.gate import as_taken
from ..core.modes import mode_matters
from ..core.rng import draws_kept, make_rng
from ..core.types import PerExampleLoss, TensorData, Threat
from ..core.validation import SQUASHED, refuse_probabilities, squashed
from ..models import small_cnn
from ..records.results import Finding
from .adversaries import WhiteBox
from .audit_context import AuditContext, Verdict, above, finding, skip
from .verifier import Verifier, counting, random_share

Check = Callable[[AuditContext], Finding]


# -- properties of the model


def train_mode(model: nn.Module) -> Finding:
    """Warn of a model in training mode, if that changes its answers."""
    layer = mode_matters(model)
    meaning = f"{layer} is in training mode" if layer else "no layer is in training mode that behaves differently there"
    advice = "the audit runs in eval mode; call model.eval() wherever you report figures"
    return finding("train mode", float(layer is not None), meaning, "warn" if layer else "pass", "none", advice)


@torch.no_grad()
def output(model: nn.Module, data: TensorData) -> Finding:
    """Check that the model gives logits, not probabilities, and that it expects images in [0, 1]."""
    x, y = data.x, data.y
    try:
        verdict = Verifier(model)(x, y, len(data.classes))
        if bool(verdict.probable.all()):
            refuse_probabilities()
    except UserError as error:
        return finding("output", None, str(error), "fail", "logits", "correct that, and audit again")
    if squashed(model(x)):
        return finding("output", None, SQUASHED, "warn", "logits", "remove the sigmoid, and audit again")
    share, chance = float(verdict.right.float().mean()), 1 / len(data.classes)
    known: Verdict = "warn" if share < 2 * chance else "pass"
    advice = "clean accuracy is near chance: does the model expect other pixels than [0, 1]? Give --mean and --std"
    threshold = f"at least twice chance, {200 * chance:.0f} % (ours)"
    return finding("output", share, f"clean accuracy {100 * share:.1f} %", known, threshold, advice)


def optimisation_inside(model: nn.Module, x: Tensor) -> Finding:
    """Check that forward does not differentiate: such a defence adapts to its input, and standard attacks miss that."""
    with counting() as calls, torch.no_grad():
        model(x)
    advice = "the defence optimises at test time: attack it adaptively, through its own steps (Tramèr et al. 2020)"
    meaning = f"autograd runs {len(calls)} times in one forward"
    verdict: Verdict = "fail" if calls else "pass"
    return finding("optimisation inside", float(len(calls)), meaning, verdict, "0 (AutoAttack's check)", advice)


# -- gradients of the model


@torch.no_grad()
def randomness(case: AuditContext) -> Finding:
    """Check that two passes over the same images give the same logits."""
    share = random_share(case.model(case.x).float(), case.model(case.x).float())
    advice = 'average over the noise: evaluate with AutoAttack(threat, "rand"), and report the mean over many draws'
    meaning = f"{100 * share:.1f} % of examples get other logits the second time"
    threshold = "normalised logits within 1e-4 (AutoAttack's check)"
    return finding("randomness", share, meaning, "fail" if share else "pass", threshold, advice)


def gradient_flow(case: AuditContext) -> Finding:
    """Check that the gradients of cross-entropy and of the margin reach the image and are not zero."""
    name, threshold = "gradient flow", "at most 1 % of examples without a gradient (ours; AutoAttack warns at one)"
    try:
        losses: dict[str, PerExampleLoss] = {
            "the margin": Margin(case.model.__call__, case.y),
            "cross-entropy": CE(case.model.__call__, case.y),
        }
        grads = {what: value_and_grad(loss, case.x).grad.flatten(1) for what, loss in losses.items()}
    except UserError as error:
        case.blocked = "no gradient reaches the image"
        advice = "the forward detaches its input: attack with Square, or through a differentiable stand-in (BPDA)"
        return finding(name, 1.0, str(error).split(":")[0], "fail", threshold, advice)
    lost = float((~torch.cat(list(grads.values()), 1).isfinite()).any(1).float().mean())
    if lost:
        meaning, advice = (
            f"the gradient is NaN or infinite for {100 * lost:.1f} %",
            "an attack cannot follow it: make the gradient finite",
        )
        return finding(name, lost, meaning, "fail", threshold, advice)
    shares = {what: float((~(grad != 0).any(1)).float().mean()) for what, grad in grads.items()}
    what, share = max(shares.items(), key=lambda item: item[1])
    verdict = above(share, 0.0, 0.01)
    advice = {
        "the margin": "the forward has operations without a slope, such as rounding: replace them by a differentiable "
        "stand-in when attacking (BPDA, Athalye et al. 2018)",
        "cross-entropy": "the logits are so large that the loss is flat: attack the margin or DLR instead, which are "
        "flat at no scale of the logits",
    }[what]
    meaning = ", ".join(f"zero gradient of {loss} for {100 * s:.1f} %" for loss, s in shares.items())
    return finding(name, share, meaning, verdict, threshold, advice)


def saturation(case: AuditContext) -> Finding:
    """Check for logits so far apart that the probability of the right class is exactly 1 in float32."""
    with torch.no_grad():
        out = case.model(case.x).float()
    confident = F.softmax(out, 1).gather(1, case.y[:, None])[:, 0]
    share = float((confident >= 1).float().mean())
    verdict = above(share, 0.2, 0.5)
    advice = "cross-entropy is numerically flat there: trust attacks on DLR or the margin alone"
    threshold = "at most half of the examples (ours)"
    meaning = f"probability exactly 1 in float32 for {100 * share:.1f} %"
    return finding("saturated logits", share, meaning, verdict, threshold, advice)


def shattering(case: AuditContext) -> Finding:
    """Check that gradients at neighbouring points agree, as on a loss surface that an attack can climb."""
    name, threshold = "shattered gradients", "mean cosine at least 0.1 (ours; the sign: Balduzzi et al. 2017)"
    if case.blocked:
        return skip(name, case.blocked)
    loss = Margin(case.model.__call__, case.y)
    here = value_and_grad(loss, case.x).grad.flatten(1)
    near = replace_eps(case.threat, case.threat.eps / 10).sample(case.x, case.rng())
    cosine = F.cosine_similarity(here, value_and_grad(loss, near).grad.flatten(1))
    mean = float(cosine.mean())
    advice = "the gradient is noise: average it over draws (EOT), or use attacks without gradients, such as Square"
    verdict: Verdict = "pass" if mean >= 0.2 else "warn" if mean >= 0.1 else "fail"  # NaN fails
    return finding(name, mean, f"cosine {mean:.2f} between points eps / 10 apart", verdict, threshold, advice)


def replace_eps(threat: Threat, eps: float) -> Threat:
    """Replace the radius of a ball; other fields, such as the share of L1, keep their values."""
    return replace(threat, eps=eps)  # type: ignore[type-var]


# -- comparisons of attacks


def large_eps(case: AuditContext) -> Finding:
    """Check that an attack breaks all examples in a ball that holds a uniformly grey image for each of them.

    No classifier can be right about all examples in such a ball.
    """
    name, threshold = "large eps", "accuracy at most 1 % (Carlini et al. 2019: it must reach 0)"
    if case.blocked:
        return skip(name, case.blocked)
    size = case.x[0].numel()
    eps = {Linf: 0.5, L2: 0.5 * math.sqrt(size), L1: 0.5 * size}[type(case.threat)]  # type: ignore[index]
    attack = PGD(replace_eps(case.threat, eps), steps=2 * case.budget.steps, start=RandomStart(), patience=0)
    broken = case.by("large-eps", WhiteBox(attack))
    share = 1 - float(broken.float().mean())
    advice = "the attack fails even where everything is allowed: its results at a small eps mean nothing"
    meaning = f"{100 * share:.1f} % are robust at eps {eps:g}"
    return finding(name, share, meaning, above(share, 0.0, 0.01), threshold, advice)


def black_box(case: AuditContext) -> Finding:
    """Check that Square does not break examples that gradient attacks do not."""
    white = case.best_white()
    share = float((case.black() & ~white).float().mean())
    advice = "gradients are masked: believe the weaker figure, and attack adaptively"
    threshold = "at most 3 % of examples broken by Square alone (ours; AutoAttack warns at 0.2 points)"
    meaning = f"{100 * share:.1f} % are broken by Square in {case.budget.queries} queries but not by APGD"
    return finding("black box", share, meaning, above(share, 0.002, 0.03), threshold, advice)


def random_points(case: AuditContext) -> Finding:
    """Check that random points of the ball do not break examples that gradient attacks do not."""
    name, threshold = "random points", "at most 1 % of examples (Carlini et al. 2019: random search must not win)"
    white = case.best_white()
    rng, lucky = case.rng(), torch.zeros_like(white)
    loss = Margin(case.model.__call__, case.y)
    with torch.no_grad():
        for _ in range(case.budget.samples):
            lucky |= loss(case.threat.sample(case.x, rng)).value > 0
    share = float((lucky & ~white).float().mean())
    advice = "the attack is worse than random search: gradients point the wrong way"
    meaning = f"{100 * share:.1f} % are broken by one of {case.budget.samples} random points but not by APGD"
    return finding(name, share, meaning, above(share, 0.0, 0.01), threshold, advice)


def climbing(case: AuditContext) -> Finding:
    """Check that the attack ends at a higher loss than the best of 10 random points."""
    name, threshold = "climbing", "at most 5 % of examples below their best random point (ours)"
    if case.blocked:
        return skip(name, case.blocked)
    loss, rng = Margin(case.model.__call__, case.y), case.rng()
    found = APGD(case.threat, case.budget.steps, to_the_end=True)(loss, case.x, case.rng())
    with torch.no_grad():
        reached = loss(found).value
        random = torch.stack([loss(case.threat.sample(case.x, rng)).value for _ in range(10)]).amax(0)
    share = float((random > reached).float().mean())
    advice = "the attack does not climb: check its step size, noise in the model, and the gradients"
    meaning = f"{100 * share:.1f} % have a random point of higher loss than that of the attack"
    return finding(name, share, meaning, above(share, 0.01, 0.05), threshold, advice)


def convergence(case: AuditContext) -> Finding:
    """Check that four times the steps do not change the verdict."""
    name, threshold = "more steps", "at most 2 % of examples broken by more steps alone (ours)"
    if case.blocked:
        return skip(name, case.blocked)
    share = float((case.white(4 * case.budget.steps) & ~case.white()).float().mean())
    advice = "the attack has not converged: use more steps and restarts, until nothing is gained"
    meaning = f"{100 * share:.1f} % are broken by {4 * case.budget.steps} steps but not by {case.budget.steps}"
    return finding(name, share, meaning, above(share, 0.01, 0.02), threshold, advice)


CHECKS: tuple[Check, ...] = (
    randomness,
    gradient_flow,
    saturation,
    shattering,
    large_eps,
    black_box,
    random_points,
    climbing,
    convergence,
)


def transfer(case: AuditContext, surrogate: nn.Module | None) -> Finding:
    """Check that adversarial examples of another model are not stronger than attacks on this one."""
    white = case.best_white()
    source = "the surrogate given" if surrogate is not None else "a surrogate trained on the model's answers"
    stand_in = _student(case) if surrogate is None else surrogate
    attack = WhiteBox(APGD(case.threat, case.budget.steps, to_the_end=True))
    x = as_taken(stand_in, case.x)
    found = case.attacked("transfer", lambda rows: attack(stand_in, x[rows], case.y[rows], case.rng(rows)).to(case.x))
    share = float((found & ~white).float().mean())
    advice = "attacks on another model are stronger than white-box attacks on this one: its gradients are masked"
    threshold = "at most 3 % of examples broken by transfer alone (ours; the sign: Carlini et al. 2019)"
    meaning = f"{100 * share:.1f} % are broken by attacks on {source} but not by APGD"
    return finding("transfer", share, meaning, above(share, 0.002, 0.03), threshold, advice)


def _student(case: AuditContext) -> nn.Module:
    """A small network that is trained on the model's probabilities at random points of the ball around the images."""
    channels, height, width = case.x.shape[1:]
    with draws_kept(case.x.device):
        torch.manual_seed(case.seed)
        student = small_cnn(case.classes, (channels, height, width), width=16).to(case.x.device)
    adam, rng = torch.optim.Adam(student.parameters(), lr=2e-3), make_rng(case.seed, case.x.device)
    for rows in _batches(len(case.x), 64, case.budget.surrogate_steps, case.seed):
        there = rows.to(case.x.device)
        z = case.threat.sample(case.x[there], rng)
        with torch.no_grad():
            wanted = case.model(z).float().softmax(1)
        adam.zero_grad()
        F.cross_entropy(student(z.float()), wanted).backward()
        adam.step()
    return student.eval()


def _batches(count: int, size: int, times: int, seed: int) -> Iterator[Tensor]:
    rng = make_rng(seed)
    for _ in range(times):
        yield torch.randint(count, (min(size, count),), generator=rng)
