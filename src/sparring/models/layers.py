"""The outputs of single layers of a model."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import UserError, nearest
from ..core.splitting import LinearPass
from ..core.types import Classifier

FEATURES = "features"


def layers_of(model: nn.Module) -> list[str]:
    """Names of the layers that can be selected in a model.

    Args:
        model: Any model.

    Returns:
        `features`, and then the names of its modules.
    """
    return [FEATURES, *(name for name, _ in model.named_modules() if name and name != FEATURES)]


@dataclass(frozen=True, slots=True)
class Layers:
    """The outputs of some layers as a function of images.

    For a layer that runs several times, the output is that of its last run; for one that returns a tuple, it is the
    first element.

    Args:
        model: The model that is run.
        names: Names of the layers, as in `layers_of`. `features`, the default, is the input of the head of a
            `Classifier`; in another model, which has no module of that name, the input of its last linear layer.

    Raises:
        UserError: If no name is given, or the model has no layer of that name; when called, if a layer does not run, or
            `features` is asked for and no linear layer gives the logits.
    """

    model: nn.Module
    names: tuple[str, ...] = (FEATURES,)

    def __post_init__(self) -> None:
        known = layers_of(self.model)
        for name in self.names:
            if name not in known:
                raise UserError(f"{type(self.model).__name__} has no layer {name!r}: {nearest(name, known)}")
        if not self.names:
            raise UserError(f"no layer is asked for: name at least one of {', '.join(known)}")

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.names == (FEATURES,) and isinstance(self.model, Classifier):
            return (self.model.features(x),)
        found: dict[str, Tensor] = {}
        with self._kept(found):
            if FEATURES in self.names and not self._is_module(FEATURES):
                found[FEATURES] = LinearPass.of(self.model, x).head()[1]
            else:
                self.model(x)
        for name in self.names:
            if name not in found:
                raise UserError(f"the layer {name!r} does not run when the model does: choose another")
        return tuple(found[name] for name in self.names)

    def first(self, x: Tensor) -> Tensor:
        """Output `[B, ...]` of the first of the layers."""
        return self(x)[0]

    @contextmanager
    def _kept(self, found: dict[str, Tensor]) -> Generator[None]:
        names = [name for name in self.names if self._is_module(name)]
        handles = [self._module(name).register_forward_hook(_keep(found, name)) for name in names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _is_module(self, name: str) -> bool:
        if name != FEATURES or isinstance(self.model, Classifier):
            return True
        return any(each == name for each, _ in self.model.named_modules())

    def _module(self, name: str) -> nn.Module:
        own = isinstance(self.model, Classifier) and name == FEATURES
        return self.model.get_submodule("body" if own else name)


class Pooled(nn.Module):
    """A body with its features averaged over the image, so that each channel gives one number.

    Args:
        body: A body whose features are a map `[B, C, H, W]` that was flattened, or averaged over the image already.
        x: Images `[B, C, H, W]` as the body takes them, on which the map is found.

    Raises:
        UserError: If the features are neither.
    """

    def __init__(self, body: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.body = body
        self.map = self._map(x)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        return features if self.map is None else features.view(len(x), *self.map).mean((2, 3))

    @torch.no_grad()
    def _map(self, x: Tensor) -> tuple[int, ...] | None:
        """Return the shape `C, H, W` of the map that is flattened; None if the features are averages of one."""
        seen: list[Tensor] = []
        handles = [each.register_forward_hook(_map_kept(seen)) for each in self.body.modules()]
        try:
            features = self.body(x)
        finally:
            for handle in handles:
                handle.remove()
        last = seen[-1] if seen else x.new_empty(0)
        if seen and torch.equal(features.flatten(1), last.flatten(1)):
            return tuple(last.shape[1:])
        if seen and features.shape == last.shape[:2] and torch.allclose(features, last.mean((2, 3)), atol=1e-5):
            return None
        raise UserError(
            f"the features of {type(self.body).__name__} are neither a map [B, C, H, W] that is flattened nor the "
            "averages of one: they cannot be pooled"
        )


def _map_kept(seen: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        if torch.is_tensor(out) and out.ndim == 4:
            seen[:] = [out.clone()]  # a later layer may change it in place

    return hook


def _keep(found: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        found[name] = (out[0] if isinstance(out, tuple) else out).clone()  # a later layer may change it in place

    return hook


@torch.no_grad()
def as_run(model: nn.Module, x: Tensor, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> list[str]:
    """Names of the modules of some kinds in the order in which they run.

    Args:
        model: The model, run once without gradient.
        x: A batch of images `[B, C, H, W]`.
        kinds: A class of modules, or a tuple of classes.

    Returns:
        The names; a module that runs several times is listed as often.
    """
    order: list[str] = []

    def hook(name: str) -> Any:
        return lambda module, args, out: order.append(name)

    handles = [m.register_forward_hook(hook(name)) for name, m in model.named_modules() if isinstance(m, kinds)]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return order
