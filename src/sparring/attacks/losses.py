"""Per-example losses that an attack maximises. Each holds a forward function, so an attack need not know the model.

An example counts as fooled when another class wins, or when the model gives NaN or infinite logits.
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
    """Raise `UserError` for a module in training mode; an objective passes a plain function on purpose."""
    if isinstance(forward, nn.Module) and (layer := mode_matters(forward)):
        raise UserError(
            f"the model is in training mode, where {layer} makes an attack depend on the rest of the batch and "
            "changes the model: attack it inside `with eval_mode(model):`, or pass model.forward if that is meant"
        )


class OnLogits:
    """Common base of losses on logits: the check of the model's mode, the two answers, and indexing by rows."""

    __slots__ = ()
    logits: Forward

    def __post_init__(self) -> None:
        _refuse_train_mode(self.logits)

    def __call__(self, x: Tensor) -> LossOutput:
        out = self.logits(x)
        return LossOutput(self._value(out), self._fooled(out))

    def value(self, x: Tensor) -> Tensor:
        """Return the loss `[B]` alone: which examples are fooled costs a GPU nine launches more."""
        return self._value(self.logits(x))

    def _value(self, out: Tensor) -> Tensor:
        raise NotImplementedError

    def _fooled(self, out: Tensor) -> Tensor | None:
        del out
        return None

    def __getitem__(self, rows: Tensor) -> Self:
        parts = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return type(self)(*(part[rows] if isinstance(part, Tensor) else part for part in parts))


def misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """Return True where the prediction is not `y`, `[B]`; logits that are not finite count as wrong."""
    return (logits.argmax(1) != y) | ~logits.isfinite().all(1)


class _OnLabels(OnLogits):
    """Common base of losses by which an example counts as fooled when another class than `y` wins."""

    __slots__ = ()
    y: Tensor

    def _fooled(self, out: Tensor) -> Tensor | None:
        return misclassified(out, self.y)


@dataclass(frozen=True, slots=True)
class CE(_OnLabels):
    """Cross-entropy with the true label.

    Args:
        logits: Forward function, or model, that maps images `[B, C, H, W]` to logits `[B, K]`.
        y: True labels `[B]`, or soft targets `[B, K]`, of which the most probable class counts as the true one.

    Raises:
        UserError: If `logits` is a model in training mode that has batch norm or dropout. The other losses on logits
            raise it too.
    """

    logits: Forward
    y: Tensor

    def _value(self, out: Tensor) -> Tensor:
        return F.cross_entropy(out, self.y, reduction="none")

    def _fooled(self, out: Tensor) -> Tensor | None:
        return misclassified(out, self.y if self.y.ndim == 1 else self.y.argmax(1))


@dataclass(frozen=True, slots=True)
class TargetedCE(OnLogits):
    """Negative cross-entropy with a target class; an example is fooled when the target class wins.

    Args:
        logits: Forward function, or model, that maps images to logits `[B, K]`.
        target: Target classes `[B]`.

    Raises:
        UserError: If `logits` is a model in training mode that has batch norm or dropout.
    """

    logits: Forward
    target: Tensor

    def _value(self, out: Tensor) -> Tensor:
        return -F.cross_entropy(out, self.target, reduction="none")

    def _fooled(self, out: Tensor) -> Tensor | None:
        return ~misclassified(out, self.target)


@dataclass(frozen=True, slots=True)
class Margin(_OnLabels):
    """Margin of the best other class over the true class: `max_k z_k - z_y`, or `z_target - z_y` with a target.

    It is 0 on the decision boundary and positive beyond it. Any wrong class counts as fooled.

    Args:
        logits: Forward function, or model, that maps images to logits `[B, K]`.
        y: True labels `[B]`.
        target: Target classes `[B]`; None takes the largest logit of the other classes.

    Raises:
        UserError: If `logits` is a model in training mode that has batch norm or dropout.

    References:
        Carlini and Wagner, with confidence 0: https://arxiv.org/abs/1608.04644.
    """

    logits: Forward
    y: Tensor
    target: Tensor | None = None

    def _value(self, out: Tensor) -> Tensor:
        return self._differences(out).amax(1)

    def differences(self, x: Tensor) -> LossOutput:
        """Return the difference to the true class for every other class, `[B, K - 1]`, or for the target, `[B, 1]`."""
        out = self.logits(x)
        return LossOutput(self._differences(out), misclassified(out, self.y))

    def _differences(self, out: Tensor) -> Tensor:
        rivals = others(out, self.y) if self.target is None else out.gather(1, self.target[:, None])
        return rivals - out.gather(1, self.y[:, None])


