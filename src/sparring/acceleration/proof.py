"""Verification of a copy against its model: equal logits and equal input gradients on a few images."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..core.modes import full_precision
from ..core.rng import draws_kept, make_rng
from ..core.types import Classifier
from .body_copy import Shadow
from .compiled import as_it_is
from .convolution import worth

# Tolerances of a copy: the norm of the difference relative to the norm of the model's value. Logits are compared after
# subtracting their mean over the classes, on which no prediction depends. Healthy nets reach 2e-7 (logits) and 4e-4
# (gradients) in float32, 0.007 and 0.14 in bf16.
LOGITS = {torch.float32: 1e-3, torch.bfloat16: 0.02}
BORN_LOW = "its logits are computed in bf16"
GRADIENT = {torch.float32: 0.02, torch.bfloat16: 0.3}


def disagreement(shadow: Shadow, model: nn.Module, few: Tensor, new: bool) -> str | None:
    """Return the reason why the copy must not replace `model`, found on a few images `[B, ...]`, or None.

    On the CPU, convolutions run the code that they use for many images; in a `new` copy they also run that for few.
    """
    with _undisturbed(few):
        with full_precision():  # on CUDA, TF32 would be compared with TF32
            wanted = _answer(model, few)
        for least in (0, None) if new else (0,):
            with _as_for_many(least):
                why = _unlike(shadow, _answer(shadow.net, few), wanted)
            if why is not None:
                return why
    return None


def flaw(shadow: Shadow, few: Tensor) -> str | None:
    """Return the fault of a copy by itself, or None: its forward changes its buffers, or its logits come out in bf16.

    Logits in bf16 are so coarse that an attack which compares losses cannot see differences.
    """
    net = shadow.net
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with _undisturbed(few), torch.no_grad(), shadow.watched() as head:
        logits = net(few)
    changed = [name for name, buffer in net.named_buffers() if not torch.equal(buffer, buffers[name])]
    if changed:
        return f"its forward changes {changed[0]}"
    if shadow.dtype == torch.float32 or type(net) is Classifier:  # the head of a Classifier is computed in float32
        return None
    return None if head and head[-1].data_ptr() == logits.data_ptr() else BORN_LOW  # held, so no memory is reused


@contextmanager
def _undisturbed(few: Tensor) -> Iterator[None]:
    """Leave torch's random generators unchanged, and compile nothing."""
    with draws_kept(few.device), as_it_is():
        yield


@contextmanager
def _as_for_many(least: int | None) -> Iterator[None]:
    if least is None:
        yield
        return
    with worth(least):
        yield


def _answer(model: nn.Module, few: Tensor) -> tuple[Tensor | None, list[Tensor]]:
    """Return the input gradient of a fixed weighted sum of logits, and the logits with the parts of an `Encoder`.

    The weights of the classes are random numbers from a fixed seed, so that every class counts.
    """
    with torch.enable_grad():
        x = few.detach().clone().requires_grad_()
        logits = model(x)
        gradient = None
        if logits.requires_grad:
            weights = torch.randn(logits.shape[1:], generator=make_rng(0)).to(logits)
            (gradient,) = torch.autograd.grad((_centred(logits) * weights).sum(), x, allow_unused=True)
    with torch.no_grad():
        parts = (
            model.body(model.normalize(few), parts=True) if isinstance(model, Classifier) and in_parts(model) else ()
        )
    return gradient, [_centred(logits.detach()), *parts]


def in_parts(model: Classifier) -> bool:
    """Return True if the body of the model gives more than features (`Encoder`)."""
    return bool(getattr(model.body, "in_parts", False))


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True)


def _unlike(
    shadow: Shadow, found: tuple[Tensor | None, list[Tensor]], wanted: tuple[Tensor | None, list[Tensor]]
) -> str | None:
    names = ("logits", *["parts"] * len(wanted[1]))
    for name, mine, true in zip(names, found[1], wanted[1], strict=False):
        if (why := _apart(f"its {name}", mine, true, LOGITS[shadow.dtype])) is not None:
            return why
    gradient, models = found[0], wanted[0]
    if gradient is None or models is None:
        return None if gradient is models else "its gradient is missing, or the model's is"
    return _apart("its gradients", gradient, models, GRADIENT[shadow.dtype])


def _apart(what: str, mine: Tensor, true: Tensor, most: float) -> str | None:
    if mine.shape != true.shape or not torch.equal(mine.isfinite(), true.isfinite()):
        return f"{what} differ from the model's in shape (here {tuple(mine.shape)}) or in which values are finite"
    share = float((mine - true).nan_to_num().norm() / true.nan_to_num().norm().clamp_min(1e-12))
    return f"{what} differ by {100 * share:.2g} %" if share > most else None
