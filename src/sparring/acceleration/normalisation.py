"""Batch normalisation with constant statistics and weights, for attacks."""

import torch
from torch import Tensor, nn


class FrozenNorm(nn.Module):
    """A `BatchNorm2d` in eval mode, followed by a ReLU if `relu`: `x * scale + shift` for each channel.

    Torch's own module makes one pass over the memory for normalisation and one for the ReLU, and its backward pass sums
    over the batch. `load` sets scale and shift; until then they are zero.
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

    @torch.no_grad()
    def load(self, scale: Tensor, shift: Tensor) -> None:
        """Set `scale` and `shift` `[C]` in place."""
        self.scale.copy_(scale)
        self.shift.copy_(shift)

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


def folded(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return scale and shift `[C]` of batch normalisation in eval mode."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias
