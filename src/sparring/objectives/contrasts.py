"""Contrasts: losses between two views of the same images, with other images as negatives, as values for objectives."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..core import ranks
from ..core.errors import UserError
from ..core.rng import PerExample, integers
from ..core.types import Batch, Context, ForwardCache, PerExampleLoss
from .contrastive_losses import FeatureContrast, Parts, ScaleContrast, Scales, info_nce, nt_xent


class Contrast(Protocol):
    """A contrastive loss between two views of the same images, with other images as negatives."""

    def pairs(self, a: Parts, b: Parts, rng: PerExample) -> Tensor:
        """Loss `[B]` of two views of each image, given as parts.

        Which of the parts it uses is up to the contrast; it draws from `rng`, which has a stream for each image.
        """
        ...

    def point(self, lens: ForwardCache, known: Parts, own: Tensor, rng: PerExample) -> PerExampleLoss:
        """Loss of each image by itself, against `known` views of which `own` `[B]` gives the one of the same image.

        The direction is from the image to the known views; for maps at several scales, both directions. It draws from
        `rng`, which has a stream for each known view.
        """
        ...


@dataclass(frozen=True, slots=True)
class InfoNCE:
    """InfoNCE of projections, or of features if the model has no projection.

    Scores are cosine / `temperature`.

    Args:
        temperature: Temperature of the scores.
        both: Whether the loss is the mean of both directions, or only the one from the first view to the second.

    Raises:
        UserError: If `temperature` is not above 0.

    References:
        InfoNCE: https://arxiv.org/abs/1807.03748.
    """

    temperature: float = 0.2
    both: bool = True

    def __post_init__(self) -> None:
        need_temperature(self.temperature)

    def pairs(self, a: Parts, b: Parts, rng: PerExample) -> Tensor:
        del rng
        return info_nce(projected(a), projected(b), self.temperature, self.both)

    def point(self, lens: ForwardCache, known: Parts, own: Tensor, rng: PerExample) -> PerExampleLoss:
        del rng
        return FeatureContrast(lambda x: projected(lens.parts(x)), projected(known), own, self.temperature)


@dataclass(frozen=True, slots=True)
class NTXent:
    """NT-Xent, the loss of SimCLR: InfoNCE, also with other images of the own view as negatives.

    Args:
        temperature: Temperature of the scores.

    Raises:
        UserError: If `temperature` is not above 0.

    References:
        SimCLR: https://arxiv.org/abs/2002.05709.
    """

    temperature: float = 0.5

    def __post_init__(self) -> None:
        need_temperature(self.temperature)

    def pairs(self, a: Parts, b: Parts, rng: PerExample) -> Tensor:
        del rng
        return nt_xent(projected(a), projected(b), temperature=self.temperature)

    def point(self, lens: ForwardCache, known: Parts, own: Tensor, rng: PerExample) -> PerExampleLoss:
        return InfoNCE(self.temperature).point(lens, known, own, rng)


@dataclass(frozen=True, slots=True)
class Multiscale:
    """Contrast of the maps of an AMDIM encoder at three pairs of scales.

    Args:
        clip: Bound of the soft clipping of scores.
        regularise: Weight of the mean squared raw score, which is added in pre-training: 0.05 as published. The
            released code of self-supervised adversarial training leaves it out.
        both: Whether the loss is the mean of both directions, or only the one from the first view to the second.

    Raises:
        UserError: In training, if the model has no feature maps.

    References:
        AMDIM: https://arxiv.org/abs/1906.00910.
        Self-supervised adversarial training: https://arxiv.org/abs/1911.06470.
    """

    clip: float = 20.0
    regularise: float = 0.0
    both: bool = True

    def pairs(self, a: Parts, b: Parts, rng: PerExample) -> Tensor:
        scales = self._scales(a, rng)
        loss = scales.pairs(a, b, self.both)
        if self.regularise:
            loss = loss + self.regularise * scales.size(a, b)
        return loss

    def point(self, lens: ForwardCache, known: Parts, own: Tensor, rng: PerExample) -> PerExampleLoss:
        return ScaleContrast(lens.parts, known, own, self._scales(known, rng))

    def _scales(self, parts: Parts, rng: PerExample) -> Scales:
        if len(parts) != 3 or parts[-1].ndim != 4:
            raise UserError(
                "a multiscale contrast needs an encoder with feature maps: build the model with sparring.models.amdim, "
                "or take InfoNCE() or NTXent() for other bodies"
            )
        count = parts[1].shape[2] * parts[1].shape[3]
        return Scales(integers(len(parts[0]), count, rng, parts[0].device), self.clip)


def projected(parts: Parts) -> Tensor:
    """Vector `[B, P]` of each image that is contrasted: the projection, or the features if there is none."""
    return parts[-1] if parts[-1].ndim == 2 else parts[0]


def loss_of_pairs(contrast: Contrast, ctx: Context, a: Parts, b: Parts, rows: Tensor | None = None) -> Tensor:
    """Mean contrast of two views of images of the batch, as a term of a loss.

    Images of all processes are negatives; every process computes the whole loss, and differentiates its own part.

    Args:
        contrast: The contrast.
        ctx: The context of the objective.
        a: Parts of the first views.
        b: Parts of the second views.
        rows: Numbers of the images in the first view of the batch; None for all.
    """
    first = ctx.batch.index[: len(ctx.batch.index) // ctx.batch.views]
    index = ranks.gathered(first if rows is None else first[rows])
    a, b = (tuple(ranks.gathered_with_gradient(part) for part in parts) for parts in (a, b))
    if len(index) < 2 and rows is not None:  # no other image to contrast with
        return 0.0 * (a[0].sum() + b[0].sum())
    loss = contrast.pairs(a, b, PerExample(ctx.chance("contrast"), index)).mean()
    return of_all(loss, ctx)


def of_all(loss: Tensor, ctx: Context) -> Tensor:
    """Return a loss of the images of all processes as a term of the loss of this one.

    Such a term is multiplied by the share of this process before the processes are summed up. The value of the loss is
    the same on all, but its gradient is only that of the images here, so the share must not shrink it.
    """
    if ranks.world() == 1:
        return loss
    here = len(ctx.batch.index)
    return loss.detach() + (loss - loss.detach()) * (ranks.total(here) / here)


def need_temperature(value: float) -> None:
    """Raise `UserError` for a temperature that is not above 0."""
    if not value > 0:
        raise UserError(f"temperature = {value:g} is not above 0")


def need_two_views(batch: Batch) -> None:
    """Raise `UserError` for a batch that does not hold two views of each image."""
    if batch.views != 2:
        held = "each image once" if batch.views == 1 else f"{batch.views} views of each"
        raise UserError(
            f"two views of each image are needed, but the batch holds {held}: set views_per_image = 2 "
            "(--views-per-image 2)"
        )


def views_of(parts: Parts, count: int) -> list[Parts]:
    """Return the parts of each of `count` views of the images of a batch."""
    return list(zip(*(part.chunk(count) for part in parts), strict=True))


JOINT = "whose images are compared with each other: "
"""Reason why an attack may not take rows out of a batch: it maximises the contrast of all its images jointly."""