def others(out: Tensor, y: Tensor) -> Tensor:
    """Return the logits of the classes that are not `y`, `[B, C - 1]`."""
    classes = torch.arange(out.shape[1] - 1, device=out.device)
    return out.gather(1, classes + (classes >= y[:, None]))


@dataclass(frozen=True, slots=True)
class DLR(_OnLabels):
    """Difference of logits ratio, a loss that does not change with the scale of the logits.

    It is `-(z_y - max_k z_k) / (z_(1) - z_(3))`, with the logits sorted in descending order. Needs three classes.

    Args:
        logits: Forward function, or model, that maps images to logits `[B, K]`.
        y: True labels `[B]`.

    Raises:
        UserError: If `logits` is a model in training mode that has batch norm or dropout; in a call, if there are fewer
            than three classes.

    References:
        DLR: https://arxiv.org/abs/2003.01690.
    """

    logits: Forward
    y: Tensor

    def _value(self, out: Tensor) -> Tensor:
        _need_classes(out, 3, "DLR")
        top = out.topk(3).values
        margin = others(out, self.y).amax(1) - out.gather(1, self.y[:, None])[:, 0]
        return margin / (top[:, 0] - top[:, 2] + _TINY)


@dataclass(frozen=True, slots=True)
class TargetedDLR(_OnLabels):
    """Difference of logits ratio towards a target class.

    It is `-(z_y - z_target) / (z_(1) - (z_(3) + z_(4)) / 2)`. Needs four classes. Any wrong class counts as fooled, as
    in AutoAttack.

    Args:
        logits: Forward function, or model, that maps images to logits `[B, K]`.
        y: True labels `[B]`.
        target: Target classes `[B]`.

    Raises:
        UserError: If `logits` is a model in training mode that has batch norm or dropout; in a call, if there are fewer
            than four classes.

    References:
        DLR: https://arxiv.org/abs/2003.01690.
    """

    logits: Forward
    y: Tensor
    target: Tensor

    def _value(self, out: Tensor) -> Tensor:
        _need_classes(out, 4, "targeted DLR")
        top = out.topk(4).values
        margin = out.gather(1, self.target[:, None]) - out.gather(1, self.y[:, None])
        return margin[:, 0] / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY)


def _need_classes(out: Tensor, least: int, name: str) -> None:
    if out.shape[1] < least:
        raise UserError(f"the {name} loss needs {least} classes, not {out.shape[1]}: use Margin")


@dataclass(frozen=True, slots=True)
class KLDivergence(OnLogits):
    """Kullback-Leibler divergence KL(p ‖ prediction) from fixed probabilities.

    Args:
        logits: Forward function, or model, that maps images to logits `[B, C]`.
        p: Fixed probabilities `[B, C]`.
        weight: Factor of the loss, which matters in a sum with other losses.
        y: True labels `[B]`; with None, it does not report fooled examples.

    Raises:
        UserError: If `logits` is a model in training mode that has batch norm or dropout.
    """

    logits: Forward
    p: Tensor
    weight: float = 1.0
    y: Tensor | None = None

    def _value(self, out: Tensor) -> Tensor:
        return self.weight * F.kl_div(out.log_softmax(1), self.p, reduction="none").sum(1)

    def _fooled(self, out: Tensor) -> Tensor | None:
        return None if self.y is None else misclassified(out, self.y)


@dataclass(frozen=True, slots=True)
class SquaredDistance(OnLogits):
    """Squared distance, summed over the classes, of the predicted from fixed probabilities.

    It does not report fooled examples.

    Args:
        logits: Forward function, or model, that maps images to logits `[B, C]`.
        p: Fixed probabilities `[B, C]`.
        weight: Factor of the loss.

    Raises:
        UserError: If `logits` is a model in training mode that has batch norm or dropout.
    """

    logits: Forward
    p: Tensor
    weight: float = 1.0

    def _value(self, out: Tensor) -> Tensor:
        return self.weight * (out.softmax(1) - self.p).square().sum(1)


@dataclass(frozen=True, slots=True)
class SumLoss:
    """Sum of per-example losses; the first part that reports fooled examples decides which are fooled.

    Args:
        parts: The losses to add.
    """

    parts: tuple[PerExampleLoss, ...]

    def __call__(self, x: Tensor) -> LossOutput:
        probes = [part(x) for part in self.parts]
        fooled = next((p.fooled for p in probes if p.fooled is not None), None)
        return LossOutput(torch.stack([p.value for p in probes]).sum(0), fooled)

    def __getitem__(self, rows: Tensor) -> "SumLoss":
        return SumLoss(tuple(part[rows] for part in self.parts))


