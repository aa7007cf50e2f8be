"""Checks of input that would otherwise mislead. Each message says what was given, what is allowed and what to do."""

from collections.abc import Mapping
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from .errors import UserError
from .types import Classifier, LossOutput, PerExampleLoss, TensorData, Terms


def check_tensor(x: object, what: str) -> None:
    """Raise `UserError` unless `x` is an ordinary dense tensor, made where gradients could be recorded."""
    if isinstance(x, np.ndarray):
        raise UserError(f"{what} are a numpy array: pass torch.from_numpy(..)")
    if not isinstance(x, Tensor):
        raise UserError(f"{what} are a {type(x).__name__}: wanted is a torch.Tensor")
    if x.layout != torch.strided or x.is_quantized:
        raise UserError(f"{what} are {'quantized' if x.is_quantized else x.layout}: wanted is a dense tensor")
    if x.is_inference():
        raise UserError(f"{what} were made under torch.inference_mode(), where no gradient is recorded: pass a clone")


def check_images(x: Tensor, what: str = "images", bytes_too: bool = False) -> None:
    """Raise `UserError` unless `x` `[N, C, H, W]` is floating point in [0, 1], or bytes if `bytes_too`."""
    check_tensor(x, what)
    x = x.detach()
    if x.ndim != 4 or len(x) == 0:
        raise UserError(f"{what} have shape {tuple(x.shape)}: wanted is [N, channels, height, width] with N > 0")
    if x.dtype == torch.uint8 and bytes_too:
        return
    if not x.is_floating_point():
        raise UserError(
            f"{what} are {x.dtype}: wanted is floating point in [0, 1], as sparring.core.types.pixels makes it"
        )
    if not bool(x.isfinite().all()):
        bad = int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
        raise UserError(f"{what} hold NaN or infinite pixels, first in number {bad}")
    low, high = x.min(), x.max()
    if low < 0 or high > 1:
        raise UserError(
            f"{what} span [{_shortest(low)}, {_shortest(high)}], outside [0, 1]: pass raw pixels (bytes / 255) and let "
            "the model normalise them, as sparring.models.Normalize does; eps is in pixel units"
        )


def check_attack(attack: object) -> None:
    """Raise `UserError` if the value is no attack, but for example its class or its name."""
    if isinstance(attack, type):
        raise UserError(f"{attack.__name__} is a class: wanted is an attack with its set, as PGD(Linf('8/255'))")
    if not callable(attack):
        raise UserError(f"{attack!r} is no attack: wanted is a value such as PGD(Linf('8/255'))")


def checked_loss(loss: PerExampleLoss, objective: object) -> PerExampleLoss:
    """Return what `objective.inner` gave. Raises `UserError` if it is no function of images."""
    if not callable(loss):
        raise UserError(
            f"inner of {type(objective).__name__} gives a {type(loss).__name__}: wanted is the loss itself, a function "
            "of images that gives LossOutput(value, fooled), as CE(model, y) is"
        )
    return loss


def checked_output(found: object, x: Tensor, loss: object) -> LossOutput:
    """Return what a loss gave for images `x`. Raises `UserError` unless it is a number of each, and who is fooled."""
    what = getattr(loss, "__name__", None) or type(loss).__name__
    if not isinstance(found, tuple) or len(found) != 2:
        raise UserError(
            f"the loss {what} gives a {type(found).__name__}: wanted is LossOutput(value, fooled), with None as "
            "`fooled` where it does not know"
        )
    value = found[0]
    if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
        given = f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"is a {type(value).__name__}"
        raise UserError(f"the value of the loss {what} {given}: wanted is one number per image, [{len(x)}]")
    return LossOutput(*found)


def checked_terms(terms: Terms, objective: object) -> Terms:
    """Return what `objective.outer` gave. Raises `UserError` unless it is scalar tensors by their names."""
    name = f"outer of {type(objective).__name__}"
    if not isinstance(terms, Mapping) or not terms:
        given = "no term" if isinstance(terms, Mapping) else f"a {type(terms).__name__}"
        raise UserError(f"{name} gives {given}: wanted are terms by name, as {{'ce': loss}}")
    for key, term in terms.items():
        if not isinstance(term, Tensor):
            raise UserError(
                f"{name}: {key!r} is a {type(term).__name__}: wanted is a tensor, without .item() or float()"
            )
        if term.ndim:
            raise UserError(f"{name}: {key!r} has shape {tuple(term.shape)}: wanted is a scalar, as its mean")
    return terms


