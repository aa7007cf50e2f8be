"""The union of several perturbation sets, and an attack on it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.errors import UserError, need_whole
from ..core.rng import Rng, integers
from ..core.types import PerExampleLoss, each
from .compose import highest
from .gradients import input_grad
from .threats import L1, L2, Linf


@dataclass(frozen=True, slots=True)
class Union:
    """Set of the images that are in at least one of several sets, as `Union((Linf("8/255"), L2(0.5), L1(12)))`.

    Its norm is the smallest of the norms of the parts, each in units of its eps, so its own eps is 1 and steps are in
    units of the eps of the parts. `ascent` takes the step of that part whose step of length eps raises the loss most to
    first order; `sample` draws a point of one part, chosen at random; `project` gives the nearest of the projections.

    Args:
        parts: The sets.

    Raises:
        UserError: If there is no part.
    """

    parts: tuple[Linf | L2 | L1, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise UserError("a union of no sets holds no image: give some, as Union((Linf('8/255'), L2(0.5)))")

    @property
    def eps(self) -> float:
        """The size of the set in its own norm, 1."""
        return 1.0

    def sample(self, x: Tensor, rng: Rng) -> Tensor:
        drawn = torch.stack([part.sample(x, rng) for part in self.parts])
        return drawn[integers(len(x), len(self.parts), rng, x.device), _rows(x)]

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        found = torch.stack([part.project(z, x) for part in self.parts])
        return found[(found - z).flatten(2).norm(dim=2).argmin(0), _rows(x)]

    def ascent(self, grad: Tensor) -> Tensor:
        steps = torch.stack([part.eps * part.ascent(grad) for part in self.parts])
        return steps[(steps * grad).flatten(2).sum(2).argmax(0), _rows(grad)]

    def norm(self, delta: Tensor) -> Tensor:
        return torch.stack([part.norm(delta) / part.eps for part in self.parts]).amin(0)


@dataclass(frozen=True, slots=True)
class MSD:
    """Multi steepest descent: each step is that of the set of a union which leads to the highest loss.

    It begins at the image and returns the point of highest loss after any step. A step costs a forward and a backward
    pass, and a forward pass for each set. The released code (Linf 0.03, L2 0.5 or 0.3, L1 12; 50 steps of 0.003, 0.05
    and 0.05) projects onto L1 before it clips to [0, 1], draws between 5 and 20 pixels for each L1 step, and leaves out
    pixels at the border; here `L1` decides.

    Args:
        threat: The union of the sets.
        steps: Number of steps, at least 1.
        step_sizes: Length of a step in each set, in pixel units; None is 2.5 eps / steps.

    Raises:
        UserError: If `threat` is no union, `steps` is not a whole number above 0, or `step_sizes` are not one positive
            number for each set.

    References:
        MSD: https://arxiv.org/abs/1909.04068.
    """

    threat: Union
    steps: int = 50
    step_sizes: tuple[float, ...] | None = None
    recordable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need_whole("steps", self.steps)
        if not isinstance(self.threat, Union):
            raise UserError(f"MSD is defined for a union of sets, not for {self.threat!r}: take PGD, or Union((..,))")
        sizes = self.step_sizes
        if sizes is not None and not (len(sizes) == len(self.threat.parts) and all(size > 0 for size in sizes)):
            raise UserError(f"step_sizes = {sizes} must be a length above 0 for each of {len(self.threat.parts)} sets")

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        del rng
        x = x.detach()
        z = out = x.clone()
        most = torch.full_like(x[:, 0, 0, 0], -torch.inf)
        sets = self.threat.parts
        sizes = self.step_sizes or tuple(2.5 * part.eps / self.steps for part in sets)
        for _ in range(self.steps):
            grad = input_grad(loss, z)
            tried = [part.project(z + s * part.ascent(grad), x) for part, s in zip(sets, sizes, strict=True)]
            z, value = highest(loss, tried)
            higher = (value > most) | value.isnan()  # a NaN stays visible
            out, most = torch.where(each(higher, x), z, out), torch.where(higher, value.to(most), most)
        return out


def _rows(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)
