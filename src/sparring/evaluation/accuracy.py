"""Robust accuracy of a model, with one result per example."""

import math
import re
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..acceleration import AcceleratedCopy
from ..core.errors import UserError, need_seed, need_whole
from ..core.gate import FEW, alone, answer, check_model, check_precision, switched_to_eval
from ..core.modes import frozen, full_precision
from ..core.rng import draws_kept
from ..core.types import Attack, AttackBackend, LabelledData, TensorData, Threat, pixels
from ..core.validation import check_images, refuse_probabilities
from ..data.given import evaluation_data
from ..models.classifier import normalized
from ..records.notes import LOST_UNDER, lost_notes, square_notes
from ..records.results import Array, EvaluationResult, Examples
from .adversaries import Adversary, checked_index
from .examples import EvaluationData, check_source, shard_of
from .gallery import gallery_of
from .journal import PartStore, fingerprint
from .minimum_norm import MinimumNorm
from .named import adversaries_of, within_of
from .runner import CLEAN, AttackPlan, AttackRecord, Cascade, EvaluationContext, OnProgress, Run, needs_fine
from .verifier import MutationCheck, Verdict, Verifier, flat_gradients, oddities


def evaluate(
    model: nn.Module,
    data: Any,
    adversaries: Mapping[str, Adversary | Cascade | Attack] | Adversary | Cascade | Attack | str | Sequence[str],
    *,
    eps: float | str | None = None,
    threat: Threat | str | None = None,
    normalize: tuple[float | Sequence[float], float | Sequence[float]] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    shard: tuple[int, int] | None = None,
    keep_images: bool = False,
    examine: bool = True,
    corrupted: Mapping[str, LabelledData] = types.MappingProxyType({}),
    state: Path | str | None = None,
    backend: AttackBackend | None = None,
    on_progress: OnProgress = lambda news: None,
) -> EvaluationResult:
    """Evaluate which examples the model gets right, on clean images and under each adversary.

    It works for any model that gives logits. An example that the clean model gets wrong counts as broken and is not
    attacked; an attack cannot put it right. An adversarial example counts only if the model, in its own precision, is
    wrong on it again, and if it lies inside the ball and [0, 1]. Logits that are not finite count as wrong and are
    reported in the notes.

    The random numbers of an example depend on `seed` and on its `index` alone, so that batch size, order and sharding
    change only the last bits of the model's arithmetic.

    Attacks run on the model that `backend` gives, by default an accelerated copy, which is faster and rounds
    differently. In L2 and L1 and for smallest distances, where rounding was seen to matter, the copy is in float32.
    Where the copy is fooled and the model is not, the attack runs again on the model.

    Args:
        model: Any module that maps images `[B, C, H, W]` in [0, 1] to logits `[B, K]`.
        data: Images in [0, 1] (or bytes) with labels: `(images, labels)` as arrays or tensors, a `Dataset` or
            `DataLoader`, labelled data of this package; or the test part of a pair (training data, test data), of a
            source, or of a name such as "npz:FILE" or "folder:DIR". Images in files, as of `ImageStream` or a
            `Dataset`, are read batch by batch, and at most a few batches are in memory at once.
        adversaries: Adversaries, cascades or attacks by their names in the result, or a single one. A bare attack sees
            the model: it is taken as `WhiteBox(attack)`. With `eps` or `threat` also a name, or several: `autoattack`,
            `pgd`, `fgsm`, `apgd`, `square`, `min-norm`, ...
        eps: Radius in Linf of attacks that are given by name, for pixels in [0, 1], as 0.03 or "8/255".
        threat: The set of attacks that are given by name, if it is not Linf: `L2(0.5)` or "l2:0.5".
        normalize: Mean and standard deviation of each channel, if the model expects normalised images.
        batch_size: Number of images that the model sees at once; None for 256, and on CUDA 1,024 if they have at most
            64x64 pixels. Compiled, an attack holds four batches, so that rows of finished examples can be refilled.
        seed: Seed of the random numbers.
        index: int64 `[N]`, the number of each example for its random numbers; by default its place in `data`.
        shard: Evaluate one part of the examples: (2, 8) is the second of eight, of the rows 1, 9, 17, ... The results
            of all parts, evaluated in any order and on any machines, become one by
            `sparring.records.merge_evaluations`.
        keep_images: Whether the result holds the adversarial images of broken examples, all of them in memory.
        examine: Whether the model is examined on one batch (does autograd run inside it, are its answers random or
            dependent on the batch, are gradients zero or not finite, does PGD at eps 0 change verdicts?) and a few
            examples are kept in `gallery`. An evaluation that is repeated, as after each epoch of a training, may leave
            this out after the first time: verdicts are the same. With a `state` the model is examined in any case.
        corrupted: Other versions of the same images, each with the rows of `data`, by names such as "fog-3": the model
            is run on them without an attack.
        state: Folder to which results are written as they come; after a crash, the same call continues from it.
        backend: Gives the model that attacks run on; by default `AcceleratedCopy()`.
        on_progress: Called with an `EvaluationProgress` after each batch and at the end of each stage.

    Returns:
        The result for each example and adversary, with the notes that a reader has to know.

    Raises:
        UserError: For images outside [0, 1], wrong labels, probabilities instead of logits, a model that changes itself
            in forward, weights that are neither float32 nor float64, more than one `MinimumNorm`, a name that no
            adversary can have, an attack that gives NaN, a `state` of another evaluation, or a shard that has no
            example or does not exist.
    """
    check_model(model)
    source = evaluation_data(data, "evaluation")
    check_source(source)
    if normalize is not None:
        model = normalized(model, *normalize, source.shape[0])
    source = with_classes_of(model, source)
    if batch_size is not None:
        need_whole("batch_size", batch_size)
    need_seed(seed)
    _check_corrupted(corrupted, source)
    index = checked_index(index, len(source), torch.device("cpu"))
    part = shard_of(shard, len(source))
    known = adversaries_of(adversaries, within_of(eps, threat))
    chains = [AttackPlan.of(name, adversary, len(source.classes)) for name, adversary in known.items()]
    if sum(chain.nearest is not None for chain in chains) > 1:
        raise UserError(
            "smallest distances can be found in one norm at a time: leave out all MinimumNorm adversaries but one"
        )
    judge = Verifier(model, max((chain.draws for chain in chains), default=1))
    backend, like = backend or AcceleratedCopy(), _like(model, source)
    batch_size = batch_size or _batch_size(source.shape, like.device)
    examples = EvaluationData.read_once(source, index, part, batch_size)
    settings = _settings(model, known, seed, backend.describe(like.device))
    journal = None if state is None else PartStore(Path(state), _about(settings, examples, known), examples.shape)
    few = pixels(examples[:FEW].x).to(like)
    with alone(model), _enough_memory(batch_size), full_precision(), switched_to_eval(model), frozen(model):
        unaltered = MutationCheck(model)
        answer(model, few)
        unaltered.check()
        exact = any(needs_fine(each) for chain in chains for each in chain.stages.values())
        in_float32 = backend.in_float32() if exact else backend
        with backend(model, few) as attacked, in_float32(model, few) if exact else nullcontext(attacked) as fine:
            setting = EvaluationContext(
                judge=judge,
                attacked=attacked,
                attacked_fp32=fine,
                unaltered=unaltered,
                data=examples,
                like=like,
                batch_size=batch_size,
                seed=seed,
                journal=journal,
                on_progress=on_progress,
                keep_images=keep_images,
                backend=backend,
            )
            clean, oddities = _clean(setting, examine or journal is not None)
            if journal is not None and judge.draws == 1 and not any("randomised" in note for note in oddities):
                journal.same_answers(clean.predicted.numpy(), clean.margin.numpy())
            work = sum(chain.work * int(clean.right.sum()) for chain in chains)
            run = Run(setting, clean, work, known=all(chain.known for chain in chains))
            books = {chain.name: (chain, run.through(chain)) for chain in chains}
            right = {name: _right(setting, other) for name, other in corrupted.items()}
            flat: list[str] = []
            if examine and chains:
                with draws_kept(like.device):
                    flat = flat_gradients(model, *setting.batch(slice(batch_size)))
        found = _assembled(setting, clean, books)
        seconds = {stage: each for stage, each in run.seconds.items() if not math.isnan(each)}
        found = replace(found, settings=settings, shard=part, passes=_passes(books), seconds=seconds, corrupted=right)
        if examine:
            with draws_kept(like.device):
                found = replace(found, gallery=gallery_of(setting, found, books))
    lost = [*lost_notes(found), *_lost_at_smallest_norms(books, clean)]
    for note in (*lost, *oddities):
        warnings.warn(note, stacklevel=2)
    notes = (*lost, *square_notes(found), *oddities, *flat, *run.notes, *(n for chain in chains for n in chain.notes))
    return replace(found, notes=tuple(dict.fromkeys((*notes, *backend.notes(model), *in_float32.notes(model)))))


