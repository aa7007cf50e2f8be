"""A small network for small grey pictures."""

from torch import nn

from ..core import Classifier
from .activations import activation as act


def small_cnn(
    num_classes: int = 10,
    shape: tuple[int, int, int] = (1, 28, 28),
    normalize: nn.Module | None = None,
    width: int = 32,
    activation: str = "relu",
) -> Classifier:
    """Four 3x3 convolutions, two of them with stride 2, and two linear layers; no batch norm.

    With the defaults it has 0.7 M parameters. `shape` is (channels, height, width).
    """
    channels, height, columns = shape
    area = -(-height // 4) * -(-columns // 4)  # both strides round up
    body = nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        act(activation),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        act(activation),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        act(activation),
        nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
        act(activation),
        nn.Flatten(),
        nn.Linear(2 * width * area, 4 * width),
        act(activation),
    )
    return Classifier(body, nn.Linear(4 * width, num_classes), normalize)
