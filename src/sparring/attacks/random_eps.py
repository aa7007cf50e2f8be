"""PGD with a random eps."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import UserError, need_one_of
from ..core.rng import Rng, uniform, uniform_of_batch
from ..core.types import PerExampleLoss
from .pgd import PGD, SphereStart
from .single_step import SignStart
from .threats import L1, L2, Linf, ScaledThreat


@dataclass(frozen=True, slots=True)
class RandomEps:
    """PGD with an eps that is drawn anew for each call, up to the eps of the attack.

    The drawn share of the eps has a Beta(`alpha`, `beta`) distribution between `low` and 1; with 1 and 1 it is uniform.
    Steps shrink by the same share, whether or not the attack has an explicit step size. Training then covers all attack
    strengths: the variable robustness that the paper below is read to propose for inversion (the distribution is ours).

    Args:
        attack: PGD for `Linf`, `L2` or `L1`, without `patience` and with another start than `SphereStart` and
            `SignStart`.
        by: "batch" draws one eps for the whole batch, "example" one for each example. In evaluation each example always
            has its own, so that results do not depend on the batch.
        low: Smallest share of the eps, in [0, 1).
        alpha: First parameter of the Beta distribution, above 0.
        beta: Second parameter of the Beta distribution, above 0.

    Raises:
        UserError: If a number is out of range; if the attack is not PGD for `Linf`, `L2` or `L1`; if it has `patience`,
            which lets examples leave the batch; or if its start does not go with it (`SphereStart`, `SignStart`).

    References:
        Variable robustness: https://arxiv.org/abs/2007.11259.
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
                f"low must be in [0, 1), not {self.low:g}, and alpha and beta must be above 0, not {self.alpha:g} and "
                f"{self.beta:g}"
            )
        if not isinstance(self.attack, PGD):
            raise UserError(f"RandomEps needs a PGD, not {type(self.attack).__name__}")
        if not isinstance(self.attack.threat, Linf | L2 | L1):
            raise UserError(f"RandomEps is defined for Linf, L2 and L1, not for {self.attack.threat}")
        start = getattr(self.attack.start, "start", self.attack.start)
        if isinstance(start, SphereStart):
            raise UserError(
                "SphereStart() starts at the whole eps, whatever is drawn: use RandomStart() or GaussianStart()"
            )
        if isinstance(start, SignStart):
            raise UserError("SignStart() needs one eps for all examples: use RandomStart() or GaussianStart()")
        if self.attack.patience is not None:
            raise UserError("with patience, examples leave the batch for which eps was drawn: leave patience out")

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        share, whole = self._drawn(x, rng), self.attack.threat
        assert isinstance(whole, Linf | L2 | L1)
        whole.project(x[:1], x[:1])  # raises UserError for an eps that is too large for images of this size
        return replace(self.attack, threat=ScaledThreat(whole, share))(loss, x, rng)

    def _drawn(self, x: Tensor, rng: Rng) -> Tensor:
        """Draw the shares `[B]`; in evaluation each example has its own, so that results do not depend on the batch."""
        u = (uniform_of_batch if self.by == "batch" else uniform)(x.new_empty(len(x)), rng)
        if not self.alpha == self.beta == 1:
            from scipy.special import betaincinv

            u = torch.from_numpy(betaincinv(self.alpha, self.beta, u.double().cpu().numpy())).to(u)
        return self.low + (1 - self.low) * u
