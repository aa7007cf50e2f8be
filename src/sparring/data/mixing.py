"""Augmentations that change the targets as well as the images, before the attack sees either."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import ranks
from ..core.errors import UserError
from ..core.rng import Rng, uniform_of_batch
from .augment import Augment

_QUANTILES = 2**16


@runtime_checkable
class TargetAugment(Protocol):
    """Interface of an augmentation that changes images and targets."""

    def change(self, x: Tensor, targets: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Return changed images `[B, C, H, W]` in [0, 1] and targets `[B, K]`, whose rows sum to 1."""
        ...


@dataclass(frozen=True, slots=True)
class CutMix:
    """CutMix: a rectangle of each image is replaced by that of another image, and its share of the target, too.

    The rectangle is the same in all images of a batch, and so is the share, drawn from Beta(alpha, alpha) as in the
    released code. Several processes mix the images of the whole batch.

    Args:
        alpha: parameter of the Beta distribution, above 0.
        p: probability that a batch is mixed, 0 to 1.

    Raises:
        UserError: when `alpha` or `p` is out of its range.

    References:
        CutMix: https://arxiv.org/abs/1905.04899.
        Before an attack: https://arxiv.org/abs/2103.01946 (Rebuffi et al.).
    """

    alpha: float = 1.0
    p: float = 1.0

    def __post_init__(self) -> None:
        _check("CutMix", self.alpha, self.p)

    def change(self, x: Tensor, targets: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        height, width = x.shape[2:]
        drawn = _drawn(x, 4, rng)
        side = (1 - _share(self.alpha, drawn[0])).sqrt()
        inside = (_near(drawn[1], side, height)[:, None] & _near(drawn[2], side, width)) & (drawn[3] < self.p)
        other_x, other_targets = _partners(x, targets, rng)
        share = 1 - inside.to(x.dtype).mean()
        return torch.where(inside, other_x, x), share * targets + (1 - share) * other_targets


@dataclass(frozen=True, slots=True)
class InputMixup:
    """Mixup before the attack: each image and its target are averaged with another image and its target.

    One share is drawn from Beta(alpha, alpha) for a batch. Several processes mix the images of the whole batch. To mix
    adversarial examples instead, after the attack, use the objective `MixUp`.

    Args:
        alpha: parameter of the Beta distribution, above 0.
        p: probability that a batch is mixed, 0 to 1.

    Raises:
        UserError: when `alpha` or `p` is out of its range.

    References:
        mixup: https://arxiv.org/abs/1710.09412.
    """

    alpha: float = 1.0
    p: float = 1.0

    def __post_init__(self) -> None:
        _check("mixup", self.alpha, self.p)

    def change(self, x: Tensor, targets: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        drawn = _drawn(x, 2, rng)
        share = torch.where(drawn[1] < self.p, _share(self.alpha, drawn[0]), 1.0).to(x.dtype)
        other_x, other_targets = _partners(x, targets, rng)
        return share * x + (1 - share) * other_x, share * targets + (1 - share) * other_targets


@dataclass(frozen=True, slots=True)
class RandomChoice:
    """One of several changes of images and targets, drawn for each batch with equal probabilities.

    Args:
        changes: the changes, at least one, such as `CutMix()` and `InputMixup(0.8)`.

    Raises:
        UserError: when there is no change to choose from.
    """

    changes: tuple[TargetAugment, ...]

    def __post_init__(self) -> None:
        if not self.changes:
            raise UserError("there is no change to choose from: give at least one, as CutMix()")

    def change(self, x: Tensor, targets: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        chosen = (_drawn(x, 1, rng)[0] * len(self.changes)).floor()
        out, out_targets = self.changes[0].change(x, targets, rng)
        for number, each in enumerate(self.changes[1:], 1):  # all are made: to ask which one would wait for a GPU
            new, new_targets = each.change(x, targets, rng)
            out = torch.where(chosen == number, new, out)
            out_targets = torch.where(chosen == number, new_targets, out_targets)
        return out, out_targets


@dataclass(frozen=True, slots=True)
class SmoothedLabels:
    """Label smoothing before the attack: the targets are mixed with the uniform distribution over the classes.

    `CrossEntropy(label_smoothing=..)` smooths the targets of the update alone.

    Args:
        smoothing: share of the uniform distribution, in [0, 1).

    Raises:
        UserError: when `smoothing` is not in [0, 1).

    References:
        Label smoothing: https://arxiv.org/abs/1512.00567.
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise UserError(f"smoothing = {self.smoothing:g} of labels is not in [0, 1)")

    def change(self, x: Tensor, targets: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        del rng
        return x, (1 - self.smoothing) * targets + self.smoothing / targets.shape[1]


def probabilities(targets: Tensor, classes: int) -> Tensor:
    """Return class numbers `[B]` as probabilities `[B, classes]`; soft targets as they are."""
    return F.one_hot(targets, classes).float() if targets.ndim == 1 else targets


def moved_from(changes: Sequence[Augment | TargetAugment], x: Tensor, rng: Rng) -> Tensor:
    """Finds where augmentations move pixels from, by augmenting an image of the numbers of the pixels.

    Args:
        changes: The augmentations, in their order.
        x: Images before the augmentations, `[B, C, H, W]`.
        rng: The random numbers of the augmentations, from their beginning.

    Returns:
        The number of the pixel of the unaugmented image, counted from 0 row by row, -1 for padding, `[B, H, W]`
        (int64).

    Raises:
        UserError: If an augmentation does something else than to move pixels.
    """
    size = x[0, 0].numel()
    numbers = torch.arange(1, size + 1, device=x.device, dtype=torch.float32).view(1, 1, *x.shape[2:]) / size
    z = numbers.expand(len(x), -1, -1, -1)
    for change in changes:
        if isinstance(change, TargetAugment):
            raise UserError(_moves_nothing(change))
        z = change(z, rng)
    found = (z[:, 0] * size).round()
    if not torch.allclose(found, z[:, 0] * size, atol=0.1):
        raise UserError(_moves_nothing(changes))
    return found.long() - 1


def _moves_nothing(change: object) -> str:
    return (
        f"perturbations cannot be carried through {change!r:.200}, which does not only move pixels: take Crop and "
        "Flip, or no augmentation"
    )


def _check(name: str, alpha: float, p: float) -> None:
    if not alpha > 0:
        raise UserError(f"alpha = {alpha:g} of {name} is not above 0; for no mixing leave {name} out")
    if not 0 <= p <= 1:
        raise UserError(f"p = {p:g} of {name} is not a probability: it must be in [0, 1]")


def _drawn(x: Tensor, count: int, rng: Rng) -> Tensor:
    """Draw numbers in [0, 1) for the whole batch, `[count]`."""
    return uniform_of_batch(x.new_empty(len(x), count), rng)[0]


def _near(centre: Tensor, side: Tensor, size: int) -> Tensor:
    """Return True for the pixels of a row or column that are in a window around a random centre, `[size]`."""
    middle, half = (centre * size).floor(), (side * size).floor() // 2
    places = torch.arange(size, device=centre.device)
    return (places >= middle - half) & (places < middle + half)


def _share(alpha: float, drawn: Tensor) -> Tensor:
    """Return the quantile `drawn` of Beta(alpha, alpha), from a table: reading the number would wait for a GPU."""
    if alpha == 1:
        return drawn
    table = _quantiles(alpha).to(drawn.device, drawn.dtype)
    return table[(drawn * _QUANTILES).long()]


@lru_cache(8)
def _quantiles(alpha: float) -> Tensor:
    from scipy.special import betaincinv

    return torch.from_numpy(betaincinv(alpha, alpha, (torch.arange(_QUANTILES).double() + 0.5).numpy() / _QUANTILES))


def _partners(x: Tensor, targets: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """Return the image and the target that each row is mixed with: a random order of the batch of all processes."""
    every_x, every_target = ranks.gathered(x), ranks.gathered(targets)
    order = _drawn(x, len(every_x), rng).argsort()[ranks.place(len(x))]
    return every_x[order], every_target[order]
