"""Replacement of the activations in any model, and detection of activations that cannot be replaced."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

from torch import nn

from ..core.errors import UserError
from ..core.types import Pointwise
from .activations import activation

_SWAPPED = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Hardswish, nn.Hardtanh, nn.Threshold, Pointwise),
)
_ALIKE = {"swish", "gelutanh", "quickgelu", "hardswish", "hardmish", "mish", "gelu", "silu", "relu"}
"""Class names, in lower case, of the same activations in other libraries."""
_FUNCTIONS = {
    *(
        "relu",
        "relu_",
        "relu6",
        "leaky_relu",
        "leaky_relu_",
        "prelu",
        "rrelu",
        "rrelu_",
        "elu",
        "elu_",
        "celu",
        "celu_",
    ),
    *("hardtanh", "hardtanh_", "relu6_"),
    *("selu", "selu_", "gelu", "silu", "mish", "softplus", "hardswish", "threshold", "threshold_"),
}


def swap_activation(model: nn.Module, name: str, *, strict: bool = True) -> nn.Module:
    """Replace every activation module of a model, in place.

    ReLU and related activations are replaced, smooth or not; gates (sigmoid, tanh, softmax) stay, and so does PReLU,
    which has weights. The new activations do not compute in place. Names and weights of everything else stay, so that
    state dicts load. A module that is called at several places stays one module: with smooth_relu, these places share
    one alpha. Hooks of the replaced modules are lost.

    Args:
        model: The model to change. It is left unchanged if it is refused.
        name: Name of the new activation, as for `activation`.
        strict: Whether to refuse a model with activations that cannot be replaced: calls of functions in its source, as
            `F.relu(x)`, or code that discards what an activation returns because it was computed in place. With False
            they stay as they are; use it if these calls are never reached.

    Returns:
        The model; a new module if the model is itself an activation.

    Raises:
        UserError: If the name is unknown, if the model has nothing to replace, and with `strict` if it has activations
            that cannot be replaced; the message names their places.
    """
    new = activation(name)  # an unknown name is refused before anything is changed
    sites = [path for path, module in model.named_modules(remove_duplicate=False) if _is_activation(module)]
    refuse_hidden(model, strict, "swapped")
    if not sites:
        raise UserError(
            f"{type(model).__name__} has no activation that could be swapped: it holds "
            f"{', '.join(sorted({type(m).__name__ for m in model.modules()}))}"
        )
    if sites == [""]:
        return new
    swapped: dict[int, nn.Module] = {}
    for path in sites:
        old = model.get_submodule(path)
        # one new module for each old one, so that shared modules stay shared
        swapped.setdefault(id(old), activation(name).train(old.training))
        model.set_submodule(path, swapped[id(old)])
        owner = model.get_submodule(path.rpartition(".")[0])
        if isinstance(owner, nn.TransformerEncoderLayer):  # without gradients, torch would compute the old activation
            owner.activation_relu_or_gelu = 0
    where = next(model.parameters(), None)
    for module in swapped.values() if where is not None else ():
        assert where is not None
        module.to(where.device)
    return model


def refuse_hidden(model: nn.Module, strict: bool, what: str) -> None:
    """Raise `UserError` if a strict check finds activations that are not modules and so cannot be replaced."""
    hidden = hidden_activations(model) if strict else []
    if hidden:
        more = f" and {len(hidden) - 5} more" if len(hidden) > 5 else ""
        raise UserError(
            f"{type(model).__name__} has activations that are not modules, and cannot be {what}: "
            f"{'; '.join(hidden[:5])}{more}. Make modules of them, or pass strict=False if they are never reached"
        )


def hidden_activations(model: nn.Module) -> list[str]:
    """Activations that are not modules of their own, each described with its place."""
    return list(_hidden(model))


def _is_activation(module: nn.Module) -> bool:
    bare = not any(True for _ in module.children()) and not any(True for _ in module.parameters(recurse=False))
    known = isinstance(module, _SWAPPED) or type(module).__name__.lower() in _ALIKE
    return known and (bare or isinstance(module, Pointwise))


def _hidden(model: nn.Module) -> Iterator[str]:
    """Describe the calls of activations in the source of the model's classes that replacement cannot reach."""
    classes = dict.fromkeys(type(m) for m in model.modules() if not type(m).__module__.startswith("torch.nn."))
    for kind in classes:
        if issubclass(kind, nn.Module) and not issubclass(kind, (*_SWAPPED,)) and kind.__name__.lower() not in _ALIKE:
            names = {n for m in model.modules() if type(m) is kind for n, c in m.named_children() if _is_activation(c)}
            yield from _calls(kind, frozenset(names))  # type: ignore[arg-type]
    registered = set(model.modules())
    for path, module in model.named_modules():
        for name, held in vars(module).items():
            where = f"{f'{path}.' if path else ''}{name} ({type(module).__name__})"
            for value in () if name in _REGISTERED else _values(held, set()):
                if callable(value) and getattr(value, "__name__", "") in _FUNCTIONS and not isinstance(value, type):
                    yield f"the function {value.__name__} as {where}"
                elif isinstance(value, nn.Module) and _keeps(value, registered):
                    yield f"the module {type(value).__name__} in {where}, which a swap does not reach"


_REGISTERED = ("_modules", "_parameters", "_buffers")


def _keeps(module: nn.Module, registered: set[nn.Module]) -> bool:
    """Return True if a module outside of the tree keeps an activation that is replaced only inside of it."""
    inside = module in registered and not _is_activation(module)  # what is in it is replaced there
    return not inside and any(map(_is_activation, module.modules()))


def _values(held: object, seen: set[int]) -> Iterator[Any]:
    """Yield what an attribute holds: functions behind `partial`, and the items of lists, tuples and dicts."""
    if isinstance(held, partial):
        yield held.func
    elif isinstance(held, list | tuple | dict):
        if id(held) not in seen:
            seen.add(id(held))  # it may hold itself
            for each in held.values() if isinstance(held, dict) else held:
                yield from _values(each, seen)
    else:
        yield held


@lru_cache(maxsize=512)  # the source of a class does not change
def _calls(kind: type[nn.Module], children: frozenset[str]) -> tuple[str, ...]:
    found: list[str] = []
    for owner in kind.__mro__:
        if not issubclass(owner, nn.Module) or owner.__module__.startswith("torch.nn."):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
        except (OSError, TypeError, SyntaxError):  # no source: built at run time
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _called(node) in _FUNCTIONS and not _of_self(node):
                found.append(f"{ast.unparse(node.func)} in {owner.__name__}")
            thrown = node.value if isinstance(node, ast.Expr) else None
            if isinstance(thrown, ast.Call) and _of_self(thrown) and _called(thrown) in children:
                found.append(f"the output of self.{_called(thrown)}, which is discarded in {owner.__name__}")
    return tuple(found)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _of_self(node: ast.Call) -> bool:
    """`self.relu(x)` and `self.part.relu(x)` call a module; `x.relu()`, `F.relu(x)`, `self.mask.relu()` a function."""
    if not isinstance(node.func, ast.Attribute) or not node.args:
        return False
    owner = node.func.value
    while isinstance(owner, ast.Attribute):
        owner = owner.value
    return isinstance(owner, ast.Name) and owner.id == "self"
