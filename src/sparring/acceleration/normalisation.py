"""Batch normalisation with constant statistics and weights, for attacks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class FrozenNorm(nn.Module):
    """A `BatchNorm2d` in eval mode, followed by a ReLU if `relu`: `x * scale + shift` for each channel.

    Torch's own module makes one pass over the memory for normalisation and one for the ReLU, and its backward pass sums
    over the batch. Its owner sets `scale` and `shift` `[C]`; until then they are zero.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d, relu: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.relu = relu
        assert norm.running_mean is not None
        for name in ("scale", "shift"):
            self.register_buffer(name, torch.zeros_like(norm.running_mean, dtype=dtype))

    @staticmethod
    def fits(norm: nn.Module) -> bool:
        """Return True if a module can be replaced: a plain `BatchNorm2d` that keeps statistics."""
        return type(norm) is nn.BatchNorm2d and norm.running_mean is not None

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.scale.dtype)
        if torch.compiler.is_compiling() or x.device.type != "cpu":
            out = torch.addcmul(self.shift[:, None, None], x, self.scale[:, None, None])
            return out.relu_() if self.relu else out
        # whole rows of pixels at once: one pixel of few channels would not fill the vector units
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
        out = torch.addcmul(self.shift.repeat(width), rows, self.scale.repeat(width))
        out = out.relu_() if self.relu else out
        return out.view(batch, height, width, channels).permute(0, 3, 1, 2)


def folded(norms: Sequence[nn.BatchNorm2d]) -> list[tuple[Tensor, Tensor]]:
    """Return scale and shift `[C]` of each batch normalisation in eval mode.

    They are computed together: six operations on a GPU, whatever the number of layers.
    """
    if not norms:
        return []
    scales = torch._foreach_add([_there(norm.running_var) for norm in norms], [norm.eps for norm in norms])
    torch._foreach_rsqrt_(scales)
    affine = [i for i, norm in enumerate(norms) if norm.weight is not None]
    _onto(torch._foreach_mul_, scales, {i: norms[i].weight for i in affine})
    shifts = torch._foreach_neg([_there(norm.running_mean) for norm in norms])
    torch._foreach_mul_(shifts, scales)
    _onto(torch._foreach_add_, shifts, {i: norms[i].bias for i in affine})
    return list(zip(scales, shifts, strict=True))


def _onto(operation: Any, tensors: Sequence[Tensor], others: Mapping[int, Tensor]) -> None:
    if others:
        operation([tensors[i] for i in others], list(others.values()))


def _there(statistics: Tensor | None) -> Tensor:
    assert statistics is not None  # `FrozenNorm.fits`
    return statistics
