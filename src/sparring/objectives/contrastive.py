"""Contrastive objectives: pre-training on two views, adversarial training without labels, and with a kNN head."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..attacks.losses import CE
from ..core import ranks
from ..core.errors import UserError, need_one_of
from ..core.modes import eval_mode
from ..core.rng import PerExample
from ..core.types import Batch, Context, ForwardCache, LabelledData, Objective, PerExampleLoss, Terms
from ..models.guided import GuideLoss
from ..models.knn import encode_bank, require_knn_head
from .contrastive_losses import FeatureDistance, LazyLoss, WithPredictions
from .contrasts import Contrast, InfoNCE, loss_of_pairs, need_two_views, views_of


@dataclass(frozen=True, slots=True)
class ContrastivePretraining(Objective):
    """Contrastive pre-training without labels: pulls two augmented views of an image together, pushes others away.

    The recipe needs `views_per_image=2`. With the attack `Benign()` it is AMDIM or SimCLR; any other attack maximises
    the contrast of each view with the first one, and the two views that it makes are pulled together.

    Args:
        loss: The contrast: `InfoNCE`, `NTXent` or `Multiscale`.

    Raises:
        UserError: In training, for a batch of one image, or with one view of each image, and for models without the
            parts that are needed.

    References:
        AMDIM: https://arxiv.org/abs/1906.00910.
        SimCLR: https://arxiv.org/abs/2002.05709.
    """

    needs_views: ClassVar[int] = 2

    loss: Contrast = InfoNCE()

    def inner(self, ctx: Context) -> PerExampleLoss:
        return LazyLoss(lambda: contrast_with_clean(self.loss, ctx))

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        need_two_views(ctx.batch)
        first, second = views_of(ctx.lens.parts(x_adv), 2)
        return {"views": loss_of_pairs(self.loss, ctx, first, second)}


@dataclass(frozen=True, slots=True)
class ContrastiveAT(Objective):
    """Self-supervised adversarial training: pulls an image and its adversarial version together, pushes others away.

    No label is used, by the loss or by the attack.

    Args:
        loss: The contrast: `InfoNCE`, `NTXent` or `Multiscale`.
        maximizes: Loss that the attack maximises: the "contrast" of an image with its clean self (of two views, with
            the first), or the squared "distance" or "cosine" distance of its features from there. Distances need a
            random start.

    Raises:
        UserError: If `maximizes` is unknown; in training, for a batch of one image, and for models without the parts
            that are needed.

    References:
        Self-supervised adversarial training: https://arxiv.org/abs/1911.06470.
    """

    loss: Contrast = InfoNCE()
    maximizes: Literal["contrast", "distance", "cosine"] = "contrast"

    def __post_init__(self) -> None:
        need_one_of("maximizes", self.maximizes, ("contrast", "distance", "cosine"))

    def inner(self, ctx: Context) -> PerExampleLoss:
        return LazyLoss(lambda: self._maximized(ctx))

    def _maximized(self, ctx: Context) -> PerExampleLoss:
        if self.maximizes == "contrast":
            return contrast_with_clean(self.loss, ctx)
        return FeatureDistance(ctx.lens.features, ctx.lens.features(ctx.batch.x), self.maximizes == "cosine")

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        clean, moved = ctx.lens.parts(ctx.batch.x), ctx.lens.parts(x_adv)
        # views of an image must not be negatives of each other: each view by itself
        count = ctx.batch.views
        pairs = zip(views_of(clean, count), views_of(moved, count), strict=True)
        return {"contrast": torch.stack([loss_of_pairs(self.loss, ctx, a, b) for a, b in pairs]).mean()}


@dataclass(frozen=True, slots=True)
class KNNContrastiveAT(Objective):
    """Self-supervised adversarial training as released: the attack uses a kNN head, and so the labels of its bank.

    Clean and adversarial images are contrasted as in `ContrastiveAT`, which uses no labels. The defaults are those of
    the released code.

    Args:
        loss: The contrast: `InfoNCE`, `NTXent` or `Multiscale`.
        maximizes: Loss that the attack maximises: that of the "guides" (`GuideLoss`), which needs `labels="all"`;
            cross-entropy of the neighbours with their "vote" on the clean image; or the "contrast".
        labels: Labels that may be used: those of the "bank", through votes; or "all", the image's own label too.
        only_fooled: Whether only images are contrasted whose vote the attack changed from the vote on the clean image,
            or from their label if `labels="all"`. It costs one more forward pass.
        guides: Number of guides.
        refresh: The bank of the kNN head is encoded anew every so many steps.

    Raises:
        UserError: If a setting is unknown, guides are combined with `labels="bank"`, or `refresh` is less than 1; in
            training, for a batch of one image or with several views, and for models without a kNN head.

    References:
        Self-supervised adversarial training: https://arxiv.org/abs/1911.06470.
    """

    needs_knn: ClassVar[bool] = True

    loss: Contrast = InfoNCE()
    maximizes: Literal["guides", "vote", "contrast"] = "guides"
    labels: Literal["bank", "all"] = "all"
    only_fooled: bool = True
    guides: int = 300
    refresh: int = 10

    def __post_init__(self) -> None:
        need_one_of("maximizes", self.maximizes, ("guides", "vote", "contrast"))
        need_one_of("labels", self.labels, ("bank", "all"))
        if self.maximizes == "guides" and self.labels != "all":
            raise UserError(
                "guides use the image's own label, but labels = 'bank' does not allow it: set labels = 'all' "
                "(--method.objective.labels all), or let the attack maximise the 'vote'"
            )
        if self.refresh < 1:
            raise UserError(
                f"refresh = {self.refresh}: the number of steps between encodings of the bank must be at least 1"
            )

    def init(self, data: LabelledData) -> nn.Module:
        return _TrainingSet(data)

    def observe(self, ctx: Context) -> None:
        assert isinstance(ctx.memory, _TrainingSet)
        require_knn_head(ctx.lens.model)
        if ctx.progress.step % self.refresh == 0:
            encode_bank(ctx.lens.model, ctx.memory.data)

    def inner(self, ctx: Context) -> PerExampleLoss:
        return LazyLoss(lambda: self._maximized(ctx))

    def _maximized(self, ctx: Context) -> PerExampleLoss:
        lens, x, y = ctx.lens, ctx.batch.x, ctx.batch.y
        if self.maximizes == "guides":  # they mark fooled examples themselves
            return GuideLoss(lens.features, require_knn_head(lens.model), y, self.guides)
        if self.maximizes == "vote":
            loss: PerExampleLoss = CE(lens.logits, lens.logits(x).argmax(1))
        else:
            loss = contrast_with_clean(self.loss, ctx)
        return WithPredictions(loss, lens.logits, self._expected(lens, ctx.batch)) if self.only_fooled else loss

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        if ctx.batch.views > 1:
            raise UserError("KNNContrastiveAT needs each image once: set views_per_image = 1 (--views-per-image 1)")
        clean, moved = ctx.lens.parts(ctx.batch.x), ctx.lens.parts(x_adv)
        if self.only_fooled:
            rows = self._fooled(ctx, x_adv)
            clean, moved = tuple(p[rows] for p in clean), tuple(p[rows] for p in moved)
            return {"contrast": loss_of_pairs(self.loss, ctx, clean, moved, rows)}
        return {"contrast": loss_of_pairs(self.loss, ctx, clean, moved)}

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


def contrast_with_clean(contrast: Contrast, ctx: Context) -> PerExampleLoss:
    """Return the contrast of each image with its clean self, or of two views with the first one."""
    x, views = ctx.batch.x, ctx.batch.views
    first = len(x) // views
    known = tuple(ranks.gathered(part) for part in ctx.lens.parts(x[:first]))
    index = ranks.gathered(ctx.batch.index[:first])
    own = torch.arange(len(index), device=x.device)[ranks.place(first)].repeat(views)
    return contrast.point(ctx.lens, known, own, PerExample(ctx.chance("contrast"), index))
