"""The "fake ReLU" of inversion: the last ReLU before the inverted representation passes gradients through."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...core.splitting import LinearPass
from ...core.types import Classifier
from ...models import FEATURES, as_run, straight_through
from ...models.swap import hidden_activations


@contextmanager
def passing(model: nn.Module, few: Tensor, layers: tuple[str, ...]) -> Generator[None]:
    """Give the last ReLU before the layers the gradient of the identity; change nothing if there is no such ReLU."""
    name = last_relu(model, few, layers)
    if name is None:
        yield
        return
    with straight_through(model.get_submodule(name)):
        yield


def last_relu(model: nn.Module, few: Tensor, layers: tuple[str, ...]) -> str | None:
    """Return the name of the `nn.ReLU` that feeds the last of the layers with no weights in between, or None.

    Only the ReLU before the last layer qualifies: one before another layer would change the gradients of later layers,
    too. So would a module that runs at several places, which is therefore left unchanged.
    """
    name, runs = _candidate(model, few, layers)
    return name if runs == 1 else None


@torch.no_grad()
def _candidate(model: nn.Module, few: Tensor, layers: tuple[str, ...]) -> tuple[str | None, int]:
    """Return the name of the last ReLU before the layers, and how often that module runs in a forward pass."""
    order = as_run(model, few, nn.Module)
    last = max((_place(model, few, each, order) for each in layers), default=-1)
    for name in reversed(order[: last + 1]):
        module = model.get_submodule(name)
        if type(module) is nn.ReLU:
            return name, order.count(name)
        if any(True for _ in module.parameters(recurse=False)):
            return None, 0
    return None, 0


def _place(model: nn.Module, few: Tensor, layer: str, order: list[str]) -> int:
    """Return where in the order of the modules that run the output of a layer comes from; -1 if it does not run."""
    if layer == FEATURES and isinstance(model, Classifier):
        layer = "body"
    elif layer == FEATURES and layer not in order:  # the input of the last linear layer
        return len(order) - 1 - order[::-1].index(LinearPass.of(model, few).head()[0]) - 1
    return max((place for place, name in enumerate(order) if name == layer), default=-1)


def not_passing(model: nn.Module, few: Tensor, layers: tuple[str, ...]) -> str | None:
    """Return the reason why no ReLU passes gradients through in a network that has ReLUs; None if there is none."""
    name, runs = _candidate(model, few, layers)
    if runs == 1:
        return None
    functions = hidden_activations(model)
    if name is not None:
        why = f"the module {name!r} runs at {runs} places: give each place a ReLU of its own"
    elif functions:
        why = f"{functions[0]} is no module: use an nn.ReLU module instead"
    elif any(type(module) is nn.ReLU for module in model.modules()):
        why = "weights come after the last ReLU: choose a layer that ends on a ReLU, or pass fake_relu=False"
    else:
        return None
    layer = layers[-1] if len(layers) == 1 else "the last of the layers"
    return f"the last ReLU before {layer} of {type(model).__name__} does not let gradients through: {why}"
