"""Contrastive losses between two views of the same images, and losses of a representation that attacks maximise.

No loss here uses labels, except that `WithPredictions` marks fooled examples by them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.losses import misclassified
from ..core.errors import UserError
from ..core.types import Forward, LossOutput, PerExampleLoss

Parts: TypeAlias = tuple[Tensor, ...]


def need_pairs(count: int) -> None:
    """Raise `UserError` for fewer than two images, as a contrast needs other images."""
    if count < 2:
        raise UserError(
            f"a contrastive loss compares an image with others, but there are {count} in all: take larger batches"
        )


def info_nce(a: Tensor, b: Tensor, temperature: float, both: bool = True) -> Tensor:
    """InfoNCE `[B]` of `a` and `b` `[B, P]`: -log softmax of the cosine / `temperature` of each pair among all pairs.

    With `both`, the mean of the two directions, otherwise only the direction from `a` to `b`
    (https://arxiv.org/abs/1807.03748).
    """
    need_pairs(len(a))
    scores = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    own = torch.arange(len(a), device=a.device)
    there = F.cross_entropy(scores, own, reduction="none")
    return (there + F.cross_entropy(scores.T, own, reduction="none")) / 2 if both else there


def nt_xent(*views: Tensor, temperature: float) -> Tensor:
    """NT-Xent `[B]` of views `[B, P]`: InfoNCE in all directions, also with other images of the own view as negatives.

    The loss of SimCLR (https://arxiv.org/abs/2002.05709). For more than two views, it is the sum over the other views
    of an image, each contrasted with everything in the batch.
    """
    count = len(views[0])
    need_pairs(count)
    z = F.normalize(torch.cat(views), dim=1)
    scores = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    rows = torch.arange(len(z), device=z.device)
    others = (rows.roll(shift * count) for shift in range(1, len(views)))
    found = torch.stack([F.cross_entropy(scores, other, reduction="none") for other in others]).sum(0)
    return found.view(len(views), count).mean(0)


# -- feature maps at several scales


def similarities(u: Tensor, v: Tensor, clip: float) -> Tensor:
    """Raw scores `[B, N, L]` of vectors `[B, d]` and maps `[N, d, ...]`, softly clipped at `clip`."""
    return clip * torch.tanh(_raw("bd,ndl->bnl", u, v) / clip)


def _raw(how: str, u: Tensor, v: Tensor) -> Tensor:
    return torch.einsum(how, u, v.flatten(2)) / math.sqrt(u.shape[1])


def told_apart(scores: Tensor, own: Tensor) -> Tensor:
    """Contrastive loss `[B]`: -log of the share of the own image among it and all places of all other images.

    It is averaged over the places of the own image. `scores` is `[B, N, L]`; `own` `[B]` gives the index of the own
    image among the N images.
    """
    mine = torch.arange(scores.shape[1], device=own.device) == own[:, None]
    others = scores.masked_fill(mine[:, :, None], -torch.inf).flatten(1).logsumexp(1)
    return F.softplus(others[:, None] - _own(scores, own)).mean(1)


def _own(scores: Tensor, own: Tensor) -> Tensor:
    return scores[torch.arange(len(own), device=own.device), own]


@dataclass(frozen=True, slots=True)
class Scales:
    """AMDIM's contrast of (global, coarse, fine) parts: global with fine, global with coarse, coarse with coarse.

    The source of the third is one place of the coarse map (https://arxiv.org/abs/1906.00910).

    Args:
        places: Number of the place for each image, `[N]`.
        clip: Bound of the soft clipping of scores.
    """

    places: Tensor
    clip: float = 20.0

    def pairs(self, a: Parts, b: Parts, both: bool = True) -> Tensor:
        """Loss `[B]` of two views of the same images: the sum of the three contrasts, averaged over directions."""
        need_pairs(len(a[0]))
        own = torch.arange(len(a[0]), device=a[0].device)
        there = self._towards(a, b, own, self.places)
        return (there + self._towards(b, a, own, self.places)) / 2 if both else there

    def one(self, look: Parts, known: Parts, own: Tensor) -> Tensor:
        """Loss of single views `[B]` of some of the known images `[N]`: all other images keep their known parts."""
        need_pairs(len(known[0]))
        there = self._towards(look, known, own, self.places[own])
        back = []
        for u, new, old in zip(self._sources(known, self.places), _targets(look), _targets(known), strict=True):
            scores = similarities(u[own], old, self.clip)
            mine = self.clip * torch.tanh(_raw("bd,bdl->bl", u[own], new) / self.clip)
            same = torch.arange(len(old), device=own.device) == own[:, None]
            back.append(told_apart(torch.where(same[:, :, None], mine[:, None], scores), own))
        return (there + torch.stack(back).sum(0)) / 2

    def size(self, a: Parts, b: Parts) -> Tensor:
        """Mean squared raw score, summed and averaged like the loss.

        AMDIM adds it to the loss times 0.05, so that scores stay away from the clip.
        """
        raw = [
            _raw("bd,ndl->bnl", u, v).square().mean()
            for one, other in ((a, b), (b, a))
            for u, v in zip(self._sources(one, self.places), _targets(other), strict=True)
        ]
        return torch.stack(raw).sum() / 2

    def _towards(self, a: Parts, b: Parts, own: Tensor, places: Tensor) -> Tensor:
        each = zip(self._sources(a, places), _targets(b), strict=True)
        return torch.stack([told_apart(similarities(u, v, self.clip), own) for u, v in each]).sum(0)

    def _sources(self, parts: Parts, places: Tensor) -> Parts:
        whole, coarse, _ = parts
        flat = coarse.flatten(2)
        return whole, whole, flat[torch.arange(len(flat), device=flat.device), :, places % flat.shape[2]]


def _targets(parts: Parts) -> Parts:
    _, coarse, fine = parts
    return fine, coarse, coarse


# -- losses for attacks


@dataclass(frozen=True, slots=True)
class FeatureDistance:
    """Squared distance of the features to `target` `[B, F]`; with `cosine`, 1 - their cosine.

    At the target the gradient is 0, so attacks need a random start.
    """

    features: Forward
    target: Tensor
    cosine: bool = False

    def __call__(self, x: Tensor) -> LossOutput:
        z = self.features(x)
        if self.cosine:
            return LossOutput(1 - F.cosine_similarity(z, self.target, dim=1))
        return LossOutput((z - self.target).square().sum(1))

    def __getitem__(self, rows: Tensor) -> "FeatureDistance":
        return FeatureDistance(self.features, self.target[rows], self.cosine)


@dataclass(frozen=True, slots=True)
class FeatureContrast:
    """InfoNCE of each image with its own key among all `keys` `[N, P]`.

    `own` `[B]` gives the index of the own key.
    """

    features: Forward
    keys: Tensor
    own: Tensor
    temperature: float = 0.2

    def __post_init__(self) -> None:
        need_pairs(len(self.keys))

    def __call__(self, x: Tensor) -> LossOutput:
        scores = F.normalize(self.features(x), dim=1) @ F.normalize(self.keys, dim=1).T / self.temperature
        return LossOutput(F.cross_entropy(scores, self.own, reduction="none"))

    def __getitem__(self, rows: Tensor) -> "FeatureContrast":
        return FeatureContrast(self.features, self.keys, self.own[rows], self.temperature)


@dataclass(frozen=True, slots=True)
class ScaleContrast:
    """Multiscale InfoNCE of each image with its own key.

    `keys` are the parts of N images, and `own` `[B]` gives the index of the own key.
    """

    parts: Callable[[Tensor], Parts]
    keys: Parts
    own: Tensor
    scales: Scales

    def __call__(self, x: Tensor) -> LossOutput:
        return LossOutput(self.scales.one(self.parts(x), self.keys, self.own))

    def __getitem__(self, rows: Tensor) -> "ScaleContrast":
        return ScaleContrast(self.parts, self.keys, self.own[rows], self.scales)


@dataclass(frozen=True, slots=True)
class WithPredictions:
    """A loss that marks fooled examples by the logits of a classifier and the labels `y` `[B]`."""

    loss: PerExampleLoss
    logits: Forward
    y: Tensor

    def __call__(self, x: Tensor) -> LossOutput:
        value = self.loss(x).value
        with torch.no_grad():
            return LossOutput(value, misclassified(self.logits(x), self.y))

    def __getitem__(self, rows: Tensor) -> "WithPredictions":
        return WithPredictions(self.loss[rows], self.logits, self.y[rows])


@dataclass(frozen=True, slots=True)
class LazyLoss:
    """A loss that is made at its first use: `Benign` never uses it, so it costs no forward pass there."""

    make: Callable[[], PerExampleLoss]
    made: list[PerExampleLoss] = field(default_factory=list, compare=False)

    def __call__(self, x: Tensor) -> LossOutput:
        return self._loss()(x)

    def __getitem__(self, rows: Tensor) -> PerExampleLoss:
        return self._loss()[rows]

    def _loss(self) -> PerExampleLoss:
        if not self.made:
            with torch.no_grad():
                self.made.append(self.make())
        return self.made[0]


# -- mutual information


def information_bound(scores: Tensor) -> Tensor:
    """InfoNCE's lower bound on the mutual information of pairs, in nats: the bound is the mean of the result `[N]`.

    `scores` `[N, N]` are those of any critic, with the pairs on the diagonal. The bound is log N - the cross-entropy of
    finding the pair among N (https://arxiv.org/abs/1807.03748). It is never above log N, however large the mutual
    information is.
    """
    need_pairs(len(scores))
    return math.log(len(scores)) + scores.diagonal() - scores.logsumexp(1)
