"""Verdicts on clean and adversarial images: the model in full precision, on points inside the ball and [0, 1]."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..attacks.gradients import value_and_grad
from ..attacks.losses import CE
from ..attacks.threats import Linf
from ..core.errors import UserError
from ..core.types import Threat
from ..core.validation import SQUASHED, check_logits, probable, squashed
from .adversaries import beyond


class Verdict(NamedTuple):
    """For each image: whether the model is right, the predicted class (-1 without finite logits), and the margin.

    The margin `z_y - max_k z_k` is above 0 where the model is right, and -inf where its logits are not finite.
    `probable` marks answers that could be probabilities.
    """

    right: Tensor
    predicted: Tensor
    margin: Tensor
    probable: Tensor
    calibration: Tensor
    """Probability of the predicted class, negative log-likelihood and Brier score, `[B, 3]`."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """A model that gives verdicts; a randomised model is right if it is right in more than half of `draws` passes."""

    model: nn.Module
    draws: int = 1

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor, num_classes: int | None = None) -> Verdict:
        with torch.autocast(x.device.type, enabled=False):
            verdicts = [_verdict(self.model(x), y, num_classes) for _ in range(self.draws)]
        if self.draws == 1:
            return verdicts[0]
        right = torch.stack([v.right for v in verdicts]).float().mean(0) > 0.5
        predicted = torch.stack([v.predicted for v in verdicts]).mode(0).values
        margin = torch.stack([v.margin for v in verdicts]).mean(0)
        calibration = torch.stack([v.calibration for v in verdicts]).mean(0)
        return Verdict(right, predicted, margin, verdicts[0].probable, calibration)

    def confirm(self, z: Tensor, x: Tensor, y: Tensor, threat: Threat | None) -> tuple[Tensor, Verdict]:
        """Return the points after projection into the ball, and the verdict on them.

        Only points outside the ball are projected.
        """
        if threat is not None:
            outside = beyond(threat, z, x)
            if bool(outside.any()):
                z = z.clone()
                z[outside] = threat.project(z[outside], x[outside])
        return z, self(z, y)


def _verdict(out: Tensor, y: Tensor, num_classes: int | None) -> Verdict:
    check_logits(out, len(y), num_classes, later=True)
    finite = out.isfinite().all(1)
    predicted = out.argmax(1).masked_fill(~finite, -1)
    others = out.scatter(1, y[:, None], -torch.inf).amax(1)
    margin = (out.gather(1, y[:, None])[:, 0] - others).float().masked_fill(~finite, -torch.inf)
    return Verdict(predicted == y, predicted, margin, probable(out), _calibration(out, y, finite))


def _calibration(out: Tensor, y: Tensor, finite: Tensor) -> Tensor:
    """Confidence, negative log-likelihood and Brier score, `[B, 3]`; logits that are not finite are the worst."""
    logs = out.float().log_softmax(1)
    share, of_label = logs.exp(), logs.gather(1, y[:, None])[:, 0]
    found = (share.amax(1), -of_label, share.square().sum(1) - 2 * of_label.exp() + 1)
    worst = (1.0, torch.inf, 2.0)
    return torch.stack([value.masked_fill(~finite, bad) for value, bad in zip(found, worst, strict=True)], 1)


def oddities(judge: Verifier, x: Tensor, y: Tensor, right: Tensor) -> list[str]:
    """Notes on properties of a model that make its results doubtful.

    `right` `[B]` is the verdict on `x`. The checks are: autograd inside forward, outputs in [0, 1], randomised logits,
    logits that depend on the rest of the batch, gradients that are not finite, and a step of PGD at eps 0 that changes
    verdicts. The step records gradients as an attack does.
    """
    model, threat = judge.model, Linf(1e-12)
    with torch.no_grad(), counting() as inside:
        first = model(x).float()
    notes = [_INSIDE] if inside else []
    if squashed(first):
        notes.append(SQUASHED)
    with torch.no_grad():
        share, alone = random_share(first, model(x).float()), torch.cat([model(image[None]) for image in x[:4]]).float()
    if share > 0:
        randomised = (
            f"the model gives other logits the second time for {100 * share:.0f} % of images: it is randomised, and "
            'one pass is not enough; use AutoAttack with version="rand"'
        )
        return [*notes, randomised] if judge.draws == 1 else notes
    if random_share(first[:4], alone, 1e-3) > 0:
        notes.append("the answer to an image depends on the rest of its batch: results hold for this batch size alone")
    try:
        seen = value_and_grad(CE(model.__call__, y), x)
    except UserError as error:  # no gradient reaches the image, but attacks without gradients work
        return [*notes, str(error)]
    lost = int((~seen.grad.isfinite()).flatten(1).any(1).sum())
    if lost:
        return [*notes, f"the gradient is NaN or infinite for {lost} of {len(x)} images: gradient attacks cannot work"]
    after = judge(threat.project(x + threat.eps * threat.ascent(seen.grad), x), y)
    fooled = ~right if seen.fooled is None else seen.fooled
    changed = int(((after.right != right) | (fooled == right)).sum())
    if changed:
        notes.append(
            f"PGD at eps 0 changes the verdict on {changed} of {len(x)} images: the model behaves differently under "
            "an attack than in an evaluation, and no result of it can be trusted"
        )
    return notes


_FLAT = 0.05  # a few predictions of any model are so confident that their loss is flat in float32


def flat_gradients(model: nn.Module, x: Tensor, y: Tensor) -> list[str]:
    """A note if the gradient of the loss is zero for more than a few images, where gradient attacks do not move."""
    try:
        grad = value_and_grad(CE(model.__call__, y), x).grad
    except UserError as error:
        return [str(error)]
    flat = int((~(grad != 0).flatten(1).any(1)).sum())
    if flat <= _FLAT * len(x):
        return []
    return [
        f"the gradient of the loss is zero for {flat} of {len(x)} images, as behind rounding or logits that are too "
        "large: gradient attacks do not move there. Evaluate with Square too, and run sparring audit"
    ]


_INSIDE = (
    "autograd runs inside the model's forward: the defence optimises at test time, and AutoAttack does not "
    "account for that; attack it adaptively"
)


@contextmanager
def counting() -> Generator[list[str]]:
    """Record each call of autograd's engine, through whichever function a model calls it."""
    autograd: Any = torch.autograd
    engine = getattr(autograd, "_engine_run_backward", None)  # private, so a version of torch may lack it
    calls: list[str] = []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append("backward")
        return engine(*args, **options) if engine else None

    if engine is not None:
        autograd._engine_run_backward = counted
    try:
        yield calls
    finally:
        if engine is not None:
            autograd._engine_run_backward = engine


