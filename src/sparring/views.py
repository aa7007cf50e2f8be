"""How a model is looked at for a while. Every view undoes itself, also after an exception."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def _mode(model: nn.Module, training: bool) -> Generator[None]:
    before = {m: m.training for m in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for m, was in before.items():
            m.training = was


def eval_mode(model: nn.Module) -> AbstractContextManager[None]:
    """Inference mode. Afterwards each module has its own mode back: layers you froze stay frozen."""
    return _mode(model, False)


def train_mode(model: nn.Module) -> AbstractContextManager[None]:
    """Training mode for the whole model, layers you had put in eval mode too."""
    return _mode(model, True)


def unchanged(model: nn.Module) -> AbstractContextManager[None]:
    """The model in whatever mode its owner has left it."""
    del model
    return nullcontext()


@contextmanager
def frozen(model: nn.Module) -> Generator[None]:
    """No gradient for the parameters: an attack differentiates with respect to its input only."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    for p in wanted:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)


class Searched(NamedTuple):
    """What attacks search on, and the order in memory in which it likes images."""

    model: nn.Module
    memory_format: torch.memory_format = torch.contiguous_format


@contextmanager
def channels_last(model: nn.Module, few: Tensor) -> Generator[Searched]:
    """The model with its convolution weights in channels-last order on the CPU, where that is faster.

    The numbers are the same; afterwards each weight has its own memory back. `few` `[B, C, H, W]` are tried first: a
    model that cannot do with it, because of `view` for one, is given as it is.
    """
    before = {p: p.data for p in model.parameters() if p.ndim == 4 and p.device.type == "cpu"}
    for p, data in before.items():
        p.data = data.contiguous(memory_format=torch.channels_last)
    try:
        if before and _runs(model, few, torch.channels_last) and _runs(model, few, torch.contiguous_format):
            yield Searched(model, torch.channels_last)
            return
    finally:
        for p, data in before.items():
            p.data = data
    yield Searched(model)


def _runs(model: nn.Module, few: Tensor, memory_format: torch.memory_format) -> bool:
    with torch.enable_grad():
        z = few.clone(memory_format=memory_format).requires_grad_()
        try:
            out = model(z)
            if out.requires_grad:
                torch.autograd.grad(out.sum(), z, allow_unused=True)
        except RuntimeError:
            return False
    return True


@contextmanager
def full_precision() -> Generator[None]:
    """Convolutions and products in float32 are computed in float32, not in TF32, which CUDA takes for convolutions."""
    backends: Any = torch.backends
    places = (backends.cudnn.conv, backends.cuda.matmul)
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, was in zip(places, before, strict=True):
            place.fp32_precision = was


def mode_matters(model: nn.Module) -> str | None:
    """The name of a layer that is in training mode and acts differently there, if there is one.

    Batch norm and anything called drop-something are known; a function that reads `training` is not seen.
    """
    for name, module in model.named_modules():
        acts = isinstance(module, _BatchNorm | _DropoutNd) or "drop" in type(module).__name__.lower()
        if module.training and acts:
            return f"{name or 'itself'} ({type(module).__name__})"
    return None
