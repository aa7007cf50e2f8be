"""Models that no recipe of ours describes: a function of the user, or weights with the name of an architecture."""

import ast
import contextlib
import importlib
import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import models
from ..core.errors import UserError, nearest
from ..core.foreign import member, split
from ..core.modes import eval_mode
from ..core.serialization import Build
from ..core.types import Classifier, LabelledData, pixels
from ..models import Normalize, load_robustbench
from ..training.checkpoint import fill, read_weights
from .load import load_model
from .robustbench import robustbench_model

_ARCHITECTURES: dict[str, Callable[..., Classifier]] = {
    "dm_preact_resnet18": models.dm_preact_resnet18,
    "dm_wide_resnet": models.dm_wide_resnet,
    "imagenet_resnet": models.imagenet_resnet,
    "preact_resnet18": models.preact_resnet18,
    "ra_wide_resnet": models.ra_wide_resnet,
    "resnet18": models.resnet18,
    "resnet50": models.resnet50,
    "robust_wide_resnet": models.robust_wide_resnet,
    "small_cnn": models.small_cnn,
    "wide_resnet": models.wide_resnet,
}


def _hub_model(name: str) -> nn.Module:
    """Return a model of the Hub: one that `sparring export` wrote, or one of timm."""
    weights = models.libraries.hub_file(name, "model.safetensors")
    config = models.libraries.hub_file(f"{name.partition('@')[0]}@{weights.parent.name}", "config.json")
    if json.loads(config.read_text(encoding="utf-8")).get("library_name") == "sparring":
        return load_model(weights)
    return models.hub_model(name)


LIBRARIES: dict[str, Callable[..., nn.Module]] = {
    "hub": _hub_model,
    "robustbench": robustbench_model,
    "timm": models.timm_model,
    "torchvision": models.torchvision_model,
}
"""Where models come from that are named as in `timm:NAME`."""


def library_model(spec: str, **more: object) -> nn.Module:
    """Return a pretrained model: `timm:NAME`, `torchvision:NAME`, `hub:ORGANISATION/NAME` or `robustbench:NAME`.

    Options follow a comma, as in `timm:resnet18,pretrained=False` or `robustbench:NAME,weights=FOLDER`, or are `more`.
    Raises `UserError` if it cannot be had.
    """
    scheme, _, rest = spec.partition(":")
    name, _, options = rest.partition(",")
    known, given = inspect.signature(LIBRARIES[scheme]).parameters.keys(), {**options_of(options), **more}
    if "pretrained" in known:
        given = {"pretrained": True, **given}
    unknown = given.keys() - known
    if unknown:
        raise UserError(f"{spec}: {scheme} takes no option {', '.join(sorted(unknown))}")
    return LIBRARIES[scheme](name, **given)


def imported_model(spec: str, **more: object) -> nn.Module:
    """Return the model that `module:function` gives, or one of a library, as `library_model` does.

    A function is the user's code, also from the present folder. `more` are options of a model of a library.

    Raises `UserError` if there is no such function, if it needs arguments or raises an exception (which is then the
    cause), or if it returns no `nn.Module`.
    """
    if spec.partition(":")[0] in LIBRARIES:
        return library_model(spec, **more)
    with _present_folder():
        found = _found(spec)
        model = _called(found, spec) if callable(found) and not isinstance(found, nn.Module) else found
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise UserError(f"{spec} gives {what}: wanted is a torch.nn.Module that gives logits")
    return model


def load(target: Path | str, weights: Path | str | None = None) -> nn.Module:
    """Loads a trained model, in eval mode, on the CPU.

    Args:
        target: A run folder (its best weights) or a file of weights, as for `load_model`; a model by name, as
            "robustbench:cifar10/Linf/NAME", "timm:NAME", "torchvision:NAME" or "hub:ORGANISATION/NAME@COMMIT"; or a
            function that returns one, as "module:function".
        weights: A file or folder that holds the weights of a model of RobustBench, as for `robustbench_model`.

    Returns:
        The model.

    Raises:
        UserError: If there is no such model, or its weights cannot be had, cannot be read or do not fit.
    """
    if isinstance(target, Path) or ":" not in target or Path(target).exists():
        return load_model(target)
    more = {} if weights is None else {"weights": weights}
    return imported_model(target, **more).eval()