def random_share(first: Tensor, second: Tensor, most: float = 1e-4) -> float:
    """Share of examples whose normalised logits differ by more than `most`, by default AutoAttack's threshold."""
    both = [t / t.norm(dim=1, keepdim=True).clamp_min(1e-10) for t in (first, second)]
    return float(((both[0] - both[1]).norm(dim=1) > most).float().mean())


class MutationCheck:
    """A check for a model that changes its own weights, buffers or modes in forward."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modes = {name: module.training for name, module in model.named_modules()}
        self.tensors = _marks(model)

    def check(self) -> None:
        """Raise `UserError` with the name of the module that changed, if any did. It reads every weight once."""
        modules = dict(self.model.named_modules())
        for name, training in self.modes.items():
            if modules[name].training != training:
                raise UserError(f"the model sets the mode of {_called(name, modules)} in its forward: {_ADVICE}")
        for name, mark in _marks(self.model).items():
            if mark != self.tensors.get(name):
                owner, _, last = name.rpartition(".")
                raise UserError(f"the model changes {last} of {_called(owner, modules)} in its forward: {_ADVICE}")


_ADVICE = "results for one image would not hold for the next. Make the forward leave the model unchanged"


def _called(name: str, modules: dict[str, nn.Module]) -> str:
    return f"{name or 'itself'} ({type(modules[name]).__name__})"


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _marks(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the marks of all parameters and buffers, read from each device at once."""
    marks = {name: _mark(tensor) for name, tensor in _tensors(model).items()}
    found: dict[str, tuple[int, ...]] = {}
    for device in dict.fromkeys(mark.device for mark in marks.values()):
        names = [name for name, mark in marks.items() if mark.device == device]
        values = torch.stack([marks[name] for name in names]).tolist()
        found |= {name: tuple(value) for name, value in zip(names, values, strict=True)}
    return found


def _mark(tensor: Tensor) -> Tensor:
    """Two sums of the bits of a tensor, which show a change; torch's version counter misses some changes."""
    with torch.no_grad():
        plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        bits = plain.contiguous().view(_BITS[plain.dtype.itemsize]) if plain.is_floating_point() else plain
        whole = bits.long()
        return torch.stack([whole.sum(), ((whole ^ (whole >> 7)) * _ODD).sum()])


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ODD = 0x9E3779B1  # sums of products with it wrap around, and so depend on high bits, too
