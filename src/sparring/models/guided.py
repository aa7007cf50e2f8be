"""An attack loss on nearest neighbours that uses labels: from the neighbours of one class to those of another."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..attacks.losses import misclassified
from ..core.errors import UserError
from ..core.types import Forward, LossOutput
from .knn import KNN


@dataclass(frozen=True, slots=True)
class GuideLoss:
    """Loss that moves features from the nearest examples of their class to those of the nearest other class (PGD-kNN).

    The nearest `guides` / 2 examples of the class `y` push the features away, and as many examples of the nearest other
    class attract them: the class whose nearest examples are closest on average. Each guide counts only until it is at
    the squared distance of the k-th neighbour. Guides, class and distance are chosen anew at every call. There are at
    most as many guides per class as the smallest class has examples.

    Implemented as released for self-supervised adversarial training; the definition is in the PGD-kNN paper and its
    code.

    Args:
        features: Function from images `[B, C, H, W]` to features `[B, F]`.
        bank: The head of nearest neighbours.
        y: Labels `[B]`.
        guides: Number of guides, of both classes together.

    Raises:
        UserError: If `guides` is less than 2.

    References:
        Self-supervised adversarial training: https://arxiv.org/abs/1911.06470.
        PGD-kNN: https://arxiv.org/abs/1903.08333.
    """

    features: Forward
    bank: KNN
    y: Tensor
    guides: int = 300

    def __post_init__(self) -> None:
        if self.guides < 2:
            raise UserError(f"guides = {self.guides}: guides come from two classes, so at least 2 are needed")

    def __call__(self, x: Tensor) -> LossOutput:
        features, bank = self.features(x), self.bank
        z = bank.normalized(features)
        with torch.no_grad():
            far = 2 - 2 * bank.nearest(features, bank.k)[0][:, -1:]
            places = self._guides(z)
        apart = [2 - 2 * torch.einsum("bf,bgf->bg", z, bank.rows[each]) for each in places]
        left = (far - apart[0]).relu().sum(1) + (apart[1] - far).relu().sum(1)
        return LossOutput(-left, misclassified(bank(features.detach()), self.y))

    def __getitem__(self, rows: Tensor) -> "GuideLoss":
        return GuideLoss(self.features, self.bank, self.y[rows], self.guides)

    def _guides(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Places in the bank, `[B, G]` each: guides of the own class, and of the nearest other class."""
        bank, bounds = self.bank, self.bank.bounds
        count = min(self.guides // 2, *(b - a for a, b in pairwise(bounds)))
        found = [(z @ bank.rows[a:b].T).topk(count) for a, b in pairwise(bounds)]
        near = torch.stack([top.values.mean(1) for top in found], 1).scatter(1, self.y[:, None], -torch.inf)
        places = torch.stack([top.indices + a for top, a in zip(found, bounds, strict=False)], 1)
        every = torch.arange(len(z), device=z.device)
        return places[every, self.y], places[every, near.argmax(1)]
