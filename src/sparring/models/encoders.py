"""Encoders for training without labels, with a head of nearest neighbours."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UserError, nearest, need_one_of
from ..core.types import Classifier, Encoder
from .activations import activation as act
from .knn import KNN, Vote
from .resnet import preact_resnet18, resnet18
from .small_cnn import small_cnn
from .wide_resnet import wide_resnet

_BODIES: dict[str, Callable[..., Classifier]] = {
    "small_cnn": partial(small_cnn, batch_norm=True),
    "resnet18": resnet18,
    "preact_resnet18": preact_resnet18,
    "wide_resnet": wide_resnet,
}


class ProjectionEncoder(Encoder):
    """A body with a projection `[B, P]` of its features `[B, F]`, through one hidden layer.

    Contrastive losses use the projection, the head reads the features. `encoder(x)` gives the features, and
    `encoder(x, parts=True)` gives (features, projection).

    Args:
        inner: The body, from images to features `[B, F]`.
        features: Number of features F.
        projection: Size P of the projection.

    References:
        SimCLR: https://arxiv.org/abs/2002.05709.
    """

    def __init__(self, inner: nn.Module, features: int, projection: int) -> None:
        super().__init__()
        self.inner = inner
        self.projector = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, projection))

    def forward(self, x: Tensor, parts: bool = False) -> Tensor | tuple[Tensor, ...]:
        features: Tensor = self.inner(x)
        return (features, self.projector(features)) if parts else features


def contrastive_encoder(
    num_classes: int = 10,
    shape: tuple[int, int, int] = (1, 28, 28),
    normalize: nn.Module | None = None,
    body: str = "small_cnn",
    projection: int = 64,
    k: int = 75,
    vote: Vote = "uniform",
    width: float | None = None,
    activation: str = "relu",
    read: Literal["features", "projection"] = "features",
) -> Classifier:
    """The body of one of our classifiers, with a projection and a head of nearest neighbours.

    Args:
        num_classes: Number of classes.
        shape: Shape of an image: (channels, height, width).
        normalize: Module applied to the pixels first; None applies nothing.
        body: Name of the body: small_cnn (with batch norm), resnet18, preact_resnet18 or wide_resnet.
        projection: Size of the projection.
        k: Number of neighbours that vote.
        vote: How neighbours vote, as in `KNN`.
        width: The `width` of the function named by `body`; None takes its default.
        activation: Name of the activation, as for `activation`.
        read: Input of the neighbours. With "projection", the projection is linear and is the only output of the body,
            as in NPID.

    Returns:
        A classifier with random weights and an empty bank.

    Raises:
        UserError: If `body`, `read`, `vote` or the activation is unknown.

    References:
        NPID: https://arxiv.org/abs/1805.01978.
    """
    need_one_of("read", read, ("features", "projection"))
    if body not in _BODIES:
        raise UserError(f"no body {body!r}: {nearest(body, _BODIES)}")
    wide: dict[str, Any] = {} if width is None else {"width": int(width) if float(width).is_integer() else width}
    made = _BODIES[body](num_classes, shape, None, activation=activation, **wide)
    head = made.head
    assert isinstance(head, nn.Linear)
    features = head.in_features
    projected = nn.Sequential(made.body, nn.Linear(features, projection))
    encoder = projected if read == "projection" else ProjectionEncoder(made.body, features, projection)
    return Classifier(encoder, KNN(num_classes, k, vote), normalize)


class _Residual(nn.Module):
    """Residual unit: a convolution, a norm, an activation and a 1x1 convolution, added to an average of the input.

    The last convolution is 0 at initialisation. Channels that the input does not have are 0 in the shortcut. Where
    there are fewer channels than in the input, the shortcut is a 1x1 convolution; the published code has no such block.
    """

    def __init__(self, inner: int, outer: int, size: int = 1, stride: int = 1, activation: str = "relu") -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.Conv2d(inner, outer, size, stride, bias=False),
            nn.BatchNorm2d(outer),
            act(activation),
            nn.Conv2d(outer, outer, 1, bias=False),
        )
        nn.init.zeros_(self.inside[3].weight)  # type: ignore[arg-type]
        self.pool = nn.AvgPool2d(size, stride) if (size, stride) != (1, 1) else nn.Identity()
        self.squeeze = nn.Conv2d(inner, outer, 1, bias=False) if outer < inner else nn.Identity()
        self.more = max(0, outer - inner)

    def forward(self, x: Tensor) -> Tensor:
        kept = F.pad(self.squeeze(self.pool(x)), (0, 0, 0, 0, 0, self.more))
        out: Tensor = self.inside(x) + kept
        return out


def _block(inner: int, outer: int, size: int, stride: int, depth: int, activation: str) -> nn.Sequential:
    first = _Residual(inner, outer, size, stride, activation)
    return nn.Sequential(first, *(_Residual(outer, outer, activation=activation) for _ in range(depth - 1)))


class _Reading(nn.Module):
    """Head of the published encoder for a map: the norm of a residual branch plus a biased 1x1 convolution.

    The shortcut is initialised to the identity with some noise if there are at least as many channels as in the input.
    """

    def __init__(self, inner: int, outer: int, activation: str = "relu") -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.Conv2d(inner, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
            act(activation),
            nn.Conv2d(outer, outer, 1, bias=False),
        )
        nn.init.zeros_(self.inside[3].weight)  # type: ignore[arg-type]
        self.shortcut = nn.Conv2d(inner, outer, 1)
        self.norm = nn.BatchNorm2d(outer)
        if outer >= inner:
            nn.init.uniform_(self.shortcut.weight, -0.01, 0.01)
            with torch.no_grad():
                self.shortcut.weight[range(inner), range(inner)] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.inside(x) + self.shortcut(x))
        return out


class AMDIM(Encoder):
    """Encoder of Augmented Multiscale Deep InfoMax for small images.

    It has no padding, so each place of a map sees only a part of the image. For 64 and 32 pixels it gives maps of 7x7
    and 5x5 places and one vector, as published; for 28 pixels the same maps, with padding in the first convolution and
    2x2 windows; for 8 pixels 5x5, 3x3 and a vector. The parts are the vector `[B, dim]`, the coarse map and the fine
    map `[B, dim, h, w]`.

    Args:
        shape: Shape of an image: (channels, height, width), with 64, 32, 28 or 8 pixels a side.
        width: Channels of the first convolution; each block of the stem doubles them.
        dim: Size of the representation. The released code needs `dim` to be at least the number of channels before it;
            a smaller `dim` is our extension.
        depth: Number of residual units in a block.
        activation: Name of the activation, as for `activation`.
        published: Whether the layers are those of the released code with batch norm. Otherwise the first convolution
            has batch norm and no bias, the block that gives the vector has `depth` units instead of one, and the maps
            are read by a residual unit whose shortcut has no weights.

    Raises:
        UserError: If the images have another size, or the activation is unknown.

    References:
        AMDIM: https://arxiv.org/abs/1906.00910.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int,
        dim: int,
        depth: int,
        activation: str = "relu",
        published: bool = False,
    ) -> None:
        super().__init__()
        channels, n = shape[0], width
        if shape[1:] not in _STEMS:
            known = ", ".join(f"{h}x{w}" for h, w in _STEMS)
            raise UserError(f"the AMDIM encoder is made for images of {known} pixels, not {shape[1]}x{shape[2]}")
        pad, unit, windows, deeper = _STEMS[shape[1:]]

        def block(inner: int, outer: int, size: int, stride: int = 1, depth: int = depth) -> nn.Sequential:
            return _block(inner, outer, size, stride, depth, activation)

        def reading() -> nn.Module:
            if published:
                return _Reading(wide, dim, activation)
            return nn.Sequential(_Residual(wide, dim, activation=activation), nn.BatchNorm2d(dim))

        self.stem = nn.Sequential(
            nn.Conv2d(channels, n, 3, padding=pad, bias=published),
            *(() if published else (nn.BatchNorm2d(n),)),
            act(activation),
            *((_Residual(n, n, activation=activation),) if unit else ()),
            *(block(n * 2**i, n * 2 ** (i + 1), size, step) for i, (size, step) in enumerate(windows)),
        )
        wide = n * 2 ** len(windows)
        middle = (block(wide, wide, 3) for _ in range(deeper))
        self.fine = nn.Sequential(nn.BatchNorm2d(wide))
        self.coarse = block(wide, wide, 3)
        last = block(wide, dim, 3, depth=1 if published else depth)
        self.whole = nn.Sequential(*middle, last, nn.BatchNorm2d(dim))
        self.heads = nn.ModuleList(reading() for _ in range(2))

    def forward(self, x: Tensor, parts: bool = False) -> Tensor | tuple[Tensor, ...]:
        fine = self.fine(self.stem(x))
        coarse = self.coarse(fine)
        whole: Tensor = self.whole(coarse).flatten(1)
        return (whole, self.heads[0](coarse), self.heads[1](fine)) if parts else whole