def as_classifier(model: nn.Module, images: Tensor) -> Classifier:
    """Return the model if it is a `Classifier`, which has features; else split it before its last linear layer.

    Raises `UserError` if no linear layer gives the logits.
    """
    return Classifier.split(model, images)


def _shortest(number: Tensor) -> str:
    """Write a number with as few digits as distinguish it from its neighbours: one just above 1 is not shown as 1."""
    known = number.cpu() if number.dtype != torch.bfloat16 else number.cpu().float()
    return str(known.numpy()).removesuffix(".0")


def check_labels(y: Tensor, num_classes: int, what: str = "labels") -> None:
    """Raise `UserError` unless `y` `[N]` holds integers in 0 .. `num_classes` - 1, with at least two classes."""
    check_tensor(y, what)
    if num_classes < 2:
        raise UserError(f"{what}: {num_classes} class is nothing to classify, at least 2 are needed")
    if y.ndim != 1 or y.dtype != torch.int64:
        raise UserError(f"{what} are {y.dtype} of shape {tuple(y.shape)}: wanted are class numbers [N], as y.long()")
    if len(y) and (int(y.min()) < 0 or int(y.max()) >= num_classes):
        raise UserError(
            f"{what} span {int(y.min())} to {int(y.max())}, but with {num_classes} classes they run from 0 to "
            f"{num_classes - 1}"
        )


def check_soft_targets(soft: Tensor, count: int, num_classes: int) -> None:
    """Raise `UserError` unless `soft` holds a probability of each class for each of `count` images."""
    check_tensor(soft, "soft targets")
    if tuple(soft.shape) != (count, num_classes) or not soft.is_floating_point():
        raise UserError(
            f"soft targets are {soft.dtype} of shape {tuple(soft.shape)}: wanted is a probability for each class, "
            f"floating point [{count}, {num_classes}]"
        )
    if not bool(probable(soft).all()):
        bad = int((~probable(soft)).nonzero()[0])
        raise UserError(
            f"soft target number {bad} sums to {float(soft[bad].sum()):g}: wanted are probabilities, which sum to 1"
        )


def check_data(data: TensorData, what: str) -> None:
    check_images(data.x, f"{what} images", bytes_too=True)
    check_labels(data.y, len(data.classes), f"{what} labels")
    if len(data.x) != len(data.y):
        raise UserError(f"{what}: {len(data.x)} images, but {len(data.y)} labels")


def check_logits(
    out: Tensor, count: int, num_classes: int | None = None, highest: int | None = None, later: bool = False
) -> None:
    """Raise `UserError` unless `out` is `[count, C]` with a class for each label, and no probabilities.

    Probabilities saturate: the gradient of a loss on them vanishes, and attacks report robustness that does not exist.
    With `later`, the caller checks for probabilities itself.
    """
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != count:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise UserError(f"the model gives {shape} for {count} images: wanted are logits [{count}, classes]")
    if not out.is_floating_point():
        raise UserError(f"the model gives {out.dtype}: wanted are logits in floating point, before any argmax")
    if out.shape[1] < 2:
        raise UserError("the model gives one number per image: wanted are logits of at least 2 classes")
    if num_classes is not None and out.shape[1] != num_classes:
        raise UserError(
            f"the model gives {out.shape[1]} classes, but the data have {num_classes}, with labels from 0 to "
            f"{num_classes - 1}"
        )
    if highest is not None and highest >= out.shape[1]:
        raise UserError(f"a label is {highest}, but the model gives {out.shape[1]} classes, 0 to {out.shape[1] - 1}")
    if not later and bool(probable(out).all()):
        refuse_probabilities()


def probable(out: Tensor) -> Tensor:
    """Return a mask of the rows that could be probabilities: numbers in [0, 1] that sum to 1.

    A few rows of logits may look like probabilities by chance.
    """
    values = out.detach().float()
    return ((values >= 0) & (values <= 1)).all(1) & ((values.sum(1) - 1).abs() < 1e-4)


SQUASHED = (
    "all outputs of the model lie in [0, 1], as behind a sigmoid: attacks need logits, and find fewer adversarial "
    "examples without them"
)


def squashed(out: Tensor) -> bool:
    """Return True for outputs as of a sigmoid for each class: all of them lie in [0, 1], and one reaches 0.9.

    Few or small logits lie there by chance, and probabilities are another matter.
    """
    values = out.detach().float()
    inside = bool(((values >= 0) & (values <= 1)).all()) and bool((values > 0.9).any())
    return len(out) >= 8 and inside and not bool(probable(out).all())


def refuse_probabilities() -> NoReturn:
    raise UserError("the model gives probabilities, and attacks need logits: remove the final softmax")
