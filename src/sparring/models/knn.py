"""k nearest neighbours as a classifier: a head that compares features with the examples in a bank."""

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
"""Number of examples of a bank that are compared at a time."""
COLLAPSED = 0.01
"""A spread below this means that the representation has collapsed."""
_AHEAD = 1e-3
"""Lead, in logits, of the class that the votes chose, where another class leads by soft votes."""


class KNN(Reference):
    """kNN head: classifies features by their `k` most similar (cosine) examples in a bank.

    It maps features `[B, F]` to logits `[B, C]`. The votes of the neighbours decide. Equally similar examples are
    ranked by their place in the bank, and classes with equally many votes by their soft votes.

    Votes have no gradient. The logits are soft votes, which have one: log sum exp(similarity / `softness`) over all
    examples of a class. Where another class leads by soft votes than by votes, the logit of the class that the votes
    chose is lifted above the others by a constant. So the prediction is that of the votes, and the loss that attacks
    maximise is smooth.

    The bank is compared in blocks: no matrix of the size images x bank is kept, nor is one for the backward pass. The
    bank is a buffer, saved with the weights. `fit` fills it, and `encode_bank` does so for a model.

    Args:
        num_classes: Number of classes C.
        k: Number of neighbours that vote.
        vote: "uniform", one vote each (`k` 75 in self-supervised adversarial training); or "weighted" by exp(similarity
            / `temperature`) (`k` 200 and temperature 0.07 in NPID).
        temperature: Temperature of weighted votes.
        softness: Temperature of the soft votes.

    Raises:
        UserError: If `k` is less than 1, a temperature is not above 0, or `vote` is unknown; when called, if the bank
            is empty.

    References:
        Self-supervised adversarial training: https://arxiv.org/abs/1911.06470.
        NPID: https://arxiv.org/abs/1805.01978.
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
                f"k = {k}, temperature = {temperature:g} and softness = {softness:g} are given: k must be at least 1, "
                "and the others above 0"
            )
        need_one_of("vote", vote, get_args(Vote))
        self.num_classes, self.k, self.vote = num_classes, k, vote
        self.temperature, self.softness = temperature, softness
        self.register_buffer("rows", torch.zeros(0, 0))
        self.register_buffer("starts", torch.zeros(num_classes + 1, dtype=torch.long))

    def fit(self, features: Tensor, y: Tensor) -> None:
        """Replace the bank, ordered by class.

        Args:
            features: Features `[N, F]`.
            y: Labels `[N]`.

        Raises:
            UserError: If there are fewer than `k` examples, a label is not a class of the model, a class has no
                example, or a feature is not finite.
        """
        if len(features) < self.k:
            raise UserError(
                f"k = {self.k} nearest neighbours need as many examples, but the bank has {len(features)}: take a "
                "smaller k, or a larger bank"
            )
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= self.num_classes:
            raise UserError(
                f"the bank has labels {low} to {high}, but the model knows the classes 0 to {self.num_classes - 1}: "
                "they come from another data set"
            )
        counts = torch.bincount(y, minlength=self.num_classes)
        if not bool(counts.all()):
            empty = int((counts == 0).nonzero()[0])
            raise UserError(
                f"the bank has no example of class {empty}, so this class could never be predicted: add one"
            )
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
            # recomputed in the backward pass, so that the scores are not kept
            each: list[Any] = [checkpoint(block, z, i, j, use_reentrant=False) for i, j in _blocks(a, b)]
            return torch.stack(each).logsumexp(0)

        return torch.stack([of_class(a, b) for a, b in classes], 1)

    @torch.no_grad()
    def votes(self, features: Tensor) -> Tensor:
        """Votes of each class, `[B, C]`: the number of its neighbours, or the sum of their weights."""
        similar, where = self.nearest(features, self.k)
        y = torch.bucketize(where, self.starts[1:], right=True)
        weight = torch.ones_like(similar)
        if self.vote == "weighted":
            weight = ((similar - similar[:, :1]) / self.temperature).exp()
        if similar.device.type == "cpu":
            return similar.new_zeros(len(similar), self.num_classes).scatter_add_(1, y, weight)
        # on a GPU, scatter_add_ adds in the order in which threads end, and a vote may be decided by the last bit
        chosen = y[:, :, None] == torch.arange(self.num_classes, device=y.device)
        return (weight[:, :, None] * chosen).sum(1)

    @torch.no_grad()
    def nearest(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the nearest examples, ordered by decreasing similarity.

        Args:
            features: Features `[B, F]`.
            k: Number of examples; at most as many as the bank has are found.

        Returns:
            Cosine similarities `[B, k]`, and places in the bank `[B, k]`.
        """
        z = self.normalized(features)
        best = torch.empty(len(z), 0, dtype=torch.long, device=z.device)
        for a, b in _blocks(0, len(self.rows)):
            best = torch.cat([best, _top((z @ self.rows[a:b].T).float(), a, k)], 1)
            best = best.topk(min(k, best.shape[1])).values
        return _unkeyed(best)

    @property
    def labels(self) -> Tensor:
        """Labels of the rows of the bank, `[N]`."""
        return torch.bucketize(torch.arange(len(self.rows), device=self.rows.device), self.starts[1:], right=True)

    @property
    def spread(self) -> float:
        """Mean squared distance of the rows from their mean: 1 for rows in all directions, 0 for equal rows."""
        return 1 - float(self.rows.mean(0).square().sum())

    @property
    def bounds(self) -> list[int]:
        """First place of each class in the bank, and the size of the bank at the end."""
        return [int(start) for start in self.starts.tolist()]

    def normalized(self, features: Tensor) -> Tensor:
        """Features scaled to length 1, in the precision of the bank."""
        if not len(self.rows):
            raise UserError(
                "the bank of the nearest neighbours is empty: fill it by sparring.models.encode_bank(model, data)"
            )
        return F.normalize(features.flatten(1).to(self.rows.dtype), dim=1)

    def refresh(self, model: nn.Module, data: LabelledData, batch_size: int = 512) -> None:
        """Fill the bank with the features of `data` that the model gives in eval mode."""
        assert isinstance(model, Classifier)
        with eval_mode(model):
            self.fit(encode(model.features, data, batch_size), data.y)

    def metrics(self) -> dict[str, float]:
        return {"spread": self.spread}

    def alarm(self) -> str | None:
        if self.spread >= COLLAPSED:
            return None
        return (
            f"the features of all images are alike (spread {self.spread:.2g}, where 1 means all directions): the "
            "representation has collapsed. Use larger batches or a lower learning rate, or a contrast with other images"
        )

    def describe(self) -> str:
        return (
            f"{len(self.rows):,} training images are the bank of {self.k} nearest neighbours, encoded anew after each "
            "epoch: not counted"
        )

    def _put(self, name: str, values: Tensor) -> None:
        """Write in place if the shape fits, so that copies which share the bank are updated."""
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
    """Keys of the `k` greatest similarities in each row, for a block that begins at place `first`."""
    place = torch.arange(first, first + similar.shape[1], device=similar.device)
    if k >= similar.shape[1]:
        return _keys(similar, place)
    values, where = similar.topk(k + 1)
    keys = _keys(values[:, :k], where[:, :k] + first)
    tied = (values[:, k] == values[:, k - 1]).nonzero()[:, 0]  # among equal values, topk picks arbitrary places
    if len(tied):
        keys[tied] = _keys(similar[tied], place).topk(k).values
    return keys


