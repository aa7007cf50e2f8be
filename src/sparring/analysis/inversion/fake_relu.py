"""The last ReLU before a representation that is inverted lets gradients through ("fake ReLU"), where there is one."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...core.types import Classifier
from ...models import FEATURES, as_run, straight_through
from ...models.swap import hidden_activations


@contextmanager
def passing(model: nn.Module, few: Tensor, layers: tuple[str, ...]) -> Generator[None]:
    """Where the gradient of the last ReLU before the layers is that of the identity; nothing changes without one."""
    name = last_relu(model, few, layers)
    if name is None:
        yield
        return
    with straight_through(model.get_submodule(name)):
        yield


def last_relu(model: nn.Module, few: Tensor, layers: tuple[str, ...]) -> str | None:
    """The `nn.ReLU` that the output of the last of the layers comes from with no weights in between, if there is one.

    Of the last alone: the others would have their gradients changed on the way, too. So would a module that runs at
    several places, which is left as it is.
    """
    name, runs = _candidate(model, few, layers)
    return name if runs == 1 else None


@torch.no_grad()
def _candidate(model: nn.Module, few: Tensor, layers: tuple[str, ...]) -> tuple[str | None, int]:
    """The same, and how often it runs."""
    order = as_run(model, few, nn.Module)
    own = ["body" if each == FEATURES and isinstance(model, Classifier) else each for each in layers]
    last = max((place for place, name in enumerate(order) if name in own), default=-1)
    for name in reversed(order[: last + 1]):
        module = model.get_submodule(name)
        if type(module) is nn.ReLU:
            return name, order.count(name)
        if any(True for _ in module.parameters(recurse=False)):
            return None, 0
    return None, 0


def not_passing(model: nn.Module, few: Tensor, layers: tuple[str, ...]) -> str | None:
    """Why a net that has ReLUs is inverted with the gradients of all of them, if it is; one without loses nothing."""
    name, runs = _candidate(model, few, layers)
    if runs == 1:
        return None
    functions = hidden_activations(model)
    if name is not None:
        why = f"the module {name!r} runs at {runs} places: give each place a ReLU of its own"
    elif functions:
        why = f"{functions[0]} is no module: make one of it"
    elif any(type(module) is nn.ReLU for module in model.modules()):
        why = "weights come after the last ReLU: choose a layer that ends on one, or say fake_relu=False"
    else:
        return None
    layer = layers[-1] if len(layers) == 1 else "the last of the layers"
    return f"the last ReLU before {layer} of {type(model).__name__} does not let gradients through: {why}"
