"""Losses that depend on all images of a batch together, because of batch norm in training mode or a joint contrast."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import UserError
from .types import LossOutput, PerExampleLoss


@dataclass(frozen=True, slots=True)
class WholeBatch:
    """A loss that is defined for the whole batch only, since its value for an image depends on the other images.

    Raises `UserError` if some of the rows are selected. `why` continues the sentence "takes some rows out of a batch".
    """

    loss: Callable[[Tensor], LossOutput]
    why: str

    def __call__(self, x: Tensor) -> LossOutput:
        return self.loss(x)

    def __getitem__(self, rows: Tensor) -> PerExampleLoss:
        raise UserError(
            f"this attack takes some rows out of a batch {self.why}use an attack on whole batches (PGD, with patience "
            "or without)"
        )


def by_batch(model: nn.Module) -> str | None:
    """Return the name of a batch norm layer that uses batch statistics in the present mode of the model, or None."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            return f"{name or 'itself'} ({type(module).__name__})"
    return None


def served(loss: PerExampleLoss, model: nn.Module) -> PerExampleLoss:
    """Return `loss`, as a loss of the whole batch if a batch norm layer of `model` uses batch statistics."""
    layer = by_batch(model)
    if layer is None:
        return loss
    why = (
        f"of which {layer} takes its mean and variance, which would be those of ever fewer images: leave inner_view at "
        "eval_mode, or "
    )
    return WholeBatch(loss, why)
