"""Attacks whose eps is drawn."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import UserError, need_one_of
from ..core.rng import PerExample, Rng, uniform
from ..core.types import PerExampleLoss
from .pgd import PGD, SphereStart
from .threats import L1, L2, Linf, ScaledThreat


@dataclass(frozen=True, slots=True)
class RandomEps:
    """PGD whose eps is drawn anew each time, for the whole `batch` or for each `example`, up to its own.

    The share of its eps is Beta(`alpha`, `beta`) distributed between `low` and 1; with 1 and 1 it is uniform. Steps
    shrink with it, whether the attack was given their size or not. One training then meets every strength: the variable
    robustness that https://arxiv.org/abs/2007.11259 is read to propose for inversion (the distribution is ours).

    Raises `UserError` for another threat than Linf, L2 or L1, for patience, which lets examples leave the batch, and
    for a start at the whole eps.
    """

    attack: PGD
    by: Literal["batch", "example"] = "batch"
    low: float = 0.0
    alpha: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        need_one_of("by", self.by, ("batch", "example"))
        if not (0 <= self.low < 1 and self.alpha > 0 and self.beta > 0):
            raise UserError(
                f"shares of eps begin in [0, 1), not at {self.low:g}, and alpha and beta are above 0, not "
                f"{self.alpha:g} and {self.beta:g}"
            )
        if not isinstance(self.attack, PGD):
            raise UserError(f"{type(self.attack).__name__} is no PGD, whose eps could be drawn")
        if not isinstance(self.attack.threat, Linf | L2 | L1):
            raise UserError(f"of {self.attack.threat} no eps can be drawn: it is made for Linf, L2 and L1")
        if isinstance(getattr(self.attack.start, "start", self.attack.start), SphereStart):
            raise UserError(
                "SphereStart() starts at the whole eps, whatever is drawn: start RandomStart() or GaussianStart()"
            )
        if self.attack.patience is not None:
            raise UserError("with patience, examples leave the batch for which eps was drawn: leave it out")

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        share, whole = self._drawn(x, rng), self.attack.threat
        assert isinstance(whole, Linf | L2 | L1)
        whole.project(x[:1], x[:1])  # refuses an eps that no image of this size has
        return replace(self.attack, threat=ScaledThreat(whole, share))(loss, x, rng)

    def _drawn(self, x: Tensor, rng: Rng) -> Tensor:
        """Shares `[B]`; in evaluation each example has its own, for it cannot know of a batch."""
        u = uniform(x.new_empty(len(x)), rng)
        u = u[:1].expand(len(x)) if self.by == "batch" and not isinstance(rng, PerExample) else u
        if not self.alpha == self.beta == 1:
            from scipy.special import betaincinv

            u = torch.from_numpy(betaincinv(self.alpha, self.beta, u.double().cpu().numpy())).to(u)
        return self.low + (1 - self.low) * u
