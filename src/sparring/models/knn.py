"""k nearest neighbours as a classifier: a head that reads features by the examples in a bank."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core.errors import UserError, need_one_of
from ..core.modes import eval_mode
from ..core.types import Classifier, Forward, LabelledData, Reference, pixels

Vote: TypeAlias = Literal["uniform", "weighted"]

BLOCK = 16_384
"""So many examples of a bank are compared at a time."""
COLLAPSED = 0.01
"""A spread below this means that the representation has collapsed."""
_AHEAD = 1e-3
"""By how much the winner of the votes leads, in logits, where the soft votes see another one ahead."""


class KNN(Reference):
    """Reads features `[B, F]` by their `k` most similar (cosine) examples in a bank; gives logits `[B, C]`.

    The votes decide: `uniform`, one each, k 75 in https://arxiv.org/abs/1911.06470; or `weighted` by
    exp(similarity / `temperature`), k 200 and 0.07 in https://arxiv.org/abs/1805.01978. Examples that are equally
    similar go by their place in the bank, classes that have as many votes by their soft votes.

    Votes have no gradient. The logits are soft votes, which do: log sum exp(similarity / `softness`) over all examples
    of a class. Where these see another class ahead than the votes, the logit of the class that the votes chose is
    lifted above the others by a constant. So what is judged is the vote, and what attacks climb is smooth.

    The bank is compared in blocks: nothing of the size images x bank is kept, in the backward pass neither. It is a
    buffer, saved with the weights; `fit` fills it, and so does `encode_bank` for a model. Raises `UserError` while it
    is empty.
    """

    rows: Tensor
    starts: Tensor

    def __init__(
        self,
        num_classes: int,
        k: int = 75,
        vote: Vote = "uniform",
        temperature: float = 0.07,
        softness: float = 0.05,
    ) -> None:
        super().__init__()
        if k < 1 or temperature <= 0 or softness <= 0:
            raise UserError(
                f"k nearest neighbours are at least 1, not {k}, and temperatures above 0, not {temperature:g} and "
                f"{softness:g}"
            )
        need_one_of("vote", vote, get_args(Vote))
        self.num_classes, self.k, self.vote = num_classes, k, vote
        self.temperature, self.softness = temperature, softness
        self.register_buffer("rows", torch.zeros(0, 0))
        self.register_buffer("starts", torch.zeros(num_classes + 1, dtype=torch.long))

    def fit(self, features: Tensor, y: Tensor) -> None:
        """Puts `features` `[N, F]` with labels `y` `[N]` into the bank, in the order of the classes.

        Raises `UserError` for fewer than `k` examples, labels that the model has no class for, an empty class, and
        features that are not finite.
        """
        if len(features) < self.k:
            raise UserError(
                f"{self.k} nearest neighbours are asked of a bank of {len(features)} examples: take a smaller k, or a "
                "larger bank"
            )
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= self.num_classes:
            raise UserError(
                f"the bank has labels {low} to {high}, but the model knows the classes 0 to {self.num_classes - 1}: "
                "they are of another data set"
            )
        counts = torch.bincount(y, minlength=self.num_classes)
        if not bool(counts.all()):
            empty = int((counts == 0).nonzero()[0])
            raise UserError(f"the bank has no example of class {empty}: nothing could ever be taken for it")
        if not bool(features.isfinite().all()):
            raise UserError("the features of the bank are NaN or infinite: the encoder has diverged")
        order = y.argsort(stable=True)
        self._put("rows", F.normalize(features.detach().float(), dim=1)[order].to(self.starts.device))
        self._put("starts", F.pad(counts.cumsum(0), (1, 0)).to(self.starts.device))

    def forward(self, features: Tensor) -> Tensor:
        soft = self.soft(features)
        with torch.no_grad():
            votes = self.votes(features)
            most = votes == votes.amax(1, keepdim=True)
            winner = soft.masked_fill(~most, -torch.inf).argmax(1, keepdim=True)
            lift = soft.amax(1, keepdim=True) - soft.gather(1, winner) + _AHEAD
            lift = torch.where(soft.argmax(1, keepdim=True) == winner, 0.0, lift)
        return soft.scatter_add(1, winner, lift)

    def soft(self, features: Tensor, softness: float | None = None) -> Tensor:
        """Soft votes `[B, C]`: log sum exp(similarity / softness) over the examples of each class."""
        z, by = self.normalized(features), softness or self.softness
        classes = list(pairwise(self.bounds))
        if len(self.rows) <= BLOCK:
            scores = z @ self.rows.T / by
            return torch.stack([scores[:, a:b].logsumexp(1) for a, b in classes], 1)

        def block(z: Tensor, a: int, b: int) -> Tensor:
            return (z @ self.rows[a:b].T / by).logsumexp(1)

        def of_class(a: int, b: int) -> Tensor:
            # computed once more in the backward pass, so that none of it is kept
            each: list[Any] = [checkpoint(block, z, i, j, use_reentrant=False) for i, j in _blocks(a, b)]
            return torch.stack(each).logsumexp(0)

        return torch.stack([of_class(a, b) for a, b in classes], 1)

    @torch.no_grad()
    def votes(self, features: Tensor) -> Tensor:
        """What each class has of the votes, `[B, C]`: a number of neighbours, or the sum of their weights."""
        similar, where = self.nearest(features, self.k)
        y = torch.bucketize(where, self.starts[1:], right=True)
        weight = torch.ones_like(similar)
        if self.vote == "weighted":
            weight = ((similar - similar[:, :1]) / self.temperature).exp()
        return similar.new_zeros(len(similar), self.num_classes).scatter_add_(1, y, weight)

    @torch.no_grad()
    def nearest(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Cosine similarities `[B, k]` of the nearest examples, the nearest first, and their places in the bank."""
        z = self.normalized(features)
        best = torch.empty(len(z), 0, dtype=torch.long, device=z.device)
        for a, b in _blocks(0, len(self.rows)):
            best = torch.cat([best, _top((z @ self.rows[a:b].T).float(), a, k)], 1)
            best = best.topk(min(k, best.shape[1])).values
        return _unkeyed(best)

    @property
    def labels(self) -> Tensor:
        """Of the rows of the bank, `[N]`."""
        return torch.bucketize(torch.arange(len(self.rows), device=self.rows.device), self.starts[1:], right=True)

    @property
    def spread(self) -> float:
        """The mean squared distance of the rows from their mean: 1 all around, 0 where all are alike."""
        return 1 - float(self.rows.mean(0).square().sum())

    @property
    def bounds(self) -> list[int]:
        """Where in the bank each class begins, and the end."""
        return [int(start) for start in self.starts.tolist()]

    def normalized(self, features: Tensor) -> Tensor:
        """Of length 1, in the precision of the bank."""
        if not len(self.rows):
            raise UserError(
                "the bank of the nearest neighbours is empty: fill it by sparring.models.encode_bank(model, data)"
            )
        return F.normalize(features.flatten(1).to(self.rows.dtype), dim=1)

    def refresh(self, model: nn.Module, data: LabelledData, batch_size: int = 512) -> None:
        """Fills the bank with the features that the model, in eval mode, has for `data`."""
        assert isinstance(model, Classifier)
        with eval_mode(model):
            self.fit(encode(model.features, data, batch_size), data.y)

    def metrics(self) -> dict[str, float]:
        return {"spread": self.spread}

    def alarm(self) -> str | None:
        if self.spread >= COLLAPSED:
            return None
        return (
            f"the features of all images are alike (spread {self.spread:.2g}; 1 would be all around): the "
            "representation has collapsed. Use larger batches or a lower learning rate, or a contrast with other images"
        )

    def describe(self) -> str:
        return (
            f"{len(self.rows):,} training images are the bank of {self.k} nearest neighbours, encoded anew after each "
            "epoch: not counted"
        )

    def _put(self, name: str, values: Tensor) -> None:
        """In place if it fits, so that whoever shares the bank sees it."""
        held: Tensor = getattr(self, name)
        if held.shape == values.shape:
            held.copy_(values)
        else:
            setattr(self, name, values.clone())

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(prefix + "rows")
        if saved is not None and saved.shape != self.rows.shape:
            self.rows = torch.empty_like(saved, device=self.rows.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"k={self.k}, vote={self.vote!r}, {len(self.rows)} examples"


def _blocks(a: int, b: int) -> Iterator[tuple[int, int]]:
    return ((i, min(b, i + BLOCK)) for i in range(a, b, BLOCK))


def _top(similar: Tensor, first: int, k: int) -> Tensor:
    """The keys of the `k` greatest in each row, of a block that begins at place `first`."""
    place = torch.arange(first, first + similar.shape[1], device=similar.device)
    if k >= similar.shape[1]:
        return _keys(similar, place)
    values, where = similar.topk(k + 1)
    keys = _keys(values[:, :k], where[:, :k] + first)
    tied = (values[:, k] == values[:, k - 1]).nonzero()[:, 0]  # torch takes any of those that are equal
    if len(tied):
        keys[tied] = _keys(similar[tied], place).topk(k).values
    return keys


def _keys(similar: Tensor, place: Tensor) -> Tensor:
    """Whole numbers in the order of the similarities, and of the places where these are equal: the first is greatest.

    In the upper half the bits of a float32, whose order is that of whole numbers but for the sign.
    """
    bits = (similar + 0.0).view(torch.int32)  # -0 becomes 0
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (bits << 32) + (_PLACES - place)


_PLACES = 0xFFFFFFFF


def _unkeyed(keys: Tensor) -> tuple[Tensor, Tensor]:
    bits, place = keys >> 32, _PLACES - (keys & _PLACES)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).int()
    return bits.view(torch.float32), place