def with_classes_of(model: nn.Module, data: LabelledData) -> LabelledData:
    """Returns images in memory with the number of classes of the model, if their classes have no names.

    Args:
        model: The model.
        data: The images.

    Returns:
        The images; those with names of classes, or in files, as they were.
    """
    if not isinstance(data, TensorData) or data.classes != tuple(map(str, range(len(data.classes)))):
        return data
    with alone(model), switched_to_eval(model):
        logits = answer(model, pixels(data.x[:FEW]).to(_like(model, data)))
    count = logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else 0
    return replace(data, classes=tuple(map(str, range(count)))) if count > len(data.classes) else data


def _like(model: nn.Module, data: LabelledData) -> Tensor:
    """An empty tensor on the model's device, of the type of its weights."""
    weights = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weights is None:
        return torch.empty(0, device=data.y.device)
    check_precision(weights)
    return torch.empty(0, device=weights.device, dtype=weights.dtype)


def _batch_size(shape: tuple[int, int, int], device: torch.device) -> int:
    """A GPU takes about as long to launch a small batch as to compute it."""
    return 1024 if device.type == "cuda" and shape[1] * shape[2] <= 64 * 64 else 256


@contextmanager
def _enough_memory(batch_size: int) -> Iterator[None]:
    """Say what to set if the device runs out of memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the device has not enough memory to attack {batch_size} images at once: give a smaller batch size, "
            f"{max(1, batch_size // 2)} for example"
        ) from error


def _check_corrupted(corrupted: Mapping[str, LabelledData], source: LabelledData) -> None:
    for name, other in corrupted.items():
        if len(other) != len(source) or other.shape != source.shape:
            raise UserError(
                f"the corrupted images {name} are {len(other):,} of shape {other.shape}, and there are "
                f"{len(source):,} images of shape {source.shape}: give a corrupted version of each, in their order"
            )


def _right(setting: EvaluationContext, other: LabelledData) -> Array:
    """Return whether the model is right on another version of each image, bools `[N]`."""
    data = replace(setting.data, source=other)
    found = []
    for rows in torch.arange(len(data)).split(setting.batch_size):
        x = data[rows].x
        check_images(x, "corrupted images", bytes_too=True)
        found.append(setting.judge(pixels(x).to(setting.like), data.label[rows].to(setting.like.device)).right.cpu())
    return torch.cat(found).numpy()


def _settings(
    model: nn.Module, adversaries: Mapping[str, Adversary | Cascade], seed: int, search: str
) -> dict[str, str]:
    """Return the settings on which verdicts depend besides the images; they are the same in every process."""
    own = {f"adversary {name}": _ADDRESS.sub("", repr(adversary)) for name, adversary in adversaries.items()}
    return {"model": fingerprint(model.state_dict()), **own, "seed": str(seed), "search": search}


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def _about(
    settings: Mapping[str, str], examples: EvaluationData, adversaries: Mapping[str, Adversary | Cascade]
) -> dict[str, object]:
    """The identity of an evaluation, so that a saved state can be matched."""
    return {
        "model": settings["model"],
        "images": fingerprint({"hash": torch.from_numpy(examples.image_hash), "index": examples.index}),
        "adversaries": {name: repr(adversary) for name, adversary in adversaries.items()},
        "seed": int(settings["seed"]),
        "search": settings["search"],
    }


def _clean(setting: EvaluationContext, examine: bool) -> tuple[Verdict, list[str]]:
    """Return the verdict on the clean images, and notes on oddities of the model if it is examined."""
    judge, data, size = setting.judge, setting.data, setting.batch_size
    verdicts: list[Verdict] = []
    notes: list[str] = []
    for start in range(0, len(data), size):
        x, y = setting.batch(slice(start, start + size))
        verdicts.append(judge(x, y, len(data.classes)))
        if not start:
            setting.unaltered.check()
            if examine:
                with draws_kept(setting.like.device):
                    notes = oddities(judge, x, y, verdicts[0].right)
                setting.unaltered.check()
    clean = Verdict(*(torch.cat(part).cpu() for part in zip(*verdicts, strict=True)))
    if bool(clean.probable.all()):
        refuse_probabilities()
    return clean, notes


Books: TypeAlias = Mapping[str, tuple[AttackPlan, AttackRecord]]


def _lost_at_smallest_norms(books: Books, clean: Verdict) -> list[str]:
    """Notes on logits that are not finite under minimum-norm attacks, whose margins are not in the result."""
    lost = {
        name: int(((book.predicted < 0) & clean.right).sum())
        for name, (chain, book) in books.items()
        if chain.nearest is not None
    }
    return [LOST_UNDER.format(count, name) for name, count in lost.items() if count]


def _assembled(setting: EvaluationContext, clean: Verdict, books: Books) -> EvaluationResult:
    data = setting.data
    robust, margin = {"clean": clean.right.numpy()}, {"clean": clean.margin.float().numpy()}
    norm, images, distance, hardest, last = {}, {}, None, None, None
    predicted = {"clean": clean.predicted.numpy()}
    for name, (chain, book) in books.items():
        if chain.nearest is not None:
            distance, hardest = _distances(chain.nearest, book, books), _shown(book, data, clean)
            continue
        last = book
        for stage, row in enumerate(chain.stages, 1):
            robust[row] = book.robust(stage).numpy()
        robust[name] = book.robust().numpy()
        margin[name], norm[name] = book.margin.numpy(), book.norm.numpy()
        predicted[name] = book.predicted.numpy()
        if setting.keep_images:
            images[name] = _with_clean(book, data, setting.batch_size)
    return EvaluationResult(
        robust,
        data.label.numpy(),
        data.classes,
        margin,
        norm,
        data.index.numpy(),
        distance,
        images,
        about={name: repr(_measured(chain)) for name, (chain, _) in books.items()},
        examples=None if last is None else _shown(last, data, clean),
        hardest=hardest,
        predicted=predicted,
        image_hash=data.image_hash,
        calibration=dict(zip(_CALIBRATION, clean.calibration.numpy().T, strict=True)),
    )


_CALIBRATION = ("confidence", "nll", "brier")


def _measured(chain: AttackPlan) -> Threat | None:
    """Return the set that all points are in, or in whose norm smallest distances are measured."""
    return chain.threat() if chain.nearest is None else chain.nearest.threat


def _passes(books: Books) -> dict[str, float]:
    """Passes of each stage of the adversaries whose stages all state them."""
    known = [chain for chain, _ in books.values() if chain.known]
    return {stage: cost for chain in known for stage, cost in zip(chain.stages, chain.costs, strict=True)}


def _distances(nearest: MinimumNorm, book: AttackRecord, books: Books) -> Array:
    """The smallest eps that any attack found: 0 where the clean image is misclassified, inf where none was found."""
    distance = book.norm.nan_to_num(nan=math.inf)
    for chain, other in books.values():
        threat = chain.threat()
        if chain.nearest is None and type(threat) is type(nearest.threat) and threat is not None:
            norm = other.norm.clamp(max=threat.eps)  # it may exceed eps by rounding
            distance = torch.minimum(distance, norm.nan_to_num(nan=math.inf))
    return distance.masked_fill(book.broken_by == CLEAN, 0.0).numpy()


def _with_clean(book: AttackRecord, data: EvaluationData, batch_size: int) -> Array:
    """Adversarial images of the broken examples, and clean images of all others, `[N, C, H, W]`."""
    images = torch.cat([pixels(data[rows].x.cpu()) for rows in torch.arange(len(data)).split(batch_size)])
    for row, image in book.images.items():
        images[row] = image
    return images.numpy()


def _shown(book: AttackRecord, data: EvaluationData, clean: Verdict) -> Examples | None:
    """The images that a record keeps to be shown."""
    if not book.images:
        return None
    rows = torch.tensor(book.shown())
    adversarial = torch.stack([book.images[row] for row in rows.tolist()])
    facts = (data.label[rows], clean.predicted[rows], book.predicted[rows], book.norm[rows], data.index[rows])
    arrays = (pixels(data[rows].x.cpu()), adversarial, *facts)
    return Examples(*(part.numpy() for part in arrays))
