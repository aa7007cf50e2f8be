"""Encoders to be trained without labels, with a head of nearest neighbours."""

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


class Projected(Encoder):
    """A body, and in its parts besides a projection `[B, P]` of its features, through one hidden layer.

    What is contrasted is the projection, what is read are the features (https://arxiv.org/abs/2002.05709).
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
    """The body of one of our classifiers by name, with a projection, read by nearest neighbours.

    small_cnn (with batch norm), resnet18, preact_resnet18 or wide_resnet, of the `width` of the function of that name.
    If neighbours `read` the projection, it is linear, and all that the model gives, as in
    https://arxiv.org/abs/1805.01978.
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
    encoder = projected if read == "projection" else Projected(made.body, features, projection)
    return Classifier(encoder, KNN(num_classes, k, vote), normalize)


class _Residual(nn.Module):
    """A convolution, a norm, an activation and a 1x1 convolution that begins at 0, beside an average of the input.

    Channels that the input does not have are 0 in it; where there are fewer than in the input, a 1x1 convolution takes
    their place, which is ours: the published code has no such block.
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
    """How the published encoder reads a map: a residual branch beside a biased 1x1 convolution, and a norm over both.

    The shortcut begins as the identity with some noise, where there are as many channels as in the input or more.
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
    """The encoder of Augmented Multiscale Deep InfoMax (https://arxiv.org/abs/1906.00910) for small images.

    Without padding, so that a place of a map sees a part of the image only. For 64 and 32 pixels maps of 7x7 and 5x5
    places and one vector, as published; for 28 pixels the same maps, with padding in the first convolution and 2x2
    windows; for 8 pixels 5x5, 3x3 and a vector. Parts are the vector `[B, dim]`, the coarse and the fine map
    `[B, dim, h, w]`.

    `published` layers are those of the released code with batch norm. Without it the first convolution has batch norm
    and no bias, the block that gives the vector has `depth` units instead of one, and maps are read by a residual unit,
    whose shortcut has no weights. The released code wants `dim` of at least the channels before; fewer are ours.
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
"""By the size of images: padding of the first convolution, whether a residual unit follows it, size and stride of the
blocks before the fine map, and how many more blocks there are between the coarse map and the vector."""


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
    """The AMDIM encoder, read by nearest neighbours; the defaults are those of https://arxiv.org/abs/1911.06470.

    Images have 64, 32, 28 or 8 pixels a side. `width` is of the first convolution, `dim` of the representation, `depth`
    the number of residual units in a block; with `published`, layer for layer the released encoder (`AMDIM`). Read by
    a `linear` layer, it is trained with labels.
    """
    need_one_of("read", read, ("neighbours", "linear"))
    head = KNN(num_classes, k, vote) if read == "neighbours" else nn.Linear(dim, num_classes)
    return Classifier(AMDIM(shape, width, dim, depth, activation, published), head, normalize)
