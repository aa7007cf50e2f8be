"""From the neighbours of one class to those of another: what an attack on nearest neighbours raises by labels."""

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
    """Leaves the nearest examples of the own class for those of the nearest other one (PGD-kNN).

    As released for https://arxiv.org/abs/1911.06470, whose definition is in https://arxiv.org/abs/1903.08333 and its
    code: `guides` / 2 examples of the class `y` `[B]` push, as many of the other class whose own are the nearest on
    average pull, each as far as the squared distance of the k-th neighbour. Guides, class and distance are chosen anew
    at every call. There are no more of a class than the smallest class has examples.
    """

    features: Forward
    bank: KNN
    y: Tensor
    guides: int = 300

    def __post_init__(self) -> None:
        if self.guides < 2:
            raise UserError(f"guides come from two classes: at least 2, not {self.guides}")

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
        """Places in the bank, `[B, G]` each: of the own class, and of the nearest other one."""
        bank, bounds = self.bank, self.bank.bounds
        count = min(self.guides // 2, *(b - a for a, b in pairwise(bounds)))
        found = [(z @ bank.rows[a:b].T).topk(count) for a, b in pairwise(bounds)]
        near = torch.stack([top.values.mean(1) for top in found], 1).scatter(1, self.y[:, None], -torch.inf)
        places = torch.stack([top.indices + a for top, a in zip(found, bounds, strict=False)], 1)
        every = torch.arange(len(z), device=z.device)
        return places[every, self.y], places[every, near.argmax(1)]
