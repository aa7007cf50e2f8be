"""Normalisation as a part of the model, so that attacks work in pixel space."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.devices import finest
from ..core.types import LabelledData, TensorData, pixels


class Normalize(nn.Module):
    """Normalises images per channel: (x - mean) / std.

    The numbers are buffers, saved with the weights.

    Args:
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    @classmethod
    def of(cls, data: LabelledData) -> "Normalize":
        """Compute one mean and one standard deviation per channel from `data`.

        Args:
            data: The images; at most the first 10,000 are used, or the first 1,000 if they are still in files.

        Returns:
            The layer; standard deviations are at least 1e-6.
        """
        x = pixels(data[: 10_000 if isinstance(data, TensorData) else 1000].x)
        x = x.to(finest(x.device))
        return cls(x.mean((0, 2, 3)).tolist(), x.std((0, 2, 3)).clamp_min(1e-6).tolist())

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std
