"""Robust accuracy of a model, with one result per example."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..acceleration import AcceleratedCopy
from ..core.errors import UserError, need_seed, need_whole
from ..core.gate import FEW, alone, answer, check_model, switched_to_eval
from ..core.modes import frozen, full_precision
from ..core.types import Attack, AttackBackend, TensorData, Threat, pixels
from ..core.validation import check_data, refuse_probabilities
from ..data.given import evaluation_data
from ..models.classifier import normalized
from ..records.results import Array, EvaluationResult, Examples
from .adversaries import Adversary, checked_index
from .journal import PartStore, fingerprint
from .minimum_norm import MinimumNorm
from .named import adversaries_of, within_of
from .runner import CLEAN, PICTURES, AttackPlan, AttackRecord, Cascade, EvaluationContext, OnProgress, Run, needs_fine
from .verifier import MutationCheck, Verdict, Verifier, flat_gradients, oddities


def evaluate(
    model: nn.Module,
    data: Any,
    adversaries: Mapping[str, Adversary | Cascade | Attack] | Adversary | Cascade | Attack | str | Sequence[str],
    *,
    eps: float | str | None = None,
    threat: Threat | str | None = None,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    keep_images: bool = False,
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
            source, or of a name such as "npz:FILE" or "folder:DIR". All of them are brought into memory.
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
        keep_images: Whether the result holds the adversarial images of broken examples.
        state: Folder to which results are written as they come; after a crash, the same call continues from it.
        backend: Gives the model that attacks run on; by default `AcceleratedCopy()`.
        on_progress: Called with an `EvaluationProgress` after each batch and at the end of each stage.

    Returns:
        The result for each example and adversary, with the notes that a reader has to know.

    Raises:
        UserError: For images outside [0, 1], wrong labels, probabilities instead of logits, a model that changes itself
            in forward, weights that are neither float32 nor float64, more than one `MinimumNorm`, a name that no
            adversary can have, an attack that gives NaN, or a `state` of another evaluation.
    """
    check_model(model)
    if normalize is not None:
        model = normalized(model, *normalize)
    data = evaluation_data(data, "evaluation")[:]
    check_data(data, "evaluation")
    if batch_size is not None:
        need_whole("batch_size", batch_size)
    need_seed(seed)
    data = TensorData(data.x.detach(), data.y, data.classes)
    index = checked_index(index, len(data), data.x.device)
    known = adversaries_of(adversaries, within_of(eps, threat))
    chains = [AttackPlan.of(name, adversary, len(data.classes)) for name, adversary in known.items()]
    if sum(chain.nearest is not None for chain in chains) > 1:
        raise UserError(
            "smallest distances can be found in one norm at a time: leave out all MinimumNorm adversaries but one"
        )
    judge = Verifier(model, max((chain.draws for chain in chains), default=1))
    backend, like = backend or AcceleratedCopy(), _like(model, data)
    about = {**_about(model, data, index, known, seed), "search": backend.describe(like.device)}
    journal = None if state is None else PartStore(Path(state), about, data.x.shape)
    few = pixels(data.x[:FEW]).to(like)
    batch_size = batch_size or _batch_size(data.shape, like.device)
    with alone(model), _enough_memory(batch_size), full_precision(), switched_to_eval(model), frozen(model):
        unaltered = MutationCheck(model)
        answer(model, few)
        unaltered.check()
        exact = any(needs_fine(each) for chain in chains for each in chain.stages.values())
        in_float32 = backend.in_float32() if exact else backend
        with backend(model, few) as attacked, in_float32(model, few) as attacked_fp32:
            setting = EvaluationContext(
                judge=judge,
                attacked=attacked,
                attacked_fp32=attacked_fp32,
                unaltered=unaltered,
                data=data,
                index=index,
                like=like,
                batch_size=batch_size,
                seed=seed,
                journal=journal,
                on_progress=on_progress,
                keep_images=keep_images,
                backend=backend,
            )
            clean, notes = _clean(setting)
            if journal is not None and judge.draws == 1 and not any("randomised" in note for note in notes):
                journal.same_answers(clean.predicted.numpy(), clean.margin.numpy())
            work = sum(chain.work * int(clean.right.sum()) for chain in chains)
            run = Run(setting, clean, work, known=all(chain.known for chain in chains))
            books = {chain.name: (chain, run.through(chain)) for chain in chains}
            flat = flat_gradients(model, *setting.batch(slice(batch_size))) if chains else []
    notes += [note for chain, book in books.values() for note in _lost_under(chain, book, clean)]
    for note in notes:
        warnings.warn(note, stacklevel=2)
    notes += [note for note in (*flat, *run.notes) if note not in notes]
    notes += [note for chain, book in books.values() for note in (*chain.notes, *_by_square(chain, book))]
    notes += dict.fromkeys((*backend.notes(model), *in_float32.notes(model)))
    return _assembled(setting, clean, books, tuple(notes), about)


def _like(model: nn.Module, data: TensorData) -> Tensor:
    """An empty tensor on the model's device, of the type of its weights."""
    weights = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weights is None:
        return torch.empty(0, device=data.x.device)
    if weights.dtype not in (torch.float32, torch.float64):
        raise UserError(
            f"the weights of the model are {weights.dtype}, whose rounding would hide an eps of 8/255: wrap the model "
            "so that it takes float32 images, or convert it with model.float()"
        )
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


