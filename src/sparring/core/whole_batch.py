"""Losses that look at all images of a batch together, as batch norm does in training mode, or a joint contrast."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import UserError
from .types import LossOutput, PerExampleLoss


@dataclass(frozen=True, slots=True)
class WholeBatch:
    """A loss that serves the whole batch only, since its value for an image depends on the images beside it.

    Raises `UserError` when it is asked for some of the rows. `why` ends the sentence "takes some rows out of a batch".
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
    """The name of a batch norm that goes by the batch in the present mode of the model, if there is one."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            return f"{name or 'itself'} ({type(module).__name__})"
    return None


def served(loss: PerExampleLoss, model: nn.Module) -> PerExampleLoss:
    """`loss`, as a loss of the whole batch if batch norm of `model` goes by the batch."""
    layer = by_batch(model)
    if layer is None:
        return loss
    why = (
        f"of which {layer} takes its mean and variance, which would be those of ever fewer images: leave inner_view at "
        "eval_mode, or "
    )
    return WholeBatch(loss, why)
