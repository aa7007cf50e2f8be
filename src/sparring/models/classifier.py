"""Normalisation as a part of the model, so that attacks work in pixel space."""

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from ..core.devices import finest
from ..core.errors import UserError
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
    def given(
        cls, mean: float | Sequence[float], std: float | Sequence[float], channels: int | None = None
    ) -> "Normalize":
        """Make the layer of numbers that a user gives, and check them.

        Args:
            mean: Mean of each channel, for pixels in [0, 1]; a number for all channels.
            std: Standard deviation of each channel; a number for all channels.
            channels: Number of channels of the images; None if it is not known.

        Returns:
            The layer.

        Raises:
            UserError: If there are not as many means as deviations or channels, a mean lies outside [0, 1], or a
                deviation is not above 0.
        """
        mean, std = (for_channels(each) for each in (mean, std))
        mean, std = (each * max(len(mean), len(std)) if len(each) == 1 else each for each in (mean, std))
        if channels is not None and len(mean) not in (1, channels):
            raise UserError(f"there are {len(mean)} means and images of {channels} channels: give a mean for each")
        if not all(0 <= m <= 1 for m in mean):
            raise UserError(
                f"pixels are in [0, 1], and so are their means, unlike {mean}: divide those of 0 .. 255 by 255"
            )
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise UserError(f"mean and std need as many numbers each, and those of std above 0: not {mean} and {std}")
        return cls(mean, std)

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


class StandardizeImage(nn.Module):
    """Subtracts the mean of each image and divides by its standard deviation, over all channels and pixels.

    The deviation, with Bessel's correction, is at least 1 / sqrt(number of values), so that a flat image becomes 0.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean((1, 2, 3), keepdim=True)
        return centred / x.std((1, 2, 3), keepdim=True).clamp_min(x[0].numel() ** -0.5)


def for_channels(given: float | Sequence[float]) -> tuple[float, ...]:
    """Gives the numbers of a normalisation.

    Args:
        given: One number for all channels, or one for each.

    Returns:
        The numbers, one or one for each channel.
    """
    return (float(given),) if isinstance(given, Real) else tuple(map(float, given))  # type: ignore[arg-type]


def normalized(
    model: nn.Module,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    channels: int | None = None,
) -> nn.Module:
    """Turn a model that expects normalised images into one that takes pixels in [0, 1].

    Args:
        model: The model.
        mean: Mean of each channel, for pixels in [0, 1]; a number for all channels.
        std: Standard deviation of each channel.
        channels: Number of channels of the images, which is compared with that of the means; None if it is not known.

    Returns:
        The model behind its normalisation, in the same mode.

    Raises:
        UserError: If there are not as many means as deviations or channels, a mean lies outside [0, 1], a deviation is
            not above 0, or the model normalises already.
    """
    front = model[0] if isinstance(model, nn.Sequential) and len(model) else getattr(model, "normalize", None)
    if isinstance(front, Normalize):
        raise UserError("the model has its own normalisation in front, and would be normalised twice: leave one out")
    scaled = Normalize.given(mean, std, channels)
    weights = next(model.parameters(), None)
    found = nn.Sequential(scaled if weights is None else scaled.to(weights.device), model)
    found.training = model.training
    return found
