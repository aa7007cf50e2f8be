"""Robust accuracy, kept per example."""

import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from ..checks import check_data
from ..core import Data, pixels
from ..errors import UserError
from ..randomness import PerExample, mixed_seed
from ..scores import Array, Evaluated, Examples
from ..views import channels_last, eval_mode, frozen
from .adversary import Adversary, threat_of
from .cost import passes
from .journal import Journal, Part, fingerprint
from .judge import Judge, Unaltered, Verdict, oddities
from .nearest import Nearest

PICTURES = 8
STANDING, CLEAN = -1, 0


@runtime_checkable
class Cascade(Protocol):
    """Several adversaries, each on what those before it have left standing, as AutoAttack is."""

    @property
    def draws(self) -> int:
        """How often the model is asked before it counts as right: 1, or more if it is randomised."""
        ...

    def stages(self, num_classes: int) -> Mapping[str, Adversary]: ...
    def notes(self, num_classes: int) -> tuple[str, ...]:
        """What a reader of the result has to know."""
        ...


@dataclass(frozen=True, slots=True)
class News:
    """How far an evaluation is. `flags` `[N]` says who stands; `seconds_left` is a guess for all that is left to do."""

    adversary: str
    stage: str
    done: int
    todo: int
    flags: Array
    seconds_left: float
    stage_done: bool = False


OnNews: TypeAlias = Callable[[News], None]
Search: TypeAlias = Callable[[nn.Module], AbstractContextManager[nn.Module]]
"""Gives the model that attacks search on; what they find counts on the model itself."""


def evaluate(
    model: nn.Module,
    data: Data,
    adversaries: Mapping[str, Adversary | Cascade],
    *,
    batch_size: int = 256,
    seed: int = 0,
    index: Tensor | None = None,
    keep_images: bool = False,
    state: Path | str | None = None,
    search: Search = channels_last,
    on_news: OnNews = lambda news: None,
) -> Evaluated:
    """Which examples the model gets right: clean, and under each adversary.

    Works for any model that gives logits. An example that is wrong already counts as broken and is not attacked; an
    attack cannot put it right. What an attack finds counts only if the model is wrong once more, in its own precision,
    on a point inside the ball and [0, 1]. Logits that are not finite count as wrong and are reported.

    The random numbers of an example come from `seed` and its `index` `[N]` (its place in `data`), so that batch size,
    order and sharding change nothing but the last bits of the model's arithmetic. With `state`, a folder, each batch is
    written there when it is done: the same call goes on from it after a crash. `keep_images` puts the adversarial
    images of broken examples into the result. Raises `UserError` for images outside [0, 1], wrong labels,
    probabilities instead of logits, and a model that changes itself in forward.
    """
    check_data(data, "evaluation")
    if batch_size < 1:
        raise UserError(f"an evaluation takes batches of at least one image, not {batch_size}")
    index = _checked(index, data)
    chains = [_Chain.of(name, adversary, data) for name, adversary in adversaries.items()]
    judge = Judge(model, max((chain.draws for chain in chains), default=1))
    journal = _journal(state, model, data, index, adversaries, seed) if state is not None else None
    with eval_mode(model), frozen(model), search(model) as searched:
        clean, notes = _clean(judge, data, batch_size)
        run = _Run(judge, searched, data, index, clean, batch_size, seed, journal, on_news, keep_images)
        run.work = sum(chain.work * int(clean.right.sum()) for chain in chains)
        books = {chain.name: (chain, run.through(chain)) for chain in chains}
    for note in notes:
        warnings.warn(note, stacklevel=2)
    notes += [note for chain in chains for note in chain.notes]
    return _assembled(data, index, clean, books, tuple(notes), keep_images)


def _checked(index: Tensor | None, data: Data) -> Tensor:
    if index is None:
        return torch.arange(len(data), device=data.x.device)
    if index.shape != (len(data),) or index.dtype != torch.int64:
        raise UserError(f"index is {index.dtype} of shape {tuple(index.shape)}: wanted is one int64 per image")
    return index.to(data.x.device)


def _journal(
    state: Path | str,
    model: nn.Module,
    data: Data,
    index: Tensor,
    adversaries: Mapping[str, Adversary | Cascade],
    seed: int,
) -> Journal:
    about = {
        "model": fingerprint(model.state_dict()),
        "images": fingerprint({"x": data.x, "y": data.y, "index": index}),
        "adversaries": {name: repr(adversary) for name, adversary in adversaries.items()},
        "seed": seed,
    }
    return Journal(Path(state), about)


def _clean(judge: Judge, data: Data, batch_size: int) -> tuple[Verdict, list[str]]:
    """The verdict on the images as they are, and what is odd about the model."""
    model, classes = judge.model, len(data.classes)
    unaltered = Unaltered(model)
    verdicts = []
    for start in range(0, len(data), batch_size):
        batch = data[start : start + batch_size]
        verdicts.append(judge(pixels(batch.x), batch.y, classes))
        unaltered.check()
    first = data[:batch_size]
    notes = oddities(judge, pixels(first.x), first.y, verdicts[0].right)
    clean = Verdict(*(torch.cat(part).cpu() for part in zip(*verdicts, strict=True)))
    lost = int((clean.predicted < 0).sum())
    if lost:
        notes.append(f"{lost} of {len(data)} clean images give NaN or infinite logits: they count as wrong")
    return clean, notes


@dataclass(frozen=True, slots=True)
class _Chain:
    """An adversary by its name in the result, as the stages that it consists of."""

    name: str
    stages: Mapping[str, Adversary]
    draws: int
    notes: tuple[str, ...]
    costs: tuple[float, ...]
    nearest: Nearest | None = None

    @classmethod
    def of(cls, name: str, adversary: Adversary | Cascade, data: Data) -> "_Chain":
        classes = len(data.classes)
        if isinstance(adversary, Cascade):
            stages = {f"{name}/{part}": each for part, each in adversary.stages(classes).items()}
            draws, notes = adversary.draws, adversary.notes(classes)
        else:
            stages, draws, notes = {name: adversary}, 1, ()
        costs = tuple(passes(each, classes) for each in stages.values())
        return cls(name, stages, draws, notes, costs, adversary if isinstance(adversary, Nearest) else None)

    @property
    def work(self) -> float:
        return sum(self.costs)


@dataclass(slots=True)
class _Book:
    """What is known of each example under one adversary. All on the CPU, `[N]`."""

    broken_by: Tensor
    margin: Tensor
    norm: Tensor
    predicted: Tensor
    images: dict[int, Tensor] = field(default_factory=dict)
    all_images: bool = False

    @classmethod
    def open(cls, clean: Verdict, all_images: bool) -> "_Book":
        broken = torch.full_like(clean.predicted, STANDING).masked_fill(~clean.right, CLEAN)
        nothing = torch.full_like(clean.margin, math.nan)
        return cls(broken, clean.margin.clone(), nothing, clean.predicted.clone(), all_images=all_images)

    def enter(self, stage: int, part: Part) -> None:
        rows = torch.from_numpy(part.rows)
        self.margin[rows] = torch.minimum(self.margin[rows], torch.from_numpy(part.margin))
        broken = torch.from_numpy(part.broken)
        lost = rows[broken]
        self.broken_by[lost] = stage
        self.norm[lost] = torch.from_numpy(part.norm)[broken]
        self.predicted[lost] = torch.from_numpy(part.predicted)[broken]
        self.images.update(zip(lost.tolist(), torch.from_numpy(part.images), strict=True))
        if not self.all_images:
            self.images = {row: self.images[row] for row in sorted(self.images)[:PICTURES]}

    def standing(self, stage: int | None = None) -> Tensor:
        """Who stands after a stage, or now."""
        standing = self.broken_by == STANDING
        return standing if stage is None else standing | (self.broken_by > stage)


@dataclass(slots=True)
class _Run:
    """An evaluation under way."""

    judge: Judge
    searched: nn.Module
    data: Data
    index: Tensor
    clean: Verdict
    batch_size: int
    seed: int
    journal: Journal | None
    on_news: OnNews
    keep_images: bool
    work: float = 0.0
    done: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def through(self, chain: _Chain) -> _Book:
        """One adversary on all examples, a stage after the other on what stands."""
        book = _Book.open(self.clean, self.keep_images or chain.nearest is not None)
        for stage, (name, adversary) in enumerate(chain.stages.items(), 1):
            cost, todo = chain.costs[stage - 1], _rows(book.standing())
            count = len(todo)
            self.work -= cost * (int(self.clean.right.sum()) - count)
            if self.journal is not None:
                for part in self.journal.parts(name):
                    book.enter(stage, part)
                    todo = todo[~torch.isin(todo, torch.from_numpy(part.rows))]
                self.work -= cost * (count - len(todo))
            rng_seed = mixed_seed(self.seed, stage)
            done = count - len(todo)
            for rows in todo.split(self.batch_size) if len(todo) else ():
                part = self._attacked(adversary, rows, rng_seed)
                if self.journal is not None:
                    self.journal.add(name, part)
                book.enter(stage, part)
                done, self.done = done + len(rows), self.done + cost * len(rows)
                self._tell(chain.name, name, done, count, book)
            self._tell(chain.name, name, count, count, book, stage_done=True)
        return book

    def _attacked(self, adversary: Adversary, rows: Tensor, seed: int) -> Part:
        there = rows.to(self.data.x.device)
        x, y = pixels(self.data.x[there]), self.data.y[there]
        x = x.contiguous(memory_format=torch.channels_last)
        z = adversary(self.searched, x, y, PerExample(seed, self.index[there]))
        threat, bounded = threat_of(adversary), not isinstance(adversary, Nearest)
        z, verdict = self.judge.confirm(z, x, y, threat if bounded else None)
        broken = ~verdict.right
        norm = threat.norm(z - x) if threat is not None else torch.full_like(verdict.margin, math.nan)
        tensors = (rows, broken, verdict.margin, norm.float(), verdict.predicted, z[broken].contiguous())
        return Part(*(tensor.cpu().numpy() for tensor in tensors))

    def _tell(self, name: str, stage: str, done: int, todo: int, book: _Book, stage_done: bool = False) -> None:
        seconds = time.monotonic() - self.started
        left = seconds * (self.work / self.done - 1) if self.done else math.inf
        self.on_news(News(name, stage, done, todo, book.standing().numpy(), max(0.0, left), stage_done))


def _rows(flags: Tensor) -> Tensor:
    return flags.nonzero()[:, 0]


def _assembled(
    data: Data,
    index: Tensor,
    clean: Verdict,
    books: Mapping[str, tuple[_Chain, _Book]],
    notes: tuple[str, ...],
    keep_images: bool,
) -> Evaluated:
    standing, margin = {"clean": clean.right.numpy()}, {"clean": clean.margin.numpy()}
    norm, images, distance, hardest, last = {}, {}, None, None, None
    for name, (chain, book) in books.items():
        if chain.nearest is not None:
            distance, hardest = _distances(chain.nearest, book, books), _hardest(book, data, clean)
            continue
        last = book
        for stage, row in enumerate(chain.stages, 1):
            standing[row] = book.standing(stage).numpy()
        standing[name] = book.standing().numpy()
        margin[name], norm[name] = book.margin.numpy(), book.norm.numpy()
        if keep_images:
            images[name] = _with_clean(book, data)
    label, shown = data.y.cpu().numpy(), _pictures(last, data, clean) if last is not None else None
    return Evaluated(
        standing, label, data.classes, margin, norm, index.cpu().numpy(), distance, images, notes, shown, hardest
    )


def _distances(nearest: Nearest, book: _Book, books: Mapping[str, tuple[_Chain, _Book]]) -> Array:
    """The smallest eps found by anything: 0 where the model is wrong anyway, inf where nothing was found."""
    distance = book.norm.nan_to_num(nan=math.inf)
    for chain, other in books.values():
        threats = [threat_of(stage) for stage in chain.stages.values()]
        if chain.nearest is None and all(type(threat) is type(nearest.threat) for threat in threats):
            largest = max(threat.eps for threat in threats if threat is not None)  # a norm may exceed it by rounding
            norm = other.norm.clamp(max=largest)
            distance = torch.minimum(distance, norm.nan_to_num(nan=math.inf))
    return distance.masked_fill(book.broken_by == CLEAN, 0.0).numpy()


def _hardest(book: _Book, data: Data, clean: Verdict) -> Examples | None:
    """The examples that the smallest change breaks."""
    return _shown(book, sorted(book.images, key=lambda row: float(book.norm[row]))[:PICTURES], data, clean)


def _with_clean(book: _Book, data: Data) -> Array:
    images = pixels(data.x.cpu()).clone()
    for row, image in book.images.items():
        images[row] = image
    return images.numpy()


def _pictures(book: _Book, data: Data, clean: Verdict) -> Examples | None:
    """The first few examples that an adversary broke."""
    return _shown(book, sorted(book.images)[:PICTURES], data, clean)


def _shown(book: _Book, rows: list[int], data: Data, clean: Verdict) -> Examples | None:
    if not rows:
        return None
    x, y = pixels(data.x[rows].cpu()), data.y[rows].cpu()
    adversarial = torch.stack([book.images[row] for row in rows])
    arrays = (x, adversarial, y, clean.predicted[rows], book.predicted[rows], book.norm[rows])
    return Examples(*(part.numpy() for part in arrays))