@dataclass(frozen=True, slots=True)
class FeatureMatch:
    """Similarity of layer outputs to target outputs: minus the mean over layers of |f(x) - target| / |target|.

    Both norms are L2. Maximising the loss inverts a network.

    Args:
        parts: Function that maps images to the outputs of the layers, each `[B, ...]`.
        targets: Target outputs of the layers, of the same shapes.

    References:
        Inversion, with one layer: https://arxiv.org/abs/1906.00945.
    """

    parts: Callable[[Tensor], tuple[Tensor, ...]]
    targets: tuple[Tensor, ...]

    def __call__(self, x: Tensor) -> LossOutput:
        return LossOutput(-residuals(self.parts(x), self.targets).mean(0))

    def __getitem__(self, rows: Tensor) -> "FeatureMatch":
        return FeatureMatch(self.parts, tuple(target[rows] for target in self.targets))


def residuals(found: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
    """Return |f - target| / |target| of each layer and example, `[L, B]`; where the target is 0, |f|."""
    ratios = []
    for z, target in zip(found, targets, strict=True):
        size = target.flatten(1).norm(dim=1)
        ratios.append((z - target).flatten(1).norm(dim=1) / torch.where(size > _TINY, size, 1.0))
    return torch.stack(ratios)


@dataclass(frozen=True, slots=True)
class FeatureUnit:
    """Value of one unit of the flattened output of a layer: unit number `which` `[B]`."""

    part: Forward
    which: Tensor

    def __call__(self, x: Tensor) -> LossOutput:
        return LossOutput(self.part(x).flatten(1).gather(1, self.which[:, None])[:, 0])

    def __getitem__(self, rows: Tensor) -> "FeatureUnit":
        return FeatureUnit(self.part, self.which[rows])


@dataclass(frozen=True, slots=True)
class TotalVariation:
    """Minus `weight` x the total variation: the sum of |differences| of neighbouring pixels per pixel."""

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
    """Expectation over transformation: the mean of a loss over the randomness inside the model.

    An example counts as fooled if it is fooled in more than half of the draws.

    Args:
        loss: The loss of a randomized model.
        draws: Number of forward passes to average, at least 1; AutoAttack takes 20.

    Raises:
        UserError: If `draws` is not a whole number above 0.

    References:
        EOT: https://arxiv.org/abs/1707.07397.
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
    """Evaluates a loss on `size` examples at a time, so that an attack can hold more examples than one batch.

    The batches of the model then stay full while examples leave. Gradients are computed batch by batch
    (`attacks.value_and_grad`).
    """

    loss: PerExampleLoss
    size: int

    def parts(self, x: Tensor) -> Iterator[tuple[PerExampleLoss, Tensor]]:
        """Return the loss of each batch, and the examples in it."""
        if len(x) <= self.size:
            return iter([(self.loss, x)])
        return ((self.loss[rows], x[rows]) for rows in torch.arange(len(x), device=x.device).split(self.size))

    def __call__(self, x: Tensor) -> LossOutput:
        return joined([loss(z) for loss, z in self.parts(x)])

    def __getitem__(self, rows: Tensor) -> "Microbatched":
        return Microbatched(self.loss[rows], self.size)

    @property
    def differences(self) -> Callable[[Tensor], LossOutput]:
        """Function `differences` of the loss (`Boundaries`), batch by batch.

        Raises:
            AttributeError: If the loss has none.
        """
        self.loss.differences  # type: ignore[attr-defined]  # noqa: B018
        return lambda x: joined([loss.differences(z) for loss, z in self.parts(x)])  # type: ignore[attr-defined]


def microbatched(loss: PerExampleLoss, size: int | None) -> PerExampleLoss:
    """Wrap `loss` in `Microbatched` if a size is given and the loss can be indexed by rows."""
    return loss if size is None or not hasattr(loss, "__getitem__") else Microbatched(loss, size)


def named(loss: object) -> str:
    """Return the class name of a loss, for messages."""
    return type(loss.loss if isinstance(loss, Microbatched) else loss).__name__


def joined(probes: list[LossOutput]) -> LossOutput:
    """Concatenate the outputs of several batches."""
    value = torch.cat([p.value for p in probes])
    fooled = [p.fooled for p in probes if p.fooled is not None]
    return LossOutput(value, torch.cat(fooled) if fooled else None)


def mean(probes: list[LossOutput]) -> LossOutput:
    """Average the values of several outputs; an example is fooled if it is in more than half of them."""
    value = torch.stack([p.value for p in probes]).mean(0)
    votes = [p.fooled for p in probes if p.fooled is not None]
    return LossOutput(value, torch.stack(votes).float().mean(0) > 0.5 if votes else None)


class Boundaries(PerExampleLoss, Protocol):
    """Loss that also gives its distance to each decision boundary in logits, such as `Margin`."""

    def differences(self, x: Tensor) -> LossOutput: ...
    def __getitem__(self, rows: Tensor) -> "Boundaries": ...
