"""Checks of the models and tensors that a user hands in. They are made once, and leave what they check as it was."""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from inspect import signature
from itertools import chain
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .errors import UserError, need_seed, need_whole
from .modes import eval_mode
from .rng import draws_kept
from .types import TensorData, Threat, pixels
from .validation import check_data, check_images, check_labels, check_logits, check_soft_targets, check_tensor

P = ParamSpec("P")
T = TypeVar("T")

_LOCKS: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()
_GUARD = threading.Lock()
FEW = 8
"""Number of images on which a model is checked."""


@contextmanager
def alone(*models: nn.Module) -> Iterator[None]:
    """Keep other threads from using these models, and enable gradients even if the caller has disabled them.

    An attack temporarily changes the mode of a model and whether its weights require gradients: two attacks at once
    would undo each other's changes.
    """
    for model in models:
        check_model(model)
    with ExitStack() as stack:
        for model in sorted(set(models), key=id):  # one order for all threads, so that none waits for another
            stack.enter_context(_lock(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


def _lock(model: nn.Module) -> threading.RLock:
    with _GUARD:
        return _LOCKS.setdefault(model, threading.RLock())


def gated(function: Callable[P, T]) -> Callable[P, T]:
    """Make an analysis check what it is given, and have its models to itself while it runs.

    Models and `TensorData` are checked, and arguments of the names `batch_size`, `seed`, `steps` and `threat`.
    """
    called = signature(function)

    @wraps(function)
    def through(*args: P.args, **options: P.kwargs) -> T:
        arguments = called.bind(*args, **options).arguments
        _check_arguments(arguments)
        named = list(arguments.values())
        check_model(named[0][0] if isinstance(named[0], list | tuple) and named[0] else named[0])
        given = [each for one in named for each in (one if isinstance(one, list | tuple) else [one])]
        models = [each for each in given if isinstance(each, nn.Module)]
        with alone(*models):
            for data in (each for each in given if isinstance(each, TensorData)):
                check_data(data, "images")
                check_taken(models[0], as_taken(models[0], data.x[:FEW]))
            return function(*args, **options)

    return through


def _check_arguments(given: Mapping[str, object]) -> None:
    """Check the arguments that mean the same in all analyses."""
    for name in ("batch_size", "steps"):
        if given.get(name) is not None:
            need_whole(name, given[name])
    if "seed" in given:
        need_seed(given["seed"])
    if "threat" in given and not isinstance(given["threat"], Threat):
        raise UserError(f"threat = {given['threat']!r:.60}: wanted is a set of images, such as Linf(8 / 255)")


def check_model(model: object) -> None:
    """Raise `UserError` unless the model is an `nn.Module` whose weights exist and may be used with gradients."""
    if isinstance(model, type):
        raise UserError(f"the model is the class {model.__name__}: call it to make one, as {model.__name__}(..)")
    if not isinstance(model, nn.Module):
        raise UserError(
            f"the model is a {type(model).__name__}: wanted is a torch.nn.Module that gives logits; a function becomes "
            "one as the forward of a class"
        )
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise UserError(f"{name} of the model is not made yet: run the lazy model once on a batch of images")
        if tensor.is_inference():
            raise UserError(f"{name} of the model was made under torch.inference_mode(): make the model outside of it")


def answer(model: nn.Module, x: Tensor) -> Tensor:
    """Return the output of the model for a few images, in its present mode, without gradients.

    Raises `UserError` if the model does not accept the images, or if its forward changes them.
    """
    few = x[:FEW].detach().clone()
    kept = few.clone()
    try:
        with draws_kept(x.device), torch.no_grad():  # the check must not change later draws
            out: Tensor = model(few)
    except UserError:  # of a module of ours, which says what is wrong
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError) as error:
        raise UserError(_not_taken(x, error)) from error
    if not torch.equal(few, kept):
        raise UserError(
            "the forward of the model changes the images that it is given, in place: attacks would lose the originals. "
            "Let it work on new tensors, as x = x - mean instead of x.sub_(mean)"
        )
    return out


def _not_taken(x: Tensor, error: Exception) -> str:
    shape = "x".join(map(str, x.shape[1:]))
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    advice = "resize them to those that it was made for, with sparring.data.Resized or, on the command line, --resize"
    if x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        advice = "channels come first: pass x.permute(0, 3, 1, 2)"
    return f"the model does not take images of {shape} ({reason}): {advice}"


def check_taken(model: nn.Module, x: Tensor) -> Tensor:
    """Check that the model accepts the images `x`, of the type and device of its weights; return its `answer`."""
    check_images(x)
    weights = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weights is not None:
        check_precision(weights)
    if weights is not None and (x.dtype != weights.dtype or x.device != weights.device):
        raise UserError(
            f"images are {x.dtype} on {x.device}, the weights of the model {weights.dtype} on {weights.device}: pass "
            f"x.to({str(weights.device)!r}, {weights.dtype})"
        )
    with switched_to_eval(model):
        return answer(model, x)


def check_precision(weights: Tensor) -> None:
    """Raise `UserError` for weights that are neither float32 nor float64."""
    if weights.dtype not in (torch.float32, torch.float64):
        raise UserError(
            f"the weights of the model are {weights.dtype}, whose rounding would hide an eps of 8/255: wrap the model "
            "so that it takes float32 images, or convert it with model.float()"
        )


def as_taken(model: nn.Module, x: Tensor) -> Tensor:
    """Convert images of a data set, bytes or floats, to the type and device of the weights."""
    weights = next((p for p in model.parameters() if p.is_floating_point()), None)
    return pixels(x) if weights is None else pixels(x).to(weights)


@contextmanager
def switched_to_eval(model: nn.Module) -> Iterator[None]:
    """Apply `eval_mode`; raise `UserError` for a model without modes, such as one that torch has exported."""
    view = eval_mode(model)
    try:
        view.__enter__()
    except NotImplementedError as error:
        raise UserError(
            f"the mode of the model cannot be switched ({error}): pass the module it was made of"
        ) from error
    try:
        yield
    finally:
        view.__exit__(None, None, None)


def check_examples(model: nn.Module, x: Tensor, y: Tensor, soft: Tensor | None = None) -> None:
    """Check that the model accepts the images, and that its logits in eval mode have a class for each label."""
    logits = check_taken(model, x)
    check_tensor(y, "labels")
    if len(x) != len(y):
        raise UserError(f"{len(x)} images, but {len(y)} labels")
    if y.device != x.device:
        raise UserError(f"labels are on {y.device}, images on {x.device}: pass y.to({str(x.device)!r})")
    check_labels(y, max(2, int(y.max()) + 1) if y.dtype == torch.int64 else 2)
    check_logits(logits, min(FEW, len(x)), highest=int(y.max()))
    if soft is not None:
        check_soft_targets(soft, len(x), logits.shape[1])