def _about(
    model: nn.Module, data: TensorData, index: Tensor, adversaries: Mapping[str, Adversary | Cascade], seed: int
) -> dict[str, object]:
    """The identity of an evaluation: its model, images, adversaries and seed, so that a saved state can be matched."""
    return {
        "model": fingerprint(model.state_dict()),
        "images": fingerprint({"x": data.x, "y": data.y, "index": index}),
        "adversaries": {name: repr(adversary) for name, adversary in adversaries.items()},
        "seed": seed,
    }


def _clean(setting: EvaluationContext) -> tuple[Verdict, list[str]]:
    """The verdict on the clean images, and notes on oddities of the model."""
    judge, data, size = setting.judge, setting.data, setting.batch_size
    verdicts = []
    for start in range(0, len(data), size):
        x, y = setting.batch(slice(start, start + size))
        verdicts.append(judge(x, y, len(data.classes)))
        if not start:
            setting.unaltered.check()
            notes = oddities(judge, x, y, verdicts[0].right)
            setting.unaltered.check()
    clean = Verdict(*(torch.cat(part).cpu() for part in zip(*verdicts, strict=True)))
    if bool(clean.probable.all()):
        refuse_probabilities()
    lost = int((clean.predicted < 0).sum())
    if lost:
        notes.append(f"{lost} of {len(data)} clean images give NaN or infinite logits: they count as wrong")
    return clean, notes


def _lost_under(chain: AttackPlan, book: AttackRecord, clean: Verdict) -> list[str]:
    """A note on examples for which the model gives NaN or infinite logits under an adversary."""
    lost = int(((book.predicted < 0) & clean.right).sum())
    if not lost:
        return []
    return [f"{lost} examples count as broken because the model gives NaN or infinite logits under {chain.name}"]


def _by_square(chain: AttackPlan, book: AttackRecord) -> list[str]:
    """A note on AutoAttack's own sign of masked gradients: Square reduces the accuracy by more than 0.2 points."""
    names = [name.rpartition("/")[2] for name in chain.stages]
    if "square" not in names[1:]:
        return []
    found = int((book.broken_by == names.index("square") + 1).sum())
    if found < 2 or found <= 0.002 * len(book.broken_by):
        return []
    return [
        f"Square, which needs no gradients, breaks {found} examples that the attacks before it did not: gradients may "
        "be masked; run sparring audit"
    ]


def _assembled(
    setting: EvaluationContext,
    clean: Verdict,
    books: Mapping[str, tuple[AttackPlan, AttackRecord]],
    notes: tuple[str, ...],
    about: Mapping[str, object],
) -> EvaluationResult:
    data = setting.data
    robust, margin = {"clean": clean.right.numpy()}, {"clean": clean.margin.float().numpy()}
    norm, images, distance, hardest, last = {}, {}, None, None, None
    for name, (chain, book) in books.items():
        if chain.nearest is not None:
            distance, hardest = _distances(chain.nearest, book, books), _hardest(book, data, clean)
            continue
        last = book
        for stage, row in enumerate(chain.stages, 1):
            robust[row] = book.robust(stage).numpy()
        robust[name] = book.robust().numpy()
        margin[name], norm[name] = book.margin.numpy(), book.norm.numpy()
        if setting.keep_images:
            images[name] = _with_clean(book, data)
    threats = {name: repr(chain.threat()) for name, (chain, _) in books.items() if chain.nearest is None}
    return EvaluationResult(
        robust,
        data.y.cpu().numpy(),
        data.classes,
        margin,
        norm,
        setting.index.cpu().numpy(),
        distance,
        images,
        notes,
        {"images": str(about["images"]), **threats},
        examples=_pictures(last, data, clean) if last is not None else None,
        hardest=hardest,
    )


def _distances(nearest: MinimumNorm, book: AttackRecord, books: Mapping[str, tuple[AttackPlan, AttackRecord]]) -> Array:
    """The smallest eps that any attack found: 0 where the clean image is misclassified, inf where none was found."""
    distance = book.norm.nan_to_num(nan=math.inf)
    for chain, other in books.values():
        threat = chain.threat()
        if chain.nearest is None and type(threat) is type(nearest.threat) and threat is not None:
            norm = other.norm.clamp(max=threat.eps)  # it may exceed eps by rounding
            distance = torch.minimum(distance, norm.nan_to_num(nan=math.inf))
    return distance.masked_fill(book.broken_by == CLEAN, 0.0).numpy()


def _hardest(book: AttackRecord, data: TensorData, clean: Verdict) -> Examples | None:
    """Images of the examples with the smallest distances."""
    return _shown(book, sorted(book.images, key=lambda row: float(book.norm[row]))[:PICTURES], data, clean)


def _with_clean(book: AttackRecord, data: TensorData) -> Array:
    """Adversarial images of the broken examples, and clean images of all others, `[N, C, H, W]`."""
    images = pixels(data.x.cpu()).clone()
    for row, image in book.images.items():
        images[row] = image
    return images.numpy()


def _pictures(book: AttackRecord, data: TensorData, clean: Verdict) -> Examples | None:
    """Images of the first few examples that an adversary broke."""
    return _shown(book, sorted(book.images)[:PICTURES], data, clean)


def _shown(book: AttackRecord, rows: list[int], data: TensorData, clean: Verdict) -> Examples | None:
    if not rows:
        return None
    x, y = pixels(data.x[rows].cpu()), data.y[rows].cpu()
    adversarial = torch.stack([book.images[row] for row in rows])
    arrays = (x, adversarial, y, clean.predicted[rows], book.predicted[rows], book.norm[rows])
    return Examples(*(part.numpy() for part in arrays))