@contextlib.contextmanager
def _present_folder() -> Iterator[None]:
    """Let modules be imported from the present folder, too."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the imported code may have removed it
            sys.path.remove(here)


def _found(spec: str) -> object:
    module, _, name = spec.partition(":")
    if module.endswith(".py"):
        return member(spec, "a function that returns a model")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{spec} cannot be found ({error}): write module:function, as in mymodels:build") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{spec} cannot be found, for importing {module} {_raised(error)}: mend it") from error


def _called(function: Callable[..., object], spec: str) -> object:
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise UserError(
            f"{spec} needs arguments ({error}): write a function without any that returns the model, and name it"
        ) from error
    except ValueError:  # built in, without a signature
        pass
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise UserError(f"{spec} {_raised(error)} when it was called: mend it") from error


def _raised(error: BaseException) -> str:
    """Return a clause that names the error and the line of code that raised it, unless the error does so itself."""
    *_, last = traceback.extract_tb(error.__traceback__)
    known = isinstance(error, SyntaxError) or last.filename == __file__
    return f"raised {_line(error)}" + ("" if known else f" in line {last.lineno} of {Path(last.filename).name}")


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".removesuffix(": ")


def named_model(spec: str, weights: Path, like: LabelledData) -> nn.Module:
    """Load weights into an architecture of ours: `preact_resnet18`, or with options `wide_resnet:depth=34,width=10`.

    Our own parameter names and RobustBench's are read. The architecture may also be a function of the user's that
    builds a model, `mymodels.py:build` (with options: `mymodels.py:build:width=8`). Raises `UserError` for unknown
    names and options, and for weights that do not fit.
    """
    if own := split(spec, _ARCHITECTURES):
        return _filled(*own, weights, like)
    name, _, options = spec.partition(":")
    if name not in _ARCHITECTURES:
        raise UserError(f"no architecture {name!r}: {nearest(name, _ARCHITECTURES)}")
    given = options_of(options)
    tensors, _ = read_weights(weights)
    classes = _classes(tensors) or len(like.classes)
    make = _ARCHITECTURES[name]
    if "normalize.mean" in tensors and "normalize" in inspect.signature(make).parameters:
        given["normalize"] = Normalize([0.0] * like.shape[0], [1.0] * like.shape[0])
    try:  # by keyword: the builders have their parameters in different orders
        model = make(num_classes=classes, shape=like.shape, **given)
    except UserError:
        raise
    except Exception as error:  # torch raises errors of many types for invalid options
        raise UserError(f"{spec} cannot be built ({_line(error)}): change its options") from error
    if set(tensors) == set(model.state_dict()):
        return fill(model, tensors, f"{weights} is of another architecture than {spec}")
    return load_robustbench(model, tensors)


def _filled(name: str, options: str, weights: Path, like: LabelledData) -> nn.Module:
    """Load weights into the model that a function of the user's builds; it may take `num_classes` and `shape`."""
    build: Build[nn.Module] = Build(member(name, "a model, such as mymodels.py:build"), **options_of(options))
    try:
        model = build(num_classes=len(like.classes), shape=like.shape)
    except Exception as error:  # of the user's code
        raise UserError(f"{name} {_raised(error)} when it was called: mend it") from error
    return fill(model, read_weights(weights)[0], f"{weights} does not fit the model that {name} builds")


def options_of(text: str) -> dict[str, Any]:
    """Return the options of a model on the command line, as in `depth=34,width=10` or `blocks=(1,2,1),squeeze=0.5`."""
    parts = (part.partition("=") for part in _COMMA.split(text) if part)
    return {name: _value(value) for name, _, value in parts}


_COMMA = re.compile(r",(?![^(]*\))")  # none inside of a tuple


def _classes(tensors: dict[str, torch.Tensor]) -> int | None:
    """Return the number of classes of the last layer, or None if there is no known last layer."""
    last = ("linear.weight", "fc.weight", "logits.weight", "head.weight")
    sizes = [t.shape[0] for name, t in tensors.items() if t.ndim and name.endswith(last)]
    return sizes[-1] if sizes else None


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except Exception:  # not a literal, so it is a word
        return text


@torch.no_grad()
def fitting(model: nn.Module, test: LabelledData) -> LabelledData:
    """Return test images with as many classes as the model has: a test set may lack some of them."""
    few = pixels(test[:2].x).to(next((p.device for p in model.parameters()), torch.device("cpu")))
    with eval_mode(model):
        try:
            out = model(few)
        except Exception as error:  # the user's code may raise anything
            raise UserError(f"the model cannot take images of shape {test.shape} ({_line(error)})") from error
    if isinstance(out, torch.Tensor) and out.ndim == 2 and out.shape[1] > len(test.classes):
        return replace(test, classes=tuple(str(k) for k in range(out.shape[1])))  # type: ignore[type-var]
    return test
