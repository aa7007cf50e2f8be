"""What a representation is worth for another task: fitted anew at its end, or further and further in.

Robust nets are said to transfer better, the more so the farther the task (https://arxiv.org/abs/2007.11259).
"""

import copy
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...core.errors import UserError, need_one_of
from ...core.gate import check_taken, gated
from ...core.modes import eval_mode
from ...core.rng import make_rng, mixed_seed
from ...core.types import Classifier, TensorData, pixels
from ...core.validation import as_classifier
from ...evaluation import evaluate
from ...models import as_run, encode, validated_probe
from ...records.results import Accuracy
from ..information import weights

Mode: TypeAlias = Literal["head", "norms", "block", "all"]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What of a net is fitted to another task, and how.

    Always a new `head`: multinomial logistic regression on standardised features, the penalty chosen on a part held
    out. With `norms`, batch norm takes the statistics of the task before, and then, from that head on, its factors are
    fitted too, and statistics follow; with `block` also the last block; with `all` everything. By SGD with Nesterov's
    momentum over `epochs`, the rate falling from `lr` by half a cosine.
    """

    mode: Mode = "head"
    epochs: int = 20
    lr: float = 0.01
    batch_size: int = 64
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        need_one_of("mode", self.mode, get_args(Mode))
        if self.epochs < 1 or self.batch_size < 2 or self.lr <= 0:
            raise UserError(
                f"tuning takes an epoch at least, batches of two and a rate above 0, not {self.epochs}, "
                f"{self.batch_size} and {self.lr:g}"
            )


@dataclass(frozen=True, slots=True)
class Transferred:
    """The tuned net, its accuracy on the test images of the task, and the penalty of its head."""

    model: Classifier
    accuracy: Accuracy
    penalty: float


@gated
def measure_transfer(
    model: nn.Module, train: TensorData, test: TensorData, how: Tuning = Tuning(), seed: int = 0
) -> Transferred:
    """Fits a copy of `model` to the task of `train` and tests it on `test`; `model` stays as it is.

    Raises `UserError` for models that do not say what their features are, classes without an image to train on, images
    of another size than the model takes, and a mode that the model has no layers for.
    """
    source = as_classifier(model)
    check_task(source, train)
    tuned = Classifier(copy.deepcopy(source.body), nn.Identity(), copy.deepcopy(source.normalize)).eval()
    if how.mode != "head":
        _settle(tuned, train, how)
    features = _features(tuned, train)
    head, penalty = validated_probe(features, train.y, len(train.classes), seed=seed)
    tuned.head = head
    if how.mode != "head":
        tuned.head = _scaled(head, features)
        _tune(tuned, train, how, seed)
    return Transferred(tuned, evaluate(tuned, test, {}).table()["clean"], penalty)


def check_task(model: nn.Module, train: TensorData) -> None:
    """Raises `UserError` for a task that the model cannot be fitted to."""
    count = torch.bincount(train.y, minlength=len(train.classes))
    missing = [train.classes[i] for i in (count == 0).nonzero()[:, 0].tolist()]
    if missing:
        few = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UserError(
            f"the task has no image to train on of {len(missing)} of its {len(train.classes)} classes ({few}): take "
            "more images, or only the classes that are there, as +classes=0-4 or sparring.data.Classes"
        )
    with eval_mode(model):
        check_taken(model, pixels(train.x[:1]))


def _features(model: Classifier, data: TensorData) -> Tensor:
    with eval_mode(model):
        return encode(model.features, data)


def shots(data: TensorData, count: int, seed: int) -> TensorData:
    """So many images drawn at random, as alike in number for each class as can be: at least one of each.

    Raises `UserError` where there are not so many, or too few for all classes.
    """
    classes = len(data.classes)
    if not classes <= count <= len(data):
        raise UserError(
            f"{count} images of {classes} classes are asked for: take {classes} to {len(data)}, at least one of each"
        )
    rng = make_rng(mixed_seed("shots", seed))
    order = torch.randperm(len(data), generator=rng)
    place = torch.empty(len(data), dtype=torch.long)  # of each image, how many of its class come before
    y = data.y.cpu()[order]
    for c in range(classes):
        own = (y == c).nonzero()[:, 0]
        place[own] = torch.arange(len(own))
    first = place.argsort(stable=True)[:count]
    return data[order[first].sort().values.to(data.y.device)]


# -- further in


def last_block(model: Classifier, x: Tensor) -> nn.Module:
    """The last module of the body that runs with weights of two dimensions or more, with the block around it.

    A residual unit of a residual net; the last layer of a body that is one sequence.
    """
    names = [
        name
        for name in as_run(model, x, nn.Module)
        if name.startswith("body.") and any(p.ndim > 1 for p in model.get_submodule(name).parameters(recurse=False))
    ]
    if not names:
        raise UserError("the body has no weights, so it has no last block: tune the head alone")
    parent = names[-1].rpartition(".")[0]
    around = model.get_submodule(parent)
    return model.get_submodule(names[-1]) if around is model.body or type(around) is nn.Sequential else around


@torch.no_grad()
def _settle(model: Classifier, train: TensorData, how: Tuning) -> None:
    """Gives batch norm the statistics of the task, the means over its batches."""
    norms = _norms(model)
    if how.mode == "norms" and not norms:
        raise UserError("the net has no batch norm, which mode norms would fit: take head, block or all")
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    size = max(2, len(train) // -(-len(train) // how.batch_size))  # no batch of one
    for start in range(0, len(train) - 1, size):
        model(pixels(train.x[start : start + size]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _norms(model: Classifier) -> list[_BatchNorm]:
    return [module for module in model.body.modules() if isinstance(module, _BatchNorm)]


class _Scaled(nn.Module):
    """(x - mean) / spread, with one spread for all features."""

    mean: Tensor
    spread: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("spread", features.var(0, correction=0).mean().sqrt().clamp_min(1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.spread


def _scaled(head: nn.Linear, features: Tensor) -> nn.Sequential:
    """The same head on features of mean 0 and variance 1, so that one learning rate fits nets of any scale."""
    scaled, layer = _Scaled(features), copy.deepcopy(head)
    with torch.no_grad():
        layer.bias.add_(head.weight @ scaled.mean)
        layer.weight.mul_(scaled.spread)
    return nn.Sequential(scaled, layer)


def _tune(model: Classifier, train: TensorData, how: Tuning, seed: int) -> None:
    norms = _norms(model)
    for p in model.parameters():
        p.requires_grad_(how.mode == "all")
    chosen = [model.head, *norms]
    if how.mode == "block":
        chosen.append(last_block(model, pixels(train.x[:2])))
    for module in chosen:
        for p in module.parameters():
            p.requires_grad_(True)
    moved = [p for p in model.parameters() if p.requires_grad]
    steps = how.epochs * -(-len(train) // how.batch_size)
    search = torch.optim.SGD(moved, how.lr, momentum=0.9, nesterov=True, weight_decay=how.weight_decay)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(search, steps)
    model.eval()
    for norm in norms:
        norm.train()
    rng = make_rng(mixed_seed("tune", seed))
    for _ in range(how.epochs):
        for rows in torch.randperm(len(train), generator=rng).split(how.batch_size):
            if len(rows) < 2:  # a batch norm cannot learn from one
                falling.step()
                continue
            part = train[rows.to(train.y.device)]
            search.zero_grad()
            with torch.enable_grad():
                F.cross_entropy(model(pixels(part.x)), part.y).backward()
            search.step()
            falling.step()
    model.eval()


# -- how far tasks are apart


@gated
def task_embedding(model: nn.Module, train: TensorData, seed: int = 0) -> Tensor:
    """Task2Vec (https://arxiv.org/abs/1902.03545): the diagonal Fisher information of the body, fitted to the task.

    `model` is the same for all tasks; its head is fitted to `train`, and the information of each filter's weights is
    averaged: one number a filter. Exact over classes and by single images, so it does not change with a batch size.
    """
    source = as_classifier(model)
    check_task(source, train)
    head, _ = validated_probe(_features(source, train), train.y, len(train.classes), seed=seed)
    fitted = Classifier(source.body, head, source.normalize)
    with eval_mode(fitted):
        found = weights.diagonal(fitted, train)
    kept = [f.flatten(1).mean(1) for name, f in found.items() if name.startswith("body.") and f.ndim > 1]
    return torch.cat(kept).double()


def task_distance(a: Tensor, b: Tensor) -> float:
    """1 - the cosine of a / (a + b) and b / (a + b): 0 for the same task, at most 1; the paper's symmetric distance."""
    both = (a + b).clamp_min(1e-300)
    return 1 - float(F.cosine_similarity(a / both, b / both, dim=0))
