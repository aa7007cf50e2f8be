"""What is done to a training set on purpose, once, before training: labels and pixels by chance, and subsets.

Every alteration acts on what is trained on, after some images were held out: those, and the test images, stay as they
are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.rng import make_rng, mixed_seed
from ..core.types import LabelledData, TensorData, pixels

_CHUNK = 1024  # images whose pixels are permuted at a time


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained on: `data`, the `rows` `[N]` where its examples were before, and their `true` labels `[N]`."""

    data: LabelledData
    rows: Tensor
    true: Tensor

    def __len__(self) -> int:
        return len(self.data)

    @property
    def wrong(self) -> Tensor:
        """Whose label is not the true one, `[N]`."""
        return self.data.y != self.true

    def arrays(self) -> dict[str, Any]:
        """As it is kept in the run folder."""
        return {name: t.cpu().numpy() for name, t in (("rows", self.rows), ("y", self.data.y), ("true", self.true))}


class History(Protocol):
    """What a run recorded of its training examples: the labels `y` `[N]`, and how hard each was, `[N]`."""

    @property
    def y(self) -> "np.ndarray[Any, Any]": ...
    @property
    def difficulty(self) -> "np.ndarray[Any, Any]": ...


class Alteration(Protocol):
    """Changes labels or images, or leaves some out, by chance that `rng` (on the CPU) decides."""

    def __call__(self, training: Training, rng: torch.Generator) -> Training: ...


def _no_history(name: str) -> History:
    raise UserError(f"there is no run {name!r} to choose examples by: runs are read when a recipe is trained")


def altered(
    data: LabelledData, alterations: Sequence[Alteration], seed: int, read: Callable[[str], History] = _no_history
) -> Training:
    """One after the other, each with chance of its own. `read` gives what the run of a name recorded."""
    training = Training(data, torch.arange(len(data), device=data.y.device), data.y)
    for number, alteration in enumerate(alterations):
        rng = make_rng(mixed_seed(seed, "alteration", number))
        if isinstance(alteration, DifficultySubset):
            training = alteration.choose(training, rng, {name: read(name) for name in alteration.by})
        else:
            training = alteration(training, rng)
    return training


@dataclass(frozen=True, slots=True)
class LabelNoise:
    """Symmetric noise: each label is drawn anew with probability `rate`, uniformly among all classes.

    The true class is among them, so that of C classes a share of rate x (1 - 1 / C) becomes wrong; without `including`,
    it is not, and the share is `rate`. Labels are drawn once (https://arxiv.org/abs/1611.03530).
    """

    rate: float = 1.0
    including: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise UserError(f"a noise rate of {self.rate:g} is not in [0, 1]")

    def __call__(self, training: Training, rng: torch.Generator) -> Training:
        y, classes = training.data.y.cpu(), len(training.data.classes)
        drawn = torch.rand(len(y), generator=rng) < self.rate
        if self.including:
            new = torch.randint(classes, (len(y),), generator=rng)
        else:
            new = (y + 1 + torch.randint(classes - 1, (len(y),), generator=rng)) % classes
        return replace(training, data=training.data.relabelled(torch.where(drawn, new, y)))


@dataclass(frozen=True, slots=True)
class PixelNoise:
    """Training images lose their structure, after https://arxiv.org/abs/1611.03530; test images keep theirs.

    "shuffled": one permutation of the pixels for all images; "random": one for each image; "gaussian": pixels drawn
    with mean and deviation of those of the training set, channel by channel, and clipped to [0, 1]. Channels of a pixel
    stay together in a permutation. It happens to a share `rate` of the images, rounded down. Raises `UserError` for a
    rate outside [0, 1], and for images that are not in memory.
    """

    kind: Literal["shuffled", "random", "gaussian"] = "random"
    rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise UserError(f"a noise rate of {self.rate:g} is not in [0, 1]")

    def __call__(self, training: Training, rng: torch.Generator) -> Training:
        data = training.data
        if not isinstance(data, TensorData):
            raise UserError(
                f"pixels cannot be {self.kind} of images that stay in files: use ImageFolder, which reads them into "
                "memory, or change labels alone"
            )
        x = data.x.cpu().clone()
        rows = torch.arange(len(x))
        if self.rate < 1:  # of all, nothing is drawn
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
    """A `share` of the training set: the "easy", the "hard" or "random" examples, in the order of the training set.

    How hard an example is, the runs `by` say that remembered their examples (`ExampleHistory`): by their adversarial
    loss, averaged over epochs and runs. They are named by their folders, or, beside the folder of this run, by name
    alone; `{seed}` is that of this run. They must have been trained on the same images and labels. "random" needs none.
    """

    share: float = 0.8
    which: Literal["easy", "hard", "random"] = "random"
    by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"a share of {self.share:g} of the training set is not in (0, 1]")
        if self.which != "random" and not self.by:
            raise UserError(
                f'which examples are {self.which}, a run says that remembered them: name its folder, by=("runs/..",)'
            )

    def __call__(self, training: Training, rng: torch.Generator) -> Training:
        return self.choose(training, rng, {name: _no_history(name) for name in self.by})

    def choose(self, training: Training, rng: torch.Generator, histories: Mapping[str, History]) -> Training:
        """The same, by what the runs recorded."""
        count = round(self.share * len(training))
        if count < 1:
            raise UserError(f"a share of {self.share:g} of {len(training)} examples is none")
        order = torch.randperm(len(training), generator=rng)  # among equals, chance decides
        if self.which != "random":
            hard = torch.from_numpy(_difficulty(training, histories))[order]
            order = order[hard.argsort(descending=self.which == "hard", stable=True)]
        chosen = order[:count].sort().values.to(training.rows.device)
        return Training(training.data.part(chosen), training.rows[chosen], training.true[chosen])


def _difficulty(training: Training, histories: Mapping[str, History]) -> "np.ndarray[Any, Any]":
    """The mean adversarial loss over the histories, `[N]`."""
    for name, history in histories.items():
        if not np.array_equal(history.y, training.data.y.cpu().numpy()):
            raise UserError(
                f"{name} remembers {len(history.y)} examples, and its labels are not those of the {len(training)} that "
                "are trained on here: how hard they are, a run on the same examples says"
            )
    return np.mean([history.difficulty for history in histories.values()], axis=0)
