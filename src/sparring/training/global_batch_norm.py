"""Batch norm over the batch of all processes."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from ..core.errors import UserError
from ..core.ranks import rank, world


@contextmanager
def global_batch_norm(model: nn.Module) -> Generator[None]:
    """Let batch norm layers in training mode take mean and variance over the batches of all processes.

    It does on every device what `torch.nn.SyncBatchNorm` does on GPUs, can be differentiated twice, and leaves the
    modules of the model as they are: each layer has another `forward` meanwhile. A layer takes one collective in the
    forward pass and one in the backward pass. With one process nothing changes.

    Args:
        model: The model.

    Yields:
        Nothing. On exit the layers normalise as before.

    Raises:
        UserError: If a layer that is derived from batch norm has a `forward` of its own.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and not isinstance(m, SyncBatchNorm)]
    changed = [m for m in layers if "forward" not in vars(m)] if world() > 1 else []
    for layer in changed:
        if type(layer).forward is not _BatchNorm.forward:
            raise UserError(
                f"{type(layer).__name__} is derived from batch norm and has a forward of its own, which cannot take "
                "the batch of all processes: train with --batch-norm local, or convert the model to SyncBatchNorm"
            )
    for layer in changed:
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _forward(layer: _BatchNorm, x: Tensor) -> Tensor:
    of_batch = layer.training or layer.running_mean is None
    if not of_batch:
        return type(layer).forward(layer, x)
    layer._check_input_dim(x)
    axes = [0, *range(2, x.ndim)]
    high = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    variance, mean = torch.var_mean(high, axes, correction=0)
    count = mean.new_full((1,), high.numel() / high.shape[1])
    every = _EveryProcess.apply(torch.cat([mean, variance, count]))
    means, variances, counts = every[:, : len(mean)], every[:, len(mean) : -1], every[:, -1:].detach()
    of_all = counts.sum()
    mean = (means * counts).sum(0) / of_all
    # the sum of squares is taken about each mean, since the difference of two large sums would lose digits
    variance = ((variances + (means - mean).square()) * counts).sum(0) / of_all
    if layer.training and layer.track_running_stats and layer.running_mean is not None:
        _follow(layer, mean.detach(), variance.detach() * (of_all / (of_all - 1)))
    scale = (variance + layer.eps).rsqrt()
    shape = (1, -1, *[1] * (x.ndim - 2))
    weight, bias = (1, 0) if layer.weight is None else (layer.weight.view(shape), layer.bias.view(shape))
    return ((high - mean.view(shape)) * (scale.view(shape) * weight) + bias).to(x.dtype)


@torch.no_grad()
def _follow(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None
    layer.num_batches_tracked += 1
    share = 1 / int(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), share)
    layer.running_var.lerp_(variance.to(layer.running_var.dtype), share)


class _EveryProcess(torch.autograd.Function):
    """The numbers `[C]` of every process, `[world, C]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        held = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(held, x.contiguous())
        return torch.stack(held)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _SumOwn.apply(grads[0])


class _SumOwn(torch.autograd.Function):
    """The sum over the processes of the row of this process, which is the transpose of `_EveryProcess`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x[rank()]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _EveryProcess.apply(grads[0])
