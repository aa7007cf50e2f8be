"""Robust accuracy, kept per example."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..acceleration import AcceleratedCopy
from ..core.errors import UserError, need_seed, need_whole
from ..core.gate import FEW, alone, answer, check_model, switched_to_eval
from ..core.modes import frozen, full_precision
from ..core.types import Attack, AttackBackend, TensorData, pixels
from ..core.validation import check_data, refuse_probabilities
from ..records.results import Array, EvaluationResult, Examples
from .adversaries import Adversary, as_adversary, checked_index
from .journal import PartStore, fingerprint
from .minimum_norm import MinimumNorm
from .runner import CLEAN, PICTURES, AttackPlan, AttackRecord, Cascade, EvaluationContext, OnProgress, Run, needs_fine
from .verifier import MutationCheck, Verdict, Verifier, flat_gradients, oddities


def evaluate(
    model: nn.Module,
    data: TensorData,
    adversaries: Mapping[str, Adversary | Cascade | Attack],
    *,
    batch_size: int = 256,
    seed: int = 0,
    index: Tensor | None = None,
    keep_images: bool = False,
    state: Path | str | None = None,
    backend: AttackBackend | None = None,
    on_progress: OnProgress = lambda news: None,
) -> EvaluationResult:
    """Which examples the model gets right: clean, and under each adversary.

    Works for any model that gives logits; a bare attack is taken as one that sees it, `WhiteBox(attack)`. An example
    that is wrong already counts as broken and is not attacked; an attack cannot put it right. What an attack finds
    counts only if the model is wrong once more, in its own precision, on a point inside the ball and [0, 1]. Logits
    that are not finite count as wrong and are reported.

    The random numbers of an example come from `seed` and its `index` `[N]` (its place in `data`), so that batch size,
    order and sharding change nothing but the last bits of the model's arithmetic. The model sees `batch_size` of them
    at a time; compiled and on a GPU, an attack holds four batches, to fill them while examples leave. With `state`, a
    folder, what was found is written there as it comes: the same call goes on from it after a crash. `keep_images` puts
    the adversarial images of broken examples into the result.

    Attacks run on what `backend` gives for the model, by default (`AcceleratedCopy()`) a copy that is quicker and
    rounds otherwise; in L2, L1 and for smallest distances, where rounding was seen to matter, one in float32. Where the
    copy is fooled and the model is not, they run again on the model. Raises `UserError` for images outside [0, 1],
    wrong labels, probabilities instead of logits, and a model that changes itself in forward.
    """
    check_model(model)
    check_data(data, "evaluation")
    need_whole("batch_size", batch_size)
    need_seed(seed)
    data = TensorData(data.x.detach(), data.y, data.classes)
    index = checked_index(index, len(data), data.x.device)
    known: dict[str, Adversary | Cascade] = {name: as_adversary(each) for name, each in adversaries.items()}
    chains = [AttackPlan.of(name, adversary, len(data.classes)) for name, adversary in known.items()]
    if sum(chain.nearest is not None for chain in chains) > 1:
        raise UserError(
            "the smallest distances are looked for in one norm at a time: leave out all MinimumNorm adversaries but one"
        )
    judge = Verifier(model, max((chain.draws for chain in chains), default=1))
    backend, like = backend or AcceleratedCopy(), _like(model, data)
    about = {**_about(model, data, index, known, seed), "search": backend.describe(like.device)}
    journal = None if state is None else PartStore(Path(state), about, data.x.shape)
    few = pixels(data.x[:FEW]).to(like)
    with alone(model), full_precision(), switched_to_eval(model), frozen(model):
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
            f"the weights of the model are {weights.dtype}: an eps of 8/255 would drown in rounding. Wrap it so that "
            "it takes float32 images, or convert it with model.float()"
        )
    return torch.empty(0, device=weights.device, dtype=weights.dtype)


def _about(
    model: nn.Module, data: TensorData, index: Tensor, adversaries: Mapping[str, Adversary | Cascade], seed: int
) -> dict[str, object]:
    """What an evaluation is of: to be found again, and to be compared."""
    return {
        "model": fingerprint(model.state_dict()),
        "images": fingerprint({"x": data.x, "y": data.y, "index": index}),
        "adversaries": {name: repr(adversary) for name, adversary in adversaries.items()},
        "seed": seed,
    }


def _clean(setting: EvaluationContext) -> tuple[Verdict, list[str]]:
    """The verdict on the images as they are, and what is odd about the model."""
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
    lost = int(((book.predicted < 0) & clean.right).sum())
    if not lost:
        return []
    return [f"{lost} examples count as broken because the model gives NaN or infinite logits under {chain.name}"]


def _by_square(chain: AttackPlan, book: AttackRecord) -> list[str]:
    """AutoAttack's own sign of masked gradients: Square lowers the accuracy by more than 0.2 points."""
    names = [name.rpartition("/")[2] for name in chain.stages]
    if "square" not in names[1:]:
        return []
    found = int((book.broken_by == names.index("square") + 1).sum())
    if found < 2 or found <= 0.002 * len(book.broken_by):
        return []
    return [
        f"Square, which needs no gradients, breaks {found} examples that the attacks before it did not: gradients may "
        "be masked; look at sparring audit"
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
    """The smallest eps found by anything: 0 where the model is wrong anyway, inf where nothing was found."""
    distance = book.norm.nan_to_num(nan=math.inf)
    for chain, other in books.values():
        threat = chain.threat()
        if chain.nearest is None and type(threat) is type(nearest.threat) and threat is not None:
            norm = other.norm.clamp(max=threat.eps)  # it may exceed eps by rounding
            distance = torch.minimum(distance, norm.nan_to_num(nan=math.inf))
    return distance.masked_fill(book.broken_by == CLEAN, 0.0).numpy()


def _hardest(book: AttackRecord, data: TensorData, clean: Verdict) -> Examples | None:
    """The examples that the smallest change breaks."""
    return _shown(book, sorted(book.images, key=lambda row: float(book.norm[row]))[:PICTURES], data, clean)


def _with_clean(book: AttackRecord, data: TensorData) -> Array:
    images = pixels(data.x.cpu()).clone()
    for row, image in book.images.items():
        images[row] = image
    return images.numpy()


def _pictures(book: AttackRecord, data: TensorData, clean: Verdict) -> Examples | None:
    """The first few examples that an adversary broke."""
    return _shown(book, sorted(book.images)[:PICTURES], data, clean)


def _shown(book: AttackRecord, rows: list[int], data: TensorData, clean: Verdict) -> Examples | None:
    if not rows:
        return None
    x, y = pixels(data.x[rows].cpu()), data.y[rows].cpu()
    adversarial = torch.stack([book.images[row] for row in rows])
    arrays = (x, adversarial, y, clean.predicted[rows], book.predicted[rows], book.norm[rows])
    return Examples(*(part.numpy() for part in arrays))