_STEMS: dict[tuple[int, ...], tuple[int, bool, tuple[tuple[int, int], ...], int]] = {
    (64, 64): (0, False, ((4, 2), (4, 2), (2, 2)), 1),
    (32, 32): (0, True, ((4, 2), (2, 2)), 1),
    (28, 28): (1, True, ((2, 2), (2, 2)), 1),
    (8, 8): (0, True, ((2, 1),), 0),
}
"""Layout for each image size.

Padding of the first convolution, whether a residual unit follows it, (size, stride) of each block before the fine map,
and the number of further blocks between the coarse map and the vector.
"""


def amdim(
    num_classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    normalize: nn.Module | None = None,
    width: int = 128,
    dim: int = 128,
    depth: int = 3,
    k: int = 75,
    vote: Vote = "uniform",
    read: Literal["neighbours", "linear"] = "neighbours",
    activation: str = "relu",
    published: bool = False,
) -> Classifier:
    """The AMDIM encoder with a head of nearest neighbours or a linear head.

    The defaults are those of the paper on self-supervised adversarial training.

    Args:
        num_classes: Number of classes.
        shape: Shape of an image: (channels, height, width), with 64, 32, 28 or 8 pixels a side.
        normalize: Module applied to the pixels first; None applies nothing.
        width: Channels of the first convolution.
        dim: Size of the representation.
        depth: Number of residual units in a block.
        k: Number of neighbours that vote.
        vote: How neighbours vote, as in `KNN`.
        read: The head: nearest "neighbours", or a "linear" layer, with which the model is trained with labels.
        activation: Name of the activation, as for `activation`.
        published: Whether the encoder is the released one, layer for layer (`AMDIM`).

    Returns:
        A classifier with random weights; a bank of neighbours is empty.

    Raises:
        UserError: If `read`, `vote` or the activation is unknown, or the images have another size.

    References:
        AMDIM: https://arxiv.org/abs/1906.00910.
        Self-supervised adversarial training: https://arxiv.org/abs/1911.06470.
    """
    need_one_of("read", read, ("neighbours", "linear"))
    head = KNN(num_classes, k, vote) if read == "neighbours" else nn.Linear(dim, num_classes)
    return Classifier(AMDIM(shape, width, dim, depth, activation, published), head, normalize)
