"""Point losses: what an attack may raise. Each holds a forward function, so an attack need not know the model.

An example is fooled when another class wins, or when the model gives NaN or infinite logits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UserError, need_whole
from ..core.modes import mode_matters
from ..core.types import Forward, LossOutput, PerExampleLoss

_TINY = 1e-12


def _refuse_train_mode(forward: Forward) -> None:
    """A model given as itself must not be in training mode; an objective gives a function on purpose."""
    if isinstance(forward, nn.Module) and (layer := mode_matters(forward)):
        raise UserError(
            f"the model is in training mode, where {layer} makes an attack depend on the rest of the batch and "
            "changes the model: attack it inside `with eval_mode(model):`, or pass model.forward if that is meant"
        )


class _OnLogits:
    """What losses on logits have in common: the check of the mode, and serving some of the examples."""

    __slots__ = ()
    logits: Forward

    def __post_init__(self) -> None:
        _refuse_train_mode(self.logits)

    def __getitem__(self, rows: Tensor) -> Self:
        parts = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return type(self)(*(part[rows] if isinstance(part, Tensor) else part for part in parts))


def misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """Which predictions are not `y` `[B]`; what is not finite is wrong."""
    return (logits.argmax(1) != y) | ~logits.isfinite().all(1)


@dataclass(frozen=True, slots=True)
class CE(_OnLogits):
    """Cross-entropy with the true label `y` `[B]`.

    Raises `UserError` for a model in training mode that has batch norm or dropout, as do the others.
    """

    logits: Forward
    y: Tensor

    def __call__(self, x: Tensor) -> LossOutput:
        out = self.logits(x)
        return LossOutput(F.cross_entropy(out, self.y, reduction="none"), misclassified(out, self.y))


@dataclass(frozen=True, slots=True)
class TargetedCE(_OnLogits):
    """Minus the cross-entropy with the class wanted, `target` `[B]`; fooled when that class wins."""

    logits: Forward
    target: Tensor

    def __call__(self, x: Tensor) -> LossOutput:
        out = self.logits(x)
        return LossOutput(-F.cross_entropy(out, self.target, reduction="none"), ~misclassified(out, self.target))


@dataclass(frozen=True, slots=True)
class Margin(_OnLogits):
    """How far another class is above the true one: `max_k z_k - z_y`, or `z_target - z_y` if a target is given.

    It is 0 on the decision boundary and positive beyond (https://arxiv.org/abs/1608.04644 with confidence 0).
    """

    logits: Forward
    y: Tensor
    target: Tensor | None = None

    def __call__(self, x: Tensor) -> LossOutput:
        out = self.logits(x)
        return LossOutput(self._differences(out).amax(1), misclassified(out, self.y))

    def differences(self, x: Tensor) -> LossOutput:
        """As a call, but with a value `[B, K]` for every other class (or for the target)."""
        out = self.logits(x)
        return LossOutput(self._differences(out), misclassified(out, self.y))

    def _differences(self, out: Tensor) -> Tensor:
        rivals = others(out, self.y) if self.target is None else out.gather(1, self.target[:, None])
        return rivals - out.gather(1, self.y[:, None])


def others(out: Tensor, y: Tensor) -> Tensor:
    """The logits of the classes that are not `y`, `[B, C - 1]`."""
    classes = torch.arange(out.shape[1] - 1, device=out.device)
    return out.gather(1, classes + (classes >= y[:, None]))


@dataclass(frozen=True, slots=True)
class DLR(_OnLogits):
    """Difference of logits ratio, which no scaling of the logits can flatten (https://arxiv.org/abs/2003.01690).

    `-(z_y - max_k z_k) / (z_(1) - z_(3))`, with the logits sorted from above. Needs three classes.
    """

    logits: Forward
    y: Tensor

    def __call__(self, x: Tensor) -> LossOutput:
        out = self.logits(x)
        _need_classes(out, 3, "DLR")
        top = out.topk(3).values
        margin = others(out, self.y).amax(1) - out.gather(1, self.y[:, None])[:, 0]
        return LossOutput(margin / (top[:, 0] - top[:, 2] + _TINY), misclassified(out, self.y))


@dataclass(frozen=True, slots=True)
class TargetedDLR(_OnLogits):
    """The same towards a class: `-(z_y - z_target) / (z_(1) - (z_(3) + z_(4)) / 2)`. Needs four classes.

    Any wrong class counts as fooled, as in AutoAttack.
    """

    logits: Forward
    y: Tensor
    target: Tensor

    def __call__(self, x: Tensor) -> LossOutput:
        out = self.logits(x)
        _need_classes(out, 4, "targeted DLR")
        top = out.topk(4).values
        margin = out.gather(1, self.target[:, None]) - out.gather(1, self.y[:, None])
        return LossOutput(margin[:, 0] / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY), misclassified(out, self.y))


def _need_classes(out: Tensor, least: int, name: str) -> None:
    if out.shape[1] < least:
        raise UserError(f"the {name} loss needs {least} classes, not {out.shape[1]}: use Margin")


@dataclass(frozen=True, slots=True)
class KLDivergence(_OnLogits):
    """KL(p ‖ prediction) from fixed probabilities `p` `[B, C]`, times a weight that matters beside other losses."""

    logits: Forward
    p: Tensor
    weight: float = 1.0

    def __call__(self, x: Tensor) -> LossOutput:
        return LossOutput(self.weight * F.kl_div(self.logits(x).log_softmax(1), self.p, reduction="none").sum(1))


@dataclass(frozen=True, slots=True)
class SquaredDistance(_OnLogits):
    """`weight` x the squared distance, summed over the classes, of the prediction from fixed `p` `[B, C]`."""

    logits: Forward
    p: Tensor
    weight: float = 1.0

    def __call__(self, x: Tensor) -> LossOutput:
        return LossOutput(self.weight * (self.logits(x).softmax(1) - self.p).square().sum(1))


@dataclass(frozen=True, slots=True)
class SumLoss:
    """The sum of point losses; the first that can tell who is fooled decides."""

    parts: tuple[PerExampleLoss, ...]

    def __call__(self, x: Tensor) -> LossOutput:
        probes = [part(x) for part in self.parts]
        fooled = next((p.fooled for p in probes if p.fooled is not None), None)
        return LossOutput(torch.stack([p.value for p in probes]).sum(0), fooled)

    def __getitem__(self, rows: Tensor) -> "SumLoss":
        return SumLoss(tuple(part[rows] for part in self.parts))


@dataclass(frozen=True, slots=True)
class FeatureMatch:
    """How near outputs of layers are to those wanted: - mean over layers of |f(x) - target| / |target|, both L2.

    `parts` gives `[B, ...]` for each layer, `targets` are alike. Raising it inverts a net
    (https://arxiv.org/abs/1906.00945, with one layer).
    """

    parts: Callable[[Tensor], tuple[Tensor, ...]]
    targets: tuple[Tensor, ...]

    def __call__(self, x: Tensor) -> LossOutput:
        return LossOutput(-residuals(self.parts(x), self.targets).mean(0))

    def __getitem__(self, rows: Tensor) -> "FeatureMatch":
        return FeatureMatch(self.parts, tuple(target[rows] for target in self.targets))


def residuals(found: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
    """|f - target| / |target| of each layer and example, `[L, B]`; where the target is 0, |f|."""
    each = []
    for z, target in zip(found, targets, strict=True):
        size = target.flatten(1).norm(dim=1)
        each.append((z - target).flatten(1).norm(dim=1) / torch.where(size > _TINY, size, 1.0))
    return torch.stack(each)


@dataclass(frozen=True, slots=True)
class FeatureUnit:
    """One number of what a layer gives, flattened: number `which` `[B]`."""

    part: Forward
    which: Tensor

    def __call__(self, x: Tensor) -> LossOutput:
        return LossOutput(self.part(x).flatten(1).gather(1, self.which[:, None])[:, 0])

    def __getitem__(self, rows: Tensor) -> "FeatureUnit":
        return FeatureUnit(self.part, self.which[rows])


@dataclass(frozen=True, slots=True)
class TotalVariation:
    """- `weight` x the total variation: sum of |differences| of neighbouring pixels, over the number of pixels."""

    weight: float

    def __call__(self, x: Tensor) -> LossOutput:
        steps = (x.diff(dim=2), x.diff(dim=3))
        total = torch.stack([step.abs().flatten(1).sum(1) for step in steps]).sum(0)
        return LossOutput(-self.weight * total / x[0].numel())

    def __getitem__(self, rows: Tensor) -> "TotalVariation":
        del rows
        return self


@dataclass(frozen=True, slots=True)
class EOT:
    """The mean of a loss over the chance inside the model: expectation over transformation.

    https://arxiv.org/abs/1707.07397; AutoAttack takes 20 draws. Fooled is who is fooled in more than half of them.
    """

    loss: PerExampleLoss
    draws: int = 20

    def __post_init__(self) -> None:
        need_whole("draws", self.draws)

    def __call__(self, x: Tensor) -> LossOutput:
        return mean([self.loss(x) for _ in range(self.draws)])

    def __getitem__(self, rows: Tensor) -> "EOT":
        return EOT(self.loss[rows], self.draws)


@dataclass(frozen=True, slots=True)
class Microbatched:
    """The same loss, of `size` examples at a time: an attack may hold more of them than a model takes at once.

    So batches stay full while examples leave. Gradients are taken batch by batch (`attacks.value_and_grad`).
    """

    loss: PerExampleLoss
    size: int

    def parts(self, x: Tensor) -> Iterator[tuple[PerExampleLoss, Tensor]]:
        """The loss of each batch, and the examples in it."""
        if len(x) <= self.size:
            return iter([(self.loss, x)])
        return ((self.loss[rows], x[rows]) for rows in torch.arange(len(x), device=x.device).split(self.size))

    def __call__(self, x: Tensor) -> LossOutput:
        return joined([loss(z) for loss, z in self.parts(x)])

    def __getitem__(self, rows: Tensor) -> "Microbatched":
        return Microbatched(self.loss[rows], self.size)

    @property
    def differences(self) -> Callable[[Tensor], LossOutput]:
        """As those of the loss (`Boundaries`). Raises `AttributeError` if it has none."""
        self.loss.differences  # type: ignore[attr-defined]  # noqa: B018
        return lambda x: joined([loss.differences(z) for loss, z in self.parts(x)])  # type: ignore[attr-defined]


def microbatched(loss: PerExampleLoss, size: int | None) -> PerExampleLoss:
    """`Microbatched`, if a size is given and the loss serves some of its examples."""
    return loss if size is None or not hasattr(loss, "__getitem__") else Microbatched(loss, size)


def named(loss: object) -> str:
    """The name of the class of a loss, for messages."""
    return type(loss.loss if isinstance(loss, Microbatched) else loss).__name__


def joined(probes: list[LossOutput]) -> LossOutput:
    """What is known of some batches, as of one."""
    value = torch.cat([p.value for p in probes])
    told = [p.fooled for p in probes if p.fooled is not None]
    return LossOutput(value, torch.cat(told) if told else None)


def mean(probes: list[LossOutput]) -> LossOutput:
    """The mean value, and who is fooled in more than half of the probes."""
    value = torch.stack([p.value for p in probes]).mean(0)
    votes = [p.fooled for p in probes if p.fooled is not None]
    return LossOutput(value, torch.stack(votes).float().mean(0) > 0.5 if votes else None)


class Boundaries(PerExampleLoss, Protocol):
    """A loss that knows its distance to each decision boundary in logits, such as `Margin`."""

    def differences(self, x: Tensor) -> LossOutput: ...
    def __getitem__(self, rows: Tensor) -> "Boundaries": ...
