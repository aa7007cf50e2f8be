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
    """How two looks at the same images are told from looks at others. `chance` decides what it draws."""

    def pairs(self, a: Parts, b: Parts, chance: int) -> Tensor:
        """`[B]`, of two looks at each image; what of them is read, is the contrast's own affair."""
        ...

    def point(self, lens: ForwardCache, known: Parts, own: Tensor, chance: int) -> PerExampleLoss:
        """One image at a time, against `known` looks of which `own` `[B]` are at the same image.

        From the image to the known ones; of maps at several scales, both ways.
        """
        ...


@dataclass(frozen=True, slots=True)
class InfoNCE:
    """Of projections, or of features if the model has none: cosine / `temperature`, both directions or one."""

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
    """The same, with the other images of the own side among the others (SimCLR, https://arxiv.org/abs/2002.05709)."""

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
    """Of the maps of an AMDIM encoder at three pairs of scales (https://arxiv.org/abs/1906.00910).

    `regularise` x the mean squared raw score is added in pre-training, 0.05 as published; the released code of
    https://arxiv.org/abs/1911.06470 leaves it out.
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
    """What is contrasted of an image as a whole, `[B, P]`: the projection, or else the features."""
    return parts[-1] if parts[-1].ndim == 2 else parts[0]


JOINT = "whose images are told from each other: "
"""Why an attack may not take rows out of a batch, where the contrast of all that are attacked is raised at once."""


def need_temperature(value: float) -> None:
    if not value > 0:
        raise UserError(f"temperature = {value:g} is not above 0")


Between = Literal["adversarial", "views"]
Raised = Literal["contrast", "distance", "cosine", "vote", "guides"]
Labels = Literal["none", "bank", "all"]


@dataclass(frozen=True, slots=True)
class Contrastive(Objective):
    """Two looks at an image are drawn together and away from other images; it needs no label.

    `between`: a clean image and its `adversarial` one, which is self-supervised adversarial training
    (https://arxiv.org/abs/1911.06470); or two augmented `views` (`views=2` of the recipe), which is pre-training with
    the attack `Benign()`.

    The attack raises the `contrast` of an image with its clean self (of two views, with the first), or the squared
    `distance` or the `cosine` distance of its features from there; these need a random start. By labels, it raises the
    loss of the nearest neighbours' `vote` on the clean image, or follows `guides` (`GuideLoss`). What may be looked at
    says `labels`: none; those of the `bank`, through votes; or `all`, the image's own too. With `only_fooled`,
    only those images are contrasted whose vote the attack changed, from their label if all labels are known, as
    in the released code; that is a forward pass more.

    Votes and guides need a head of nearest neighbours; its bank is encoded anew every `refresh` steps. Raises
    `UserError` for labels that are asked for but not allowed, a batch of one image, and models without what is
    contrasted.
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
            what = f"raising the {self.raises}" if self.raises in ("vote", "guides") else "keeping only who is fooled"
            raise UserError(
                f"{what} looks at labels, and this training is to know {self.labels} of them: say labels = {wanted!r} "
                f"(--method.objective.labels {wanted}), or raise the contrast"
            )
        if self.only_fooled and self.between != "adversarial":
            raise UserError("only those who are fooled can be kept between clean and adversarial images, not of views")
        if self.refresh < 1:
            raise UserError(f"a bank is encoded anew every so many steps, at least 1, not {self.refresh}")

    @property
    def needs_views(self) -> int:  # type: ignore[override]
        return 2 if self.between == "views" else 1

    @property
    def needs_knn(self) -> bool:  # type: ignore[override]
        return self.reads

    @property
    def reads(self) -> bool:
        """Whether it asks the nearest neighbours."""
        return self.labels != "none" and (self.only_fooled or self.raises in ("vote", "guides"))

    def init(self, data: LabelledData) -> nn.Module:
        return _Known(data) if self.reads else nn.Module()

    def observe(self, ctx: Context) -> None:
        if not self.reads:
            return
        assert isinstance(ctx.memory, _Known)
        require_knn_head(ctx.lens.model)
        if ctx.progress.step % self.refresh == 0:
            encode_bank(ctx.lens.model, ctx.memory.data)

    def inner(self, ctx: Context) -> PerExampleLoss:
        def made() -> PerExampleLoss:
            loss = self._raised(ctx)
            if not self.only_fooled or self.raises == "guides":  # which tell by themselves
                return loss
            return WithPredictions(loss, ctx.lens.logits, self._kept(ctx.lens, ctx.batch))

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
        # two views of an image are no others to each other: each side by itself
        clean, moved = lens.parts(x), lens.parts(x_adv)
        pairs = zip(halves(clean), halves(moved), strict=True) if views == 2 else [(clean, moved)]
        if self.only_fooled:
            if views == 2:
                raise UserError("who is fooled is kept of images that are in the batch once: set views = 1 (--views 1)")
            rows = self._fooled(ctx, x_adv)
            pairs = [(tuple(p[rows] for p in clean), tuple(p[rows] for p in moved))]
            if len(rows) < 2:  # nobody to be told from
                return {"contrast": 0.0 * (clean[0].sum() + moved[0].sum())}
        return {"contrast": torch.cat([self.loss.pairs(a, b, chance) for a, b in pairs]).mean()}

    def _kept(self, lens: ForwardCache, batch: Batch) -> Tensor:
        """What the vote has to stay: the label, or what it is on the clean image."""
        return batch.y if self.labels == "all" else lens.logits(batch.x).argmax(1)

    @torch.no_grad()
    def _fooled(self, ctx: Context, x_adv: Tensor) -> Tensor:
        """Rows of the batch, in eval mode, as the bank was encoded: a forward pass more."""
        with eval_mode(ctx.lens.model):
            lens = ForwardCache(ctx.lens.model)
            votes = lens.logits(x_adv).argmax(1)
            return (votes != self._kept(lens, ctx.batch)).nonzero()[:, 0]


class _Known(nn.Module):
    """The training set, to encode it anew. It is no part of what is saved."""

    def __init__(self, data: LabelledData) -> None:
        super().__init__()
        self.data = data


def need_two_views(batch: Batch) -> None:
    if batch.views == 1:
        raise UserError("two views are contrasted, and each image is in the batch once: set views = 2 (--views 2)")


def halves(parts: Parts) -> tuple[Parts, Parts]:
    """Those of the two views of a batch."""
    half = len(parts[0]) // 2
    return tuple(part[:half] for part in parts), tuple(part[half:] for part in parts)
