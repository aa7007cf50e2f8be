"""Models and images that no recipe of ours names: your own function, or weights with the name of an architecture."""

import ast
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from . import models
from .checkpoint import fill, read_weights
from .core import Classifier, Data, pixels
from .data import load_test
from .errors import UserError, nearest
from .models import Normalize, load_robustbench
from .views import eval_mode

_ARCHITECTURES: dict[str, Callable[..., Classifier]] = {
    "preact_resnet18": models.preact_resnet18,
    "resnet18": models.resnet18,
    "small_cnn": models.small_cnn,
    "wide_resnet": models.wide_resnet,
}


def imported_model(spec: str) -> nn.Module:
    """The model that `module:function` returns. This runs code that the user names, from the present folder too.

    Raises `UserError` if there is no such function, or if it returns no `nn.Module`.
    """
    module, _, name = spec.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"{spec} cannot be found ({error}): write module:function, as in mymodels:build") from error
        model = function() if callable(function) and not isinstance(function, nn.Module) else function
    finally:
        sys.path.remove(here)
    if not isinstance(model, nn.Module):
        raise UserError(f"{spec} gives a {type(model).__name__}: wanted is a torch.nn.Module that gives logits")
    return model


def named_model(spec: str, weights: Path, like: Data) -> nn.Module:
    """Weights in an architecture of ours: `preact_resnet18`, or with options `wide_resnet:depth=34,width=10`.

    Our own names and RobustBench's are read. Raises `UserError` for names and options that are not known, and for
    weights that do not fit.
    """
    name, _, options = spec.partition(":")
    if name not in _ARCHITECTURES:
        raise UserError(f"no architecture {name!r}: {nearest(name, _ARCHITECTURES)}")
    given = dict(part.partition("=")[::2] for part in options.split(",") if part)
    tensors, _ = read_weights(weights)
    classes = _classes(tensors) or len(like.classes)
    blank = Normalize([0.0] * like.shape[0], [1.0] * like.shape[0]) if "normalize.mean" in tensors else None
    try:
        model = _ARCHITECTURES[name](classes, like.shape, blank, **{k: _value(text) for k, text in given.items()})
    except TypeError as error:
        raise UserError(f"{spec}: {error}") from error
    if set(tensors) == set(model.state_dict()):
        return fill(model, tensors, f"{weights} is of another architecture than {spec}")
    return load_robustbench(model, tensors)


def _classes(tensors: dict[str, torch.Tensor]) -> int | None:
    """How many classes the last layer has."""
    sizes = [len(t) for name, t in tensors.items() if name.endswith(("linear.weight", "fc.weight", "head.weight"))]
    return sizes[-1] if sizes else None


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def normalized(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """A model that expects normalised images, as one that takes pixels in [0, 1]."""
    if len(mean) != len(std) or any(s <= 0 for s in std):
        raise UserError(f"mean and std have as many numbers, and those of std are above 0: not {mean} and {std}")
    return nn.Sequential(Normalize(mean, std), model)


@torch.no_grad()
def fitting(model: nn.Module, spec: str) -> Data:
    """The test images of `spec`, with as many classes as the model has: a test set need not hold them all."""
    test = load_test(spec)
    few = pixels(test.x[:2]).to(next((p.device for p in model.parameters()), torch.device("cpu")))
    with eval_mode(model):
        try:
            out = model(few)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the model cannot take images of shape {test.shape} ({error})") from error
    if isinstance(out, torch.Tensor) and out.ndim == 2 and out.shape[1] > len(test.classes):
        return Data(test.x, test.y, tuple(str(k) for k in range(out.shape[1])))
    return test