def knn_head(model: nn.Module) -> KNN | None:
    """The head of a model that reads nearest neighbours, if it has one."""
    head = model.head if isinstance(model, Classifier) else None
    return head if isinstance(head, KNN) else None


def require_knn_head(model: nn.Module) -> KNN:
    """The same, where there has to be one. Raises `UserError` for a model with another head."""
    head = knn_head(model)
    if head is None:
        raise UserError(
            f"this asks nearest neighbours, and the model is a {type(model).__name__} with another head: build it with "
            "sparring.models.amdim or contrastive_encoder, or read its body by KNN, as Classifier(body, KNN(..))"
        )
    return head


def encode(features: Forward, data: LabelledData, batch_size: int = 512) -> Tensor:
    """Features `[N, F]` of the images as they are, without augmentation. Raises `UserError` if there are none."""
    if not len(data):
        raise UserError(
            "there are no images to encode: in a loop of your own, give the training set to "
            "State.start(method, model, optimizer, data)"
        )
    with torch.no_grad():
        parts = [features(pixels(data[i : i + batch_size].x)) for i in range(0, len(data), batch_size)]
    return torch.cat(parts)


def encode_bank(model: nn.Module, data: LabelledData, batch_size: int = 512) -> None:
    """Encodes `data` with the model as it is now, in eval mode, into the bank of its kNN head.

    Raises `UserError` for a model with another head.
    """
    require_knn_head(model).refresh(model, data, batch_size)
