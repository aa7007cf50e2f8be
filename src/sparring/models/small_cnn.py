"""A small network for small grey images."""

from torch import nn

from ..core.errors import UserError
from ..core.types import Classifier
from .activations import activation as act


def small_cnn(
    num_classes: int = 10,
    shape: tuple[int, int, int] = (1, 28, 28),
    normalize: nn.Module | None = None,
    width: int = 32,
    activation: str = "relu",
    batch_norm: bool = False,
    depth: int = 1,
    hidden: bool = True,
) -> Classifier:
    """Four 3x3 convolutions, two of them with stride 2, and two linear layers.

    With the defaults it has 0.7 M parameters.

    Args:
        num_classes: Number of classes.
        shape: Shape of an image: (channels, height, width).
        normalize: Module applied to the pixels first; None applies nothing.
        width: Channels of the first convolutions; the later ones have twice as many, the hidden linear layer four
            times.
        activation: Name of the activation, as for `activation`.
        batch_norm: Whether each convolution is followed by batch norm.
        depth: Number of convolutions before each of the two with stride.
        hidden: Whether the first of the linear layers is there, the only layer that batch norm does not reach.

    Returns:
        A classifier with random weights.

    Raises:
        UserError: If `depth` is less than 1, or the activation is unknown.
    """
    if depth < 1:
        raise UserError(f"a small CNN has at least one convolution before each stride, not {depth}")
    channels, height, columns = shape
    area = -(-height // 4) * -(-columns // 4)  # both strides round up

    def block(inside: int, out: int, stride: int) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(out)] if batch_norm else []
        return [nn.Conv2d(inside, out, 3, stride=stride, padding=1, bias=not batch_norm), *norm, act(activation)]

    features = 2 * width * area
    body = nn.Sequential(
        *block(channels, width, 1),
        *(layer for _ in range(depth - 1) for layer in block(width, width, 1)),
        *block(width, width, 2),
        *block(width, 2 * width, 1),
        *(layer for _ in range(depth - 1) for layer in block(2 * width, 2 * width, 1)),
        *block(2 * width, 2 * width, 2),
        nn.Flatten(),
        *([nn.Linear(features, 4 * width), act(activation)] if hidden else []),
    )
    return Classifier(body, nn.Linear(4 * width if hidden else features, num_classes), normalize)
