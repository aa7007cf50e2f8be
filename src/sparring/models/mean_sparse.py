"""MeanSparse: values close to the mean of their channel become the mean (https://arxiv.org/abs/2406.05927)."""

import torch
from torch import Tensor, nn


class MeanSparse(nn.Module):
    """Replaces values within `threshold` standard deviations of the mean of their channel by that mean.

    The mean, the variance and the threshold are buffers, taken from a trained network afterwards. The gradient of a
    replaced value is 0. A threshold of 0 changes nothing.

    Args:
        channels: Number of channels.

    References:
        MeanSparse: https://arxiv.org/abs/2406.05927.
    """

    running_mean: Tensor
    running_var: Tensor
    threshold: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.zeros(channels))
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.running_mean.view(1, -1, 1, 1)
        close = (x - mean).abs() < self.threshold * self.running_var.sqrt().view(1, -1, 1, 1)
        return torch.where(close, mean, x)