def _keys(similar: Tensor, place: Tensor) -> Tensor:
    """Integers that order by similarity, and by place where similarities are equal: the first place is the greatest.

    The upper half holds the bits of a float32, whose order is that of integers except for the sign.
    """
    bits = (similar + 0.0).view(torch.int32)  # -0 becomes 0
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (bits << 32) + (_PLACES - place)


_PLACES = 0xFFFFFFFF


def _unkeyed(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities and places of keys, the inverse of `_keys`."""
    bits, place = keys >> 32, _PLACES - (keys & _PLACES)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).int()
    return bits.view(torch.float32), place


def knn_head(model: nn.Module) -> KNN | None:
    """Return the kNN head of a model.

    Args:
        model: Any model.

    Returns:
        The head, or None if the model has another one.
    """
    head = model.head if isinstance(model, Classifier) else None
    return head if isinstance(head, KNN) else None


def require_knn_head(model: nn.Module) -> KNN:
    """Return the kNN head of a model; raise `UserError` if it has another head."""
    head = knn_head(model)
    if head is None:
        raise UserError(
            f"nearest neighbours need a kNN head, but this is a {type(model).__name__} with another head: build it "
            "with sparring.models.amdim or contrastive_encoder, or put KNN on its body, as Classifier(body, KNN(..))"
        )
    return head


def encode(features: Forward, data: LabelledData, batch_size: int = 512) -> Tensor:
    """Compute the features of images without augmentation and without gradient.

    Args:
        features: Function from images `[B, C, H, W]` in [0, 1] to features `[B, F]`.
        data: The images.
        batch_size: Number of images at a time.

    Returns:
        Features `[N, F]`.

    Raises:
        UserError: If there are no images.
    """
    if not len(data):
        raise UserError(
            "there are no images to encode: in a loop of your own, give the training set to "
            "State.start(method, model, optimizer, data)"
        )
    with torch.no_grad():
        parts = [features(pixels(data[i : i + batch_size].x)) for i in range(0, len(data), batch_size)]
    return torch.cat(parts)


def encode_bank(model: nn.Module, data: LabelledData, batch_size: int = 512) -> None:
    """Fill the bank of a model's kNN head with the features of `data`, computed in eval mode.

    Args:
        model: A classifier with a kNN head.
        data: Images and labels.
        batch_size: Number of images at a time.

    Raises:
        UserError: If the model has another head, or the features or labels cannot be a bank (`KNN.fit`).
    """
    require_knn_head(model).refresh(model, data, batch_size)
