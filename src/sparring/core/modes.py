"""How a model is looked at for a while. Every view undoes itself, also after an exception."""

from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from .types import ModelMode


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


@contextmanager
def statistics_kept(model: nn.Module) -> Generator[None]:
    """Batch norm that is in training mode normalises by the batch, and its running statistics stay as they are."""
    moving = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for m in moving:
        m.track_running_stats = False
    try:
        yield
    finally:
        for m in moving:
            m.track_running_stats = True


@contextmanager
def batch_statistics(model: nn.Module) -> Generator[None]:
    """Training mode, but for the running statistics of batch norm, which stay as they are."""
    with train_mode(model), statistics_kept(model):
        yield


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


@dataclass(frozen=True, slots=True, repr=False)
class ComposedMode:
    """Several views at once, the first outermost: `ComposedMode((eval_mode, SmoothBackward()))`."""

    views: tuple[ModelMode, ...]

    def __repr__(self) -> str:
        return f"ComposedMode(({', '.join(map(named, self.views))}))"

    @contextmanager
    def __call__(self, model: nn.Module) -> Generator[None]:
        with ExitStack() as stack:
            for view in self.views:
                stack.enter_context(view(model))
            yield


def named(view: ModelMode) -> str:
    """A view in words that are the same in every process."""
    return getattr(view, "__name__", None) or repr(view)


@contextmanager
def full_precision() -> Generator[None]:
    """Convolutions and products in float32 are computed so, whatever the user allows: TF32, or bf16 on a CPU."""
    backends: Any = torch.backends
    places = (
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.cuda.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
        backends.mkldnn.matmul,
    )
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
