"""Temporary changes to a model: its mode, batch norm statistics, gradients. Each is undone, even after an exception."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from .types import ModelMode

T = TypeVar("T")


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
    """Puts a model into inference mode.

    Args:
        model: The model.

    Returns:
        A context manager. On exit each module gets its own mode back, so layers that were frozen stay frozen.
    """
    return _mode(model, False)


def train_mode(model: nn.Module) -> AbstractContextManager[None]:
    """Puts the whole model into training mode, including layers that were put into eval mode.

    Args:
        model: The model.

    Returns:
        A context manager. On exit each module gets its own mode back.
    """
    return _mode(model, True)


@contextmanager
def statistics_kept(model: nn.Module) -> Generator[None]:
    """Keeps the running statistics of batch norm as they are.

    Batch norm layers that are in training mode still normalise by the batch.

    Args:
        model: The model.

    Yields:
        Nothing. On exit the layers track their statistics again.
    """
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
    """Puts a model into training mode, but keeps the running statistics of batch norm as they are.

    Args:
        model: The model.

    Yields:
        Nothing. On exit each module gets its own mode back.
    """
    with train_mode(model), statistics_kept(model):
        yield


def unchanged(model: nn.Module) -> AbstractContextManager[None]:
    """Leaves a model in its present mode.

    Args:
        model: The model.

    Returns:
        A context manager that does nothing.
    """
    del model
    return nullcontext()


@contextmanager
def frozen(model: nn.Module) -> Generator[None]:
    """Turns off the gradients of all parameters, since an attack differentiates with respect to its input only.

    Args:
        model: The model.

    Yields:
        Nothing. On exit the parameters that required gradients require them again.
    """
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
    """Several model modes at once, as in `ComposedMode((eval_mode, SmoothBackward()))`.

    Args:
        views: The modes; the first is entered first and left last.
    """

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
    """Writes a model mode as text that is the same in every process.

    Args:
        view: The mode.

    Returns:
        The name of a function, or the `repr` of any other value.
    """
    return getattr(view, "__name__", None) or repr(view)


@contextmanager
def full_precision() -> Generator[None]:
    """Computes float32 convolutions and matrix products in full float32 precision.

    This holds even if the user allows faster formats: TF32, or bf16 on a CPU. Both interfaces of torch are set, so that
    either can be read inside: where they disagree, reading raises, and inductor reads the older one when it compiles.

    Yields:
        Nothing. On exit the settings of torch are restored.
    """
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
    products = _read(torch.get_float32_matmul_precision)
    convolutions = _read(lambda: torch.backends.cudnn.allow_tf32)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        for place, was in zip(places, before, strict=True):
            place.fp32_precision = was


def float32_format(device: torch.device) -> str:
    """Tells in which format torch multiplies float32 numbers on a device.

    Args:
        device: The device.

    Returns:
        "tf32" if convolutions or matrix products may use it on CUDA, else "fp32".
    """
    if device.type != "cuda":
        return "fp32"
    convolutions = _read(lambda: torch.backends.cudnn.allow_tf32)
    products = _read(torch.get_float32_matmul_precision)
    return "fp32" if convolutions is False and products == "highest" else "tf32"


def _read(setting: Callable[[], T]) -> T | None:
    """Return a setting of torch's older interface; None where the user has set the newer one to something else."""
    try:
        return setting()
    except RuntimeError:
        return None


@contextmanager
def twice_differentiable() -> Generator[None]:
    """Computes attention by its formula: the fused kernels have no second derivative.

    Yields:
        Nothing. On exit the choice of kernels is restored.
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


def mode_matters(model: nn.Module) -> str | None:
    """Finds a layer that is in training mode and behaves differently there than in eval mode.

    It knows batch norm, dropout and any layer whose class name contains "drop". A function that reads `training` by
    itself is not detected.

    Args:
        model: The model.

    Returns:
        Name and class of the first such layer, or None if there is none.
    """
    for name, module in model.named_modules():
        acts = isinstance(module, _BatchNorm | _DropoutNd) or "drop" in type(module).__name__.lower()
        if module.training and acts:
            return f"{name or 'itself'} ({type(module).__name__})"
    return None
