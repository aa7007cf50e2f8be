"""How a model is looked at for a while. Every view undoes itself, also after an exception."""

from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from .core import Pointwise, View
from .errors import UserError


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


@dataclass(frozen=True, slots=True)
class SmoothBackward:
    """Every `nn.ReLU` computes what it did, but its gradient is that of a softplus: sigmoid(`alpha` x) for 1[x > 0].

    As `inner_view` or `outer_view` of a method, it smooths the gradient that crafts the attack, or that moves the
    weights (https://arxiv.org/abs/2006.14536, with alpha 10). Logits keep their bits. Raises `UserError` for a model
    without an `nn.ReLU`.
    """

    alpha: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf"):
            raise UserError(f"alpha = {self.alpha:g} is no number above 0")

    @contextmanager
    def __call__(self, model: nn.Module) -> Generator[None]:
        sites = [m for m in model.modules() if type(m) is nn.ReLU]
        if not sites:
            raise UserError(
                f"{type(model).__name__} has no nn.ReLU whose gradient could be smoothed: leave SmoothBackward away"
            )
        for m in sites:  # the module stays the same, and so do names, hooks and what is known of the model
            m.__class__ = _SmoothlyDerived
            setattr(m, _ALPHA, self.alpha)
        try:
            yield
        finally:
            for m in sites:
                m.__class__ = nn.ReLU
                delattr(m, _ALPHA)


_ALPHA = "alpha of the gradient"


class _SmoothlyDerived(Pointwise, nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _SmoothReLUGradient.apply(x, getattr(self, _ALPHA))
        return out


class _SmoothReLUGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return x.relu()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * torch.sigmoid(ctx.alpha * x), None


@dataclass(frozen=True, slots=True)
class Together:
    """Several views at once, the first outermost: `Together((eval_mode, SmoothBackward()))`."""

    views: tuple[View, ...]

    @contextmanager
    def __call__(self, model: nn.Module) -> Generator[None]:
        with ExitStack() as stack:
            for view in self.views:
                stack.enter_context(view(model))
            yield


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
