"""Generated images without a deep generative model: Gaussian mixtures fitted to the images of each class."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError, need_seed, need_whole
from ..core.reading import Array
from ..core.types import TensorData, pixels
from .sources import Source


@dataclass(frozen=True, slots=True)
class GaussianMixtureImages:
    """Images drawn from Gaussian mixtures, one for each class, fitted to the training images of another source.

    They stand in for the images of a diffusion model in small experiments (`ExtraData`). A mixture is fitted by
    scikit-learn to the principal components of the images of a class. It sees all training images of the source, also
    those that a recipe holds out. On another kind of processor a pixel may be rounded otherwise.

    Args:
        source: the source whose training images are imitated; they must be in memory.
        count: number of images drawn, as many of each class.
        components: number of Gaussians of each class.
        dimensions: number of principal components; at most the number of pixels.
        seed: seed of the fits and of the images.

    Raises:
        UserError: when a number is below 1; in `load`, when images are in files, or a class has fewer images than
            components.
    """

    source: Source
    count: int = 10_000
    components: int = 10
    dimensions: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "components", "dimensions"):
            need_whole(name, getattr(self, name))
        need_seed(self.seed)

    def load(self) -> tuple[TensorData, TensorData]:
        drawn = _drawn(self)
        return drawn, drawn[:0]


@lru_cache(1)  # the arms and seeds of a study use the same images
def _drawn(wanted: GaussianMixtureImages) -> TensorData:
    train, _ = wanted.source.load()
    if not isinstance(train, TensorData):
        raise UserError("Gaussian mixtures are fitted to images in memory, and these stay in files: use ImageFolder")
    classes = len(train.classes)
    x, parts = pixels(train.x).flatten(1).double().numpy(), []
    for number in range(classes):
        mine = x[(train.y == number).numpy()]
        if len(mine) <= wanted.components:
            raise UserError(
                f"class {train.classes[number]} has {len(mine)} images, too few for {wanted.components} Gaussians: "
                "take fewer components"
            )
        share = (number + 1) * wanted.count // classes - number * wanted.count // classes
        parts.append(_of_class(mine, share, wanted, number))
    images = torch.from_numpy(np.concatenate(parts)).view(-1, *train.shape)
    labels = [torch.full((len(part),), number) for number, part in enumerate(parts)]
    return TensorData(_bytes(images), torch.cat(labels), train.classes)


def _of_class(x: Array, count: int, wanted: GaussianMixtureImages, number: int) -> Array:
    """Return `count` images drawn from a mixture fitted to the images `[N, pixels]` of a class."""
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    seed = (wanted.seed * 1000 + number) % 2**32  # scikit-learn takes no larger one
    axes = PCA(min(wanted.dimensions, *x.shape), random_state=seed).fit(x)
    z = axes.transform(x)
    mixture = GaussianMixture(wanted.components, reg_covar=1e-3 * float(z.var(0).mean()), random_state=seed).fit(z)
    if not count:
        return np.empty((0, x.shape[1]))
    drawn: Array = axes.inverse_transform(mixture.sample(count)[0])
    return drawn


def _bytes(images: Tensor) -> Tensor:
    return (255 * images.clamp(0, 1)).round().to(torch.uint8)
