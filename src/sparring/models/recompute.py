"""Activation checkpointing: blocks of a model forget their activations, and compute them again in the backward pass."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core.errors import UserError

_CHAINS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@contextmanager
def recomputed(model: nn.Module) -> Generator[None]:
    """Keeps the inputs of the repeated blocks of a model for the backward pass, and not what is computed inside them.

    The backward pass runs each block once more, so an update takes a second forward pass and much less memory. Logits,
    gradients and the statistics of batch norm are the same to the bit, and dropout leaves out the same units. Forward
    and backward passes must both be inside the context. Gradients of gradients are possible.

    Args:
        model: The model. Its modules, weights and state dict stay as they are.

    Yields:
        Nothing. On exit the blocks are called as before.

    Raises:
        UserError: If the model has no repeated blocks.

    References:
        Sublinear memory cost: https://arxiv.org/abs/1604.06174.
    """
    blocks = repeated_blocks(model)
    if not blocks:
        raise UserError(
            f"{type(model).__name__} has no repeated blocks whose activations could be computed again: these are "
            "several members of one class, with layers of their own, in an nn.Sequential, nn.ModuleList or "
            "nn.ModuleDict. Build it of such blocks, or train it without recomputation"
        )
    before = {block: vars(block).get("forward") for block in blocks}
    for block in blocks:
        block.forward = _forgetful(block)
    try:
        yield
    finally:
        for block, forward in before.items():
            del block.forward
            if forward is not None:  # the user had replaced it, too
                block.forward = forward


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Finds the blocks of which a model is built, such as residual blocks or the layers of a transformer.

    A chain is an `nn.Sequential`, `nn.ModuleList` or `nn.ModuleDict`, or a module that holds nothing but modules of one
    class. Where those members of a chain that have trainable layers are several of one class, they are blocks, and so
    are single members of this class in other chains. Of blocks inside one another the inner ones count.

    Args:
        model: The model.

    Returns:
        The blocks, in the order of `model.modules()`; none is inside another.
    """
    chains = [members for module in model.modules() if len(members := _members(module)) > 1]
    kinds = {type(members[0]) for members in chains if _alike(members)}
    found = set(_innermost(model, kinds))
    return [module for module in model.modules() if module in found]


def _members(module: nn.Module) -> list[nn.Module]:
    """Return the members of a chain that have trainable layers."""
    every = list(module.children())
    layered = [child for child in every if _has_layers(child)]
    return layered if isinstance(module, _CHAINS) or (len(layered) == len(every) and _alike(layered)) else []


def _alike(modules: list[nn.Module]) -> bool:
    return len({type(module) for module in modules}) == 1


def _has_layers(module: nn.Module) -> bool:
    return any(next(child.parameters(), None) is not None for child in module.children())


def _innermost(module: nn.Module, kinds: set[type[nn.Module]]) -> Iterator[nn.Module]:
    """Yield the members of chains that are of these classes and hold no other such member."""
    members = _members(module)
    for child in module.children():
        inner = list(_innermost(child, kinds))
        yield from inner
        if not inner and child in members and type(child) in kinds:
            yield child


def _forgetful(block: nn.Module) -> Callable[..., Any]:
    """Return the forward of a block, whose activations are computed again in the backward pass."""
    forward = block.forward

    def run(*args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **options)
        contexts = nullcontext(), _AsThen(block)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: contexts, **options)

    return run


class _AsThen:
    """Context in which a block computes as it did when this was made: in the same modes, and on the same buffers.

    What it changes in its buffers is lost: the statistics of batch norm have moved already. Without their buffers
    (`statistics_kept`) a batch norm would keep other tensors for the backward pass than in its first run. The context
    can be entered again, for a second backward pass.
    """

    def __init__(self, block: nn.Module) -> None:
        self._then = [(m, _flags(m), {n: b.clone() for n, b in _buffers(m).items()}) for m in block.modules()]

    def __enter__(self) -> None:
        self._now = [(m, _flags(m), _buffers(m)) for m, *_ in self._then]
        for module, flags, buffers in self._then:
            vars(module).update(flags)
            module._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})

    def __exit__(self, *error: object) -> None:
        for module, flags, buffers in self._now:
            vars(module).update(flags)
            module._buffers.update(buffers)


def _flags(module: nn.Module) -> dict[str, bool]:
    return {name: vars(module)[name] for name in ("training", "track_running_stats") if name in vars(module)}


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
