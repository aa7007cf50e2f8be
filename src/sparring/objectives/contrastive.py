from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from ..attacks.losses import CE
from ..core.errors import UserError, need_one_of
from ..core.modes import eval_mode
from ..core.rng import make_rng, seed_of_step
from ..core.types import Batch, Context, ForwardCache, LabelledData, Objective, PerExampleLoss, Terms
from ..models.guided import GuideLoss
from ..models.knn import encode_bank, require_knn_head
from .contrastive_losses import (
    FeatureContrast,
    FeatureDistance,
    LazyLoss,
    Parts,
    ScaleContrast,
    Scales,
    WithPredictions,
    info_nce,
    nt_xent,
)


class Contrast(Protocol):
    """A contrastive loss between two views of the same images, with other images as negatives."""

    def pairs(self, a: Parts, b: Parts, chance: int) -> Tensor:
        """Loss `[B]` of two views of each image, given as parts.

        Which of the parts it uses is up to the contrast; `chance` seeds its draws.
        """
        ...

    def point(self, lens: ForwardCache, known: Parts, own: Tensor, chance: int) -> PerExampleLoss:
        """Loss of each image by itself, against `known` views of which `own` `[B]` gives the one of the same image.

        The direction is from the image to the known views; for maps at several scales, both directions. `chance` seeds
        its draws.
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

    def pairs(self, a: Parts, b: Parts, chance: int) -> Tensor:
        del chance
        return info_nce(projected(a), projected(b), self.temperature, self.both)

    def point(self, lens: ForwardCache, known: Parts, own: Tensor, chance: int) -> PerExampleLoss:
        del chance
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

    def pairs(self, a: Parts, b: Parts, chance: int) -> Tensor:
        del chance
        return nt_xent(projected(a), projected(b), temperature=self.temperature)

    def point(self, lens: ForwardCache, known: Parts, own: Tensor, chance: int) -> PerExampleLoss:
        return InfoNCE(self.temperature).point(lens, known, own, chance)


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

    def pairs(self, a: Parts, b: Parts, chance: int) -> Tensor:
        scales = self._scales(a, chance)
        loss = scales.pairs(a, b, self.both)
        if self.regularise:
            loss = loss + self.regularise * scales.size(a, b)
        return loss

    def point(self, lens: ForwardCache, known: Parts, own: Tensor, chance: int) -> PerExampleLoss:
        return ScaleContrast(lens.parts, known, own, self._scales(known, chance))

    def _scales(self, parts: Parts, chance: int) -> Scales:
        if len(parts) != 3 or parts[-1].ndim != 4:
            raise UserError(
                "a multiscale contrast needs an encoder with feature maps: build the model with sparring.models.amdim, "
                "or take InfoNCE() or NTXent() for other bodies"
            )
        count = parts[1].shape[2] * parts[1].shape[3]
        places = torch.randint(count, (len(parts[0]),), generator=make_rng(chance))
        return Scales(places.to(parts[0].device), self.clip)


def projected(parts: Parts) -> Tensor:
    """Vector `[B, P]` of each image that is contrasted: the projection, or the features if there is none."""
    return parts[-1] if parts[-1].ndim == 2 else parts[0]


JOINT = "whose images are compared with each other: "
"""Reason why an attack may not take rows out of a batch: it maximises the contrast of all its images jointly."""


def need_temperature(value: float) -> None:
    """Raise `UserError` for a temperature that is not above 0."""
    if not value > 0:
        raise UserError(f"temperature = {value:g} is not above 0")


Between = Literal["adversarial", "views"]
Raised = Literal["contrast", "distance", "cosine", "vote", "guides"]
Labels = Literal["none", "bank", "all"]


@dataclass(frozen=True, slots=True)
class Contrastive(Objective):
    """Contrastive objective: pulls two views of an image together and pushes other images away, without labels.

    The attack uses no labels by default: it maximises the contrast of an image with its clean self (of two views, with
    the first), or the distance of its features from there, which needs a random start. With labels, it maximises the
    loss of the nearest neighbours, or follows guides. Votes and guides need a kNN head.

    Args:
        loss: The contrast: `InfoNCE`, `NTXent` or `Multiscale`.
        between: The pair of views: a clean image and its "adversarial" one, which is self-supervised adversarial
            training; or two augmented "views" (`views=2` of the recipe), which is pre-training with the attack
            `Benign()`.
        raises: Loss that the attack maximises: the "contrast"; the squared "distance" or the "cosine" distance of
            features; cross-entropy of the neighbours with their "vote" on the clean image; or that of the "guides"
            (`GuideLoss`).
        labels: Labels that may be used: "none"; those of the "bank", through votes; or "all", the image's own label
            too.
        only_fooled: Whether only images are contrasted whose vote the attack changed, compared with their label if all
            labels may be used, as in the released code. It costs one more forward pass.
        guides: Number of guides.
        refresh: The bank of the kNN head is encoded anew every so many steps.

    Raises:
        UserError: If labels are needed but not allowed, a setting is unknown, `only_fooled` is combined with views, or
            `refresh` is less than 1; in training, for a batch of one image, and for models without the head or the
            parts that are needed.

    References:
        Self-supervised adversarial training: https://arxiv.org/abs/1911.06470.
    """

    loss: Contrast = InfoNCE()
    between: Between = "adversarial"
    raises: Raised = "contrast"
    labels: Labels = "none"
    only_fooled: bool = False
    guides: int = 300
    refresh: int = 10

    def __post_init__(self) -> None:
        for name, known in (("between", Between), ("raises", Raised), ("labels", Labels)):
            need_one_of(name, getattr(self, name), get_args(known))
        wanted = {"vote": "bank", "guides": "all"}.get(self.raises, "bank" if self.only_fooled else "none")
        allowed = {"none": (), "bank": ("bank",), "all": ("bank", "all")}[self.labels]
        if wanted not in ("none", *allowed):
            what = f"raises = {self.raises!r}" if self.raises in ("vote", "guides") else "only_fooled"
            raise UserError(
                f"{what} uses labels, but labels = {self.labels!r} does not allow it: set labels = {wanted!r} "
                f"(--method.objective.labels {wanted}), or let the attack maximise the contrast"
            )
        if self.only_fooled and self.between != "adversarial":
            raise UserError(
                "only_fooled compares clean with adversarial images: set between = 'adversarial', not 'views'"
            )
        if self.refresh < 1:
            raise UserError(
                f"refresh = {self.refresh}: the number of steps between encodings of the bank must be at least 1"
            )

    @property
    def needs_views(self) -> int:  # type: ignore[override]
        return 2 if self.between == "views" else 1

    @property
    def needs_knn(self) -> bool:  # type: ignore[override]
        return self.reads

    @property
    def reads(self) -> bool:
        """True if the objective uses the nearest neighbours."""
        return self.labels != "none" and (self.only_fooled or self.raises in ("vote", "guides"))

    def init(self, data: LabelledData) -> nn.Module:
        return _TrainingSet(data) if self.reads else nn.Module()

    def observe(self, ctx: Context) -> None:
        if not self.reads:
            return
        assert isinstance(ctx.memory, _TrainingSet)
        require_knn_head(ctx.lens.model)
        if ctx.progress.step % self.refresh == 0:
            encode_bank(ctx.lens.model, ctx.memory.data)

    def inner(self, ctx: Context) -> PerExampleLoss:
        def made() -> PerExampleLoss:
            loss = self._raised(ctx)
            if not self.only_fooled or self.raises == "guides":  # guides mark fooled examples themselves
                return loss
            return WithPredictions(loss, ctx.lens.logits, self._expected(ctx.lens, ctx.batch))

        return LazyLoss(made)

    def _raised(self, ctx: Context) -> PerExampleLoss:
        lens, x, y = ctx.lens, ctx.batch.x, ctx.batch.y
        if self.raises == "guides":
            return GuideLoss(lens.features, require_knn_head(lens.model), y, self.guides)
        if self.raises == "vote":
            return CE(lens.logits, lens.logits(x).argmax(1))
        if self.raises in ("distance", "cosine"):
            return FeatureDistance(lens.features, lens.features(x), self.raises == "cosine")
        views = ctx.batch.views
        first = x[: len(x) // views] if views > 1 else x
        own = torch.arange(len(first), device=x.device).repeat(views)
        return self.loss.point(lens, lens.parts(first), own, seed_of_step(ctx.progress.step))

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        lens, x, chance = ctx.lens, ctx.batch.x, seed_of_step(ctx.progress.step)
        if self.between == "views":
            need_two_views(ctx.batch)
            return {"views": self.loss.pairs(*halves(lens.parts(x)), chance).mean()}
        views = ctx.batch.views
        # two views of an image must not be negatives of each other: each view by itself
        clean, moved = lens.parts(x), lens.parts(x_adv)
        pairs = zip(halves(clean), halves(moved), strict=True) if views == 2 else [(clean, moved)]
        if self.only_fooled:
            if views == 2:
                raise UserError("only_fooled needs each image once in a batch: set views = 1 (--views 1)")
            rows = self._fooled(ctx, x_adv)
            pairs = [(tuple(p[rows] for p in clean), tuple(p[rows] for p in moved))]
            if len(rows) < 2:  # no other image to contrast with
                return {"contrast": 0.0 * (clean[0].sum() + moved[0].sum())}
        return {"contrast": torch.cat([self.loss.pairs(a, b, chance) for a, b in pairs]).mean()}

    def _expected(self, lens: ForwardCache, batch: Batch) -> Tensor:
        """Class for which the neighbours should vote: the label, or their vote on the clean image."""
        return batch.y if self.labels == "all" else lens.logits(batch.x).argmax(1)

    @torch.no_grad()
    def _fooled(self, ctx: Context, x_adv: Tensor) -> Tensor:
        """Rows whose vote changed, in eval mode, as the bank was encoded; costs one more forward pass."""
        with eval_mode(ctx.lens.model):
            lens = ForwardCache(ctx.lens.model)
            votes = lens.logits(x_adv).argmax(1)
            return (votes != self._expected(lens, ctx.batch)).nonzero()[:, 0]


class _TrainingSet(nn.Module):
    """The training set, from which the bank is encoded anew; it is not saved."""

    def __init__(self, data: LabelledData) -> None:
        super().__init__()
        self.data = data


def need_two_views(batch: Batch) -> None:
    """Raise `UserError` for a batch that holds each image once."""
    if batch.views == 1:
        raise UserError(
            "two views of each image are needed, but the batch holds each image once: set views = 2 (--views 2)"
        )


def halves(parts: Parts) -> tuple[Parts, Parts]:
    """Parts of the first views of a batch, and of the second views."""
    half = len(parts[0]) // 2
    return tuple(part[:half] for part in parts), tuple(part[half:] for part in parts)
