"""Alterations of a training set, once before training: random labels, random pixels, and subsets.

Every alteration acts on the images that are trained on, after the validation (held-out) set is split off: the
validation set and the test images are unchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError, need_one_of
from ..core.rng import make_rng, mixed_seed
from ..core.types import LabelledData, TensorData, pixels

_CHUNK = 1024  # images whose pixels are permuted at a time


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """A training set with the origin of its examples and their true labels.

    Args:
        data: the training set, N examples.
        rows: rows of its examples `[N]` in the unaltered training set.
        true: their true labels `[N]`.
    """

    data: LabelledData
    rows: Tensor
    true: Tensor

    def __len__(self) -> int:
        return len(self.data)

    @property
    def wrong(self) -> Tensor:
        """True for the examples whose label is not the true one, `[N]`."""
        return self.data.y != self.true

    def arrays(self) -> dict[str, Any]:
        """Return the arrays that are stored in the run folder."""
        return {name: t.cpu().numpy() for name, t in (("rows", self.rows), ("y", self.data.y), ("true", self.true))}


class History(Protocol):
    """Record of a run on its training examples: their labels `y` `[N]` and their `difficulty` `[N]`."""

    @property
    def y(self) -> "np.ndarray[Any, Any]": ...
    @property
    def difficulty(self) -> "np.ndarray[Any, Any]": ...


class Alteration(Protocol):
    """Change of labels or images, or choice of a subset; it draws from `rng`, a generator on the CPU."""

    def __call__(self, training: TrainingSet, rng: torch.Generator) -> TrainingSet: ...


def _no_history(name: str) -> History:
    raise UserError(f"there is no run {name!r} to choose examples by: runs are read when a recipe is trained")


def altered(
    data: LabelledData, alterations: Sequence[Alteration], seed: int, read: Callable[[str], History] = _no_history
) -> TrainingSet:
    """Apply alterations to a training set, one after the other, each with a random generator of its own.

    Args:
        data: training set, N examples.
        alterations: alterations in their order.
        seed: seed of the random generators.
        read: returns the record of the run of a name, for `DifficultySubset`; by default it raises `UserError`.

    Returns:
        The altered training set, with the rows and the true labels of its examples.

    Raises:
        UserError: when an alteration does not fit the data, or needs a run that `read` does not find.
    """
    training = TrainingSet(data, torch.arange(len(data), device=data.y.device), data.y)
    for number, alteration in enumerate(alterations):
        rng = make_rng(mixed_seed(seed, "alteration", number))
        if isinstance(alteration, DifficultySubset):
            training = alteration.choose(training, rng, {name: read(name) for name in alteration.by})
        else:
            training = alteration(training, rng)
    return training


@dataclass(frozen=True, slots=True)
class LabelNoise:
    """Symmetric label noise: each label is replaced, with a given probability, by one drawn uniformly from the classes.

    Labels are drawn once, before training.

    Args:
        rate: probability that a label is replaced, 0 to 1.
        including: draw from all classes, so that with C classes a share of rate x (1 - 1 / C) becomes wrong. If False,
            draw from all but the true class, so that the share is `rate`.

    Raises:
        UserError: when `rate` is outside [0, 1].

    References:
        Zhang et al.: https://arxiv.org/abs/1611.03530.
    """

    rate: float = 1.0
    including: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise UserError(f"a noise rate of {self.rate:g} is not in [0, 1]")

    def __call__(self, training: TrainingSet, rng: torch.Generator) -> TrainingSet:
        y, classes = training.data.y.cpu(), len(training.data.classes)
        drawn = torch.rand(len(y), generator=rng) < self.rate
        if self.including:
            new = torch.randint(classes, (len(y),), generator=rng)
        else:
            new = (y + 1 + torch.randint(classes - 1, (len(y),), generator=rng)) % classes
        return replace(training, data=training.data.relabelled(torch.where(drawn, new, y)))


@dataclass(frozen=True, slots=True)
class PixelNoise:
    """Pixel noise, which removes the structure of training images; test images keep theirs.

    Args:
        kind: "shuffled" permutes the pixels of all images in one order; "random" permutes those of each image in an
            order of its own; "gaussian" draws pixels with the mean and standard deviation of the training set, channel
            by channel, and clips them to [0, 1]. A permutation keeps the channels of a pixel together.
        rate: share of the images that are altered, 0 to 1; their number is rounded down.

    Raises:
        UserError: when `kind` is another word, `rate` is outside [0, 1], or the images are not in memory.

    References:
        Zhang et al.: https://arxiv.org/abs/1611.03530.
    """

    kind: Literal["shuffled", "random", "gaussian"] = "random"
    rate: float = 1.0

    def __post_init__(self) -> None:
        need_one_of("kind", self.kind, ("shuffled", "random", "gaussian"))
        if not 0 <= self.rate <= 1:
            raise UserError(f"a noise rate of {self.rate:g} is not in [0, 1]")

    def __call__(self, training: TrainingSet, rng: torch.Generator) -> TrainingSet:
        data = training.data
        if not isinstance(data, TensorData):
            raise UserError(
                f"{self.kind} pixels need images in memory, and these stay in files: use ImageFolder or NPZ, which "
                "read them into memory, or change labels alone"
            )
        x = data.x.cpu().clone()
        rows = torch.arange(len(x))
        if self.rate < 1:  # at 1 all images are altered, and nothing is drawn
            rows = torch.randperm(len(x), generator=rng)[: int(self.rate * len(x))]
        if len(rows):
            x[rows] = self._changed(x[rows], x, rng)
        return replace(training, data=replace(data, x=x.to(data.x.device)))

    def _changed(self, x: Tensor, every: Tensor, rng: torch.Generator) -> Tensor:
        size = x.shape[2] * x.shape[3]
        if self.kind == "shuffled":
            return x.flatten(2)[:, :, torch.randperm(size, generator=rng)].reshape(x.shape)
        if self.kind == "random":
            return torch.cat([_shuffled(part, rng) for part in x.split(_CHUNK)])
        std, mean = torch.std_mean(pixels(every), (0, 2, 3), keepdim=True)
        drawn = (mean + std * torch.randn(x.shape, generator=rng)).clamp(0, 1)
        return (255 * drawn).round().to(torch.uint8) if x.dtype == torch.uint8 else drawn.to(x.dtype)


def _shuffled(x: Tensor, rng: torch.Generator) -> Tensor:
    size = x.shape[2] * x.shape[3]
    order = torch.rand(len(x), 1, size, generator=rng).argsort(2)
    return x.flatten(2).gather(2, order.expand(-1, x.shape[1], -1)).reshape(x.shape)


@dataclass(frozen=True, slots=True)
class DifficultySubset:
    """Subset of the training set: the easy, hard or random examples, in the order of the training set.

    The difficulty of an example is its adversarial loss, averaged over epochs and runs. It is read from runs that
    recorded their examples (`ExampleHistory`), which must have been trained on the same images and labels.

    Args:
        share: share of the examples that are kept, in (0, 1].
        which: which examples are kept: "easy", "hard" or "random".
        by: folders of the runs that give the difficulty, or names of runs in the folder where this run is, with
            `{seed}` for the seed of this run. "random" needs none.

    Raises:
        UserError: when `which` is another word, `share` is outside (0, 1], "easy" or "hard" examples have no run in
            `by`, a run was trained on other examples, or no example is left.
    """

    share: float = 0.8
    which: Literal["easy", "hard", "random"] = "random"
    by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        need_one_of("which", self.which, ("easy", "hard", "random"))
        if not 0 < self.share <= 1:
            raise UserError(f"a share of {self.share:g} of the training set is not in (0, 1]")
        if self.which != "random" and not self.by:
            raise UserError(
                f'{self.which} examples need a run with an example history: name its folder, by=("runs/..",)'
            )

    def __call__(self, training: TrainingSet, rng: torch.Generator) -> TrainingSet:
        return self.choose(training, rng, {name: _no_history(name) for name in self.by})

    def choose(self, training: TrainingSet, rng: torch.Generator, histories: Mapping[str, History]) -> TrainingSet:
        """Return the subset of `training`, by the histories of the runs by name."""
        count = round(self.share * len(training))
        if count < 1:
            raise UserError(f"a share of {self.share:g} of {len(training)} examples is less than one")
        order = torch.randperm(len(training), generator=rng)  # equally difficult examples are chosen at random
        if self.which != "random":
            hard = torch.from_numpy(_difficulty(training, histories))[order]
            order = order[hard.argsort(descending=self.which == "hard", stable=True)]
        chosen = order[:count].sort().values.to(training.rows.device)
        return TrainingSet(training.data.part(chosen), training.rows[chosen], training.true[chosen])


def _difficulty(training: TrainingSet, histories: Mapping[str, History]) -> "np.ndarray[Any, Any]":
    """Mean adversarial loss over the histories, `[N]`."""
    for name, history in histories.items():
        if not np.array_equal(history.y, training.data.y.cpu().numpy()):
            raise UserError(
                f"{name} recorded {len(history.y)} examples, and their labels are not those of the {len(training)} "
                "examples of this run: name a run on the same examples"
            )
    return np.mean([history.difficulty for history in histories.values()], axis=0)
