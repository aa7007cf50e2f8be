"""Point losses: what an attack may raise. Each holds a forward function, so an attack need not know the model."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .core import Forward, PointLoss, Probe
from .errors import UserError
from .views import mode_matters


def _refuse_train_mode(forward: Forward) -> None:
    """A model given as itself must not be in training mode; an objective gives a function on purpose."""
    if isinstance(forward, nn.Module) and (layer := mode_matters(forward)):
        raise UserError(
            f"the model is in training mode, where {layer} makes an attack depend on the rest of the batch and "
            "changes the model: attack it inside `with eval_mode(model):`, or pass model.forward if that is meant"
        )


@dataclass(frozen=True, slots=True)
class Untargeted:
    """Cross-entropy with the true label `y` `[B]`; fooled when another class wins.

    Raises `UserError` for a model in training mode that has batch norm or dropout.
    """

    logits: Forward
    y: Tensor

    def __post_init__(self) -> None:
        _refuse_train_mode(self.logits)

    def __call__(self, x: Tensor) -> Probe:
        out = self.logits(x)
        return Probe(F.cross_entropy(out, self.y, reduction="none"), out.argmax(1) != self.y)

    def __getitem__(self, rows: Tensor) -> "Untargeted":
        return Untargeted(self.logits, self.y[rows])


@dataclass(frozen=True, slots=True)
class Targeted:
    """Minus the cross-entropy with the class wanted, `target` `[B]`; fooled when that class wins."""

    logits: Forward
    target: Tensor

    def __post_init__(self) -> None:
        _refuse_train_mode(self.logits)

    def __call__(self, x: Tensor) -> Probe:
        out = self.logits(x)
        return Probe(-F.cross_entropy(out, self.target, reduction="none"), out.argmax(1) == self.target)

    def __getitem__(self, rows: Tensor) -> "Targeted":
        return Targeted(self.logits, self.target[rows])


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL(p ‖ prediction) from fixed probabilities `p` `[B, C]`, times a weight that matters beside other losses."""

    logits: Forward
    p: Tensor
    weight: float = 1.0

    def __post_init__(self) -> None:
        _refuse_train_mode(self.logits)

    def __call__(self, x: Tensor) -> Probe:
        return Probe(self.weight * F.kl_div(self.logits(x).log_softmax(1), self.p, reduction="none").sum(1))

    def __getitem__(self, rows: Tensor) -> "Divergence":
        return Divergence(self.logits, self.p[rows], self.weight)


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of point losses; the first that can tell who is fooled decides."""

    parts: tuple[PointLoss, ...]

    def __call__(self, x: Tensor) -> Probe:
        probes = [part(x) for part in self.parts]
        fooled = next((p.fooled for p in probes if p.fooled is not None), None)
        return Probe(torch.stack([p.value for p in probes]).sum(0), fooled)

    def __getitem__(self, rows: Tensor) -> "Total":
        return Total(tuple(part[rows] for part in self.parts))
