"""Splitting any model into a body, which gives features, and a head, which gives logits from them."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError, nearest


@torch.no_grad()
def parts(model: nn.Module, images: Tensor, at: str | None = None) -> tuple[nn.Module, nn.Module]:
    """Return a body and a head, copies of the layers of `model`, that compute together what it computes.

    `at` names the last layer; without it, it is the last linear layer that runs, if its output is the logits. The split
    is checked on `images` `[B, C, H, W]`. Raises `UserError` if there is no such layer, or if other layers follow it.
    """
    body = copy.deepcopy(model).eval()
    modes = [(ours, module.training) for ours, module in zip(body.modules(), model.modules(), strict=True)]
    ran = LinearPass.of(body, images)
    name = ran.head()[0] if at is None else _known(body, at)
    head = body.get_submodule(name)
    owner, _, attribute = name.rpartition(".")
    setattr(body.get_submodule(owner), attribute, nn.Identity())
    try:
        features = body(images)
        same = features.ndim == 2 and torch.allclose(head(features), ran.logits, rtol=1e-4, atol=1e-5)
    except (RuntimeError, ValueError, TypeError, AttributeError):  # layers behind it do not take its input
        same = False
    if not same:
        raise UserError(
            f"{type(model).__name__} cannot be split at {name!r}: the logits must be the output of that layer, and its "
            f"input a vector of features for each image: {ran.advice()}"
        )
    for module, mode in modes:
        module.training = mode
    return body, head


def _known(model: nn.Module, name: str) -> str:
    names = [each for each, _ in model.named_modules() if each]
    if name not in names:
        raise UserError(f"{type(model).__name__} has no layer {name!r}: {nearest(name, names)}")
    return name


@dataclass(frozen=True, slots=True)
class LinearPass:
    """A forward pass in which the inputs and outputs of the linear layers were kept, in the order in which they ran."""

    model: nn.Module
    logits: Tensor
    layers: tuple[tuple[str, Tensor, Tensor], ...]

    @classmethod
    def of(cls, model: nn.Module, x: Tensor) -> "LinearPass":
        ran: list[tuple[str, Tensor, Tensor]] = []

        def keep(name: str) -> Any:
            return lambda module, args, named, out: ran.append((name, args[0] if args else named["input"], out))

        layers = [(name, module) for name, module in model.named_modules() if name and isinstance(module, nn.Linear)]
        handles = [module.register_forward_hook(keep(name), with_kwargs=True) for name, module in layers]
        try:
            logits = model(x)
        finally:
            for handle in handles:
                handle.remove()
        return cls(model, logits, tuple(ran))

    def head(self) -> tuple[str, Tensor]:
        """Return name and input of the last linear layer. Raises `UserError` if its output is not the logits."""
        if self.layers:
            name, given, out = self.layers[-1]
            if out.shape == self.logits.shape and torch.equal(out, self.logits) and given.ndim == 2:
                return name, given
        raise UserError(
            f"no linear layer of {type(self.model).__name__} gives its logits, so its features are not known: "
            f"{self.advice()}"
        )

    def advice(self) -> str:
        last = ", ".join(name for name, *_ in self.layers[-3:])
        return "name a layer, or make it a sparring.Classifier(body, head)" + (
            f"; linear layers that ran last: {last}" if last else ""
        )
