"""What every model has: normalisation inside, so that attacks live in pixel space."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.types import LabelledData, TensorData, pixels


class Normalize(nn.Module):
    """(x - mean) / std per channel. The numbers are saved with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    @classmethod
    def of(cls, data: LabelledData) -> "Normalize":
        """The statistics of `data`, one mean and one deviation per channel, from the first 10,000 images at most.

        From the first 1,000 if they are still in files.
        """
        x = pixels(data[: 10_000 if isinstance(data, TensorData) else 1000].x).double()
        return cls(x.mean((0, 2, 3)).tolist(), x.std((0, 2, 3)).clamp_min(1e-6).tolist())

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std
