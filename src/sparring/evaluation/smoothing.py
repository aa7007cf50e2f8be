"""Randomized smoothing: the class that a model predicts most often under Gaussian noise, and within which radius."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import UserError, need_seed, need_whole
from ..core.gate import FEW, alone, as_taken, check_model, check_taken
from ..core.modes import eval_mode, frozen, full_precision
from ..core.reading import check_arrays, load_arrays
from ..core.rng import PerExample, mixed_seed, normal
from ..core.types import Forward, pixels
from ..core.validation import check_logits
from ..data.given import evaluation_data
from ..models.classifier import normalized
from ..records.certification import Certification
from ..records.results import Array
from .accuracy import with_classes_of
from .adversaries import checked_index
from .examples import EvaluationData, check_source, shard_of
from .journal import Journal, fingerprint
from .verifier import MutationCheck

OnCertified: TypeAlias = Callable[[int, int], None]  # number of examples that are done, and of all
_PASSES = 10_000
"""Forward passes after which what was found is kept; a kill loses as many."""
_STAGE = "certified"
_COPY = 40  # bits for the numbers of examples in a stream


@dataclass(frozen=True, slots=True)
class Smoothed:
    """A smoothed classifier: the class that a model predicts most often for noisy copies of an image.

    Args:
        model: Gives logits `[B, K]` for images `[B, C, H, W]`; noise takes their pixels out of [0, 1].
        sigma: Standard deviation of the Gaussian noise, in pixel units.

    Raises:
        UserError: If `sigma` is not a finite number above 0.

    References:
        Randomized smoothing: https://arxiv.org/abs/1902.02918.
    """

    model: Forward
    sigma: float

    def __post_init__(self) -> None:
        if not isinstance(self.sigma, Real) or not 0 < self.sigma < math.inf:
            raise UserError(f"sigma = {self.sigma!r} of the noise is not a finite number above 0, such as 0.25")

    @torch.no_grad()
    def votes(self, x: Tensor, index: Tensor, copies: range, *, classes: int, seed: int, batch_size: int) -> Tensor:
        """Count the classes that noisy copies of images are predicted as.

        The noise of a copy depends on the seed, the index of its image and its number alone. A copy whose logits are
        not finite has no class.

        Args:
            x: Images `[B, C, H, W]`.
            index: Number of each image for its random numbers, `[B]` (int64).
            copies: Numbers of the copies.
            classes: Number of classes, K.
            seed: Seed of the random numbers.
            batch_size: Number of copies that pass through the model at once.

        Returns:
            The counts, `[B, K]` (int64).
        """
        counts = torch.zeros(len(x) * (classes + 1), dtype=torch.int64, device=x.device)
        pairs = torch.arange(len(x) * len(copies), device=x.device)
        for some in pairs.split(batch_size):
            image, copy = some // len(copies), copies.start + some % len(copies)
            rng = PerExample(seed, index[image] + (copy << _COPY))
            out = self.model(x[image] + self.sigma * normal(x[image], rng))
            predicted = out.argmax(1).masked_fill(~out.isfinite().all(1), classes)
            counts += torch.bincount(image * (classes + 1) + predicted, minlength=len(counts))
        return counts.view(len(x), classes + 1)[:, :classes]


class CertifiedPart(NamedTuple):
    """The votes of some examples: their rows, the class chosen, and the number of votes for it, each `[B]`."""

    rows: Array
    chosen: Array
    votes: Array


class CertifiedParts(Journal[CertifiedPart]):
    """The parts of a certification."""

    def read(self, content: bytes) -> CertifiedPart:
        held = load_arrays(io.BytesIO(content), *CertifiedPart._fields)
        check_arrays(held, len(held["rows"]), dict.fromkeys(CertifiedPart._fields, "int64"))
        if (held["rows"] < 0).any() or (held["rows"] >= self._images[0]).any():
            raise ValueError("its rows are out of range")
        return CertifiedPart(*(held[name] for name in CertifiedPart._fields))


def certify(
    model: nn.Module,
    data: Any,
    sigma: float,
    *,
    samples: int = 100_000,
    selection: int = 100,
    alpha: float = 0.001,
    normalize: tuple[float | Sequence[float], float | Sequence[float]] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    shard: tuple[int, int] | None = None,
    state: Path | str | None = None,
    on_progress: OnCertified = lambda done, todo: None,
) -> Certification:
    """Certify in L2, by randomized smoothing: `certify(model, data, sigma=0.25)`.

    The class of an image is the one that most of `selection` noisy copies are predicted as. `samples` other copies
    bound the share of that class from below, which gives the radius; where the bound is below a half, the smoothed
    classifier abstains. The certificate holds for the smoothed classifier, not for the model itself, and its noise
    should be that of the training.

    Args:
        model: Any module that maps images `[B, C, H, W]` to logits `[B, K]`; it runs in float32 or float64.
        data: Images in [0, 1] with labels, as `evaluate` takes them.
        sigma: Standard deviation of the Gaussian noise, in pixel units.
        samples: Number of copies that bound the share of the class.
        selection: Number of copies that choose the class.
        alpha: Probability with which a certificate may be wrong, in (0, 0.5).
        normalize: Mean and standard deviation of each channel, if the model expects normalised images.
        batch_size: Number of copies that pass through the model at once; None for 256, and on CUDA 1,024.
        seed: Seed of the random numbers.
        index: int64 `[N]`, the number of each example for its random numbers; by default its place in `data`.
        shard: Certify one part of the examples, as in `evaluate`; `sparring.records.merge_certifications` joins them.
        state: Folder to which results are written as they come; after a crash, the same call continues from it.
        on_progress: Called with the number of examples that are done, and of all.

    Returns:
        The class and the certified radius of each example, abstentions, and certified accuracy at any radius.

    Raises:
        UserError: If a number is out of its range; and for models, images and labels as in `evaluate`.

    References:
        Randomized smoothing: https://arxiv.org/abs/1902.02918.
    """
    smoothed = Smoothed(model, sigma)
    _check(samples, selection, alpha, seed)
    check_model(model)
    source = evaluation_data(data, "certification")
    check_source(source)
    if normalize is not None:
        smoothed = Smoothed(model := normalized(model, *normalize, source.shape[0]), sigma)
    source = with_classes_of(model, source)
    index = checked_index(index, len(source), torch.device("cpu"))
    few = as_taken(model, source[:FEW].x)
    if batch_size is None:
        batch_size = 1024 if few.is_cuda else 256
    need_whole("batch_size", batch_size)
    examples = EvaluationData.read_once(source, index, part := shard_of(shard, len(source)), batch_size)
    settings = {
        "model": fingerprint(model.state_dict()),
        "certified": f"sigma {sigma:.15g}, {selection} and {samples} samples, seed {seed}",
    }
    about = {
        **settings,
        "images": fingerprint({"hash": torch.from_numpy(examples.image_hash), "index": examples.index}),
    }
    journal = None if state is None else CertifiedParts(Path(state), about, examples.shape)
    chosen, votes = (np.zeros(len(examples), np.int64) for _ in range(2))
    with (
        alone(model),
        full_precision(),
        eval_mode(model),
        frozen(model),
        torch.autocast(few.device.type, enabled=False),
    ):
        unaltered = MutationCheck(model)
        out = check_taken(model, few)
        check_logits(out, len(few), highest=int(examples.label.max()))
        if journal is not None and torch.equal(out, check_taken(model, few)):  # a random model has no answers to keep
            journal.same_answers(out.argmax(1).cpu().numpy(), (out.amax(1) - out.amin(1)).cpu().numpy())
        how = _Votes(smoothed, examples, few[:0], out.shape[1], selection, samples, seed, batch_size)
        for found in how.parts(journal, on_progress):
            chosen[found.rows], votes[found.rows] = found.chosen, found.votes
        unaltered.check()
    return Certification(
        chosen,
        votes,
        samples,
        sigma,
        alpha,
        examples.label.numpy(),
        examples.classes,
        examples.index.numpy(),
        examples.image_hash,
        settings,
        part,
    )


def _check(samples: int, selection: int, alpha: float, seed: int) -> None:
    need_whole("samples", samples)
    need_whole("selection", selection)
    need_seed(seed)
    if not 0 < alpha < 0.5:
        raise UserError(f"alpha = {alpha:g} is not in (0, 0.5): it is the probability of a wrong certificate, as 0.001")


@dataclass(frozen=True, slots=True)
class _Votes:
    """Counts the votes on examples, a few examples at a time."""

    smoothed: Smoothed
    examples: EvaluationData
    like: Tensor
    classes: int
    selection: int
    samples: int
    seed: int
    batch_size: int

    def parts(self, journal: CertifiedParts | None, on_progress: OnCertified) -> Iterator[CertifiedPart]:
        """Yield what the journal holds, and then what is found on the other examples, which is added to it."""
        todo = torch.arange(len(self.examples))
        for part in () if journal is None else journal.parts(_STAGE):
            yield part
            todo = todo[~torch.isin(todo, torch.from_numpy(part.rows))]
        done = len(self.examples) - len(todo)
        for rows in todo.split(max(1, _PASSES // (self.selection + self.samples))) if len(todo) else ():
            part = self.of(rows)
            if journal is not None:
                journal.add(_STAGE, part)
            yield part
            done += len(rows)
            on_progress(done, len(self.examples))

    def of(self, rows: Tensor) -> CertifiedPart:
        """Return the votes on some examples, all of which pass through the model together."""
        x, index = pixels(self.examples[rows].x).to(self.like), self.examples.index[rows].to(self.like.device)
        how: dict[str, int] = {"classes": self.classes, "seed": mixed_seed(self.seed, _STAGE)}
        first, last = self.selection, self.selection + self.samples
        chosen = self.smoothed.votes(x, index, range(first), batch_size=self.batch_size, **how).argmax(1)
        votes = self.smoothed.votes(x, index, range(first, last), batch_size=self.batch_size, **how)
        of_chosen = votes.gather(1, chosen[:, None])[:, 0]
        return CertifiedPart(*(each.cpu().numpy() for each in (rows, chosen, of_chosen)))
