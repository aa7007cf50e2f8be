"""Activation functions by name, as modules, so that a model says in its repr what it uses."""

from collections.abc import Callable

from torch import nn

from ..errors import UserError, nearest

_KNOWN: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "celu": nn.CELU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def activation(name: str) -> nn.Module:
    """A fresh module. Raises `UserError` for an unknown name."""
    if name not in _KNOWN:
        raise UserError(f"no activation {name!r}: {nearest(name, _KNOWN)}")
    return _KNOWN[name]()
