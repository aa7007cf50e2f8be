"""Transfer of a representation to another task: a new head alone, or more and more layers fitted with it.

Robust networks are reported to transfer better, and the more so the farther the task
(https://arxiv.org/abs/2007.11259).
"""

import copy
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...core.errors import UserError, nearest, need_one_of, need_whole
from ...core.gate import as_taken, check_taken, gated
from ...core.modes import eval_mode
from ...core.rng import make_rng, mixed_seed
from ...core.types import Classifier, TensorData, pixels
from ...core.validation import as_classifier
from ...evaluation import evaluate
from ...models import Pooled, as_run, encode, validated_probe
from ...records.results import Accuracy
from ..information import weights

Mode: TypeAlias = Literal["head", "norms", "block", "layers", "all"]


@dataclass(frozen=True, slots=True)
class FineTuning:
    """Settings of fitting a network to another task.

    Every mode fits a new head: multinomial logistic regression on standardised features, its penalty chosen on a
    validation set. The other modes first give batch norm the statistics of the new task; starting from that head, they
    then train further parameters, and the statistics follow. Training uses SGD with Nesterov's momentum, the learning
    rate decreasing from `lr` by half a cosine.

    Args:
        mode: "head" for the head alone; "norms" to train also the factors of batch norm; "block" to train also the last
            block; "layers" to train also `layers`; "all" to train everything.
        epochs: Number of epochs, at least 1.
        lr: Learning rate at the start, above 0.
        batch_size: Number of images per batch, at least 2.
        weight_decay: Weight decay of SGD.
        layers: With the mode "layers", the names of the modules to train, such as "layer4".
        pooled: True for a head on features that are averaged over the image, one for each channel; False for one on the
            features as they are. With the mode "head", and for models that flatten a map, or average it already.

    Raises:
        UserError: If a value is out of range, the mode is unknown, or layers are named or features pooled in another
            mode.
    """

    mode: Mode = "head"
    epochs: int = 20
    lr: float = 0.01
    batch_size: int = 64
    weight_decay: float = 5e-4
    layers: tuple[str, ...] = ()
    pooled: bool = False

    def __post_init__(self) -> None:
        need_one_of("mode", self.mode, get_args(Mode))
        if (self.mode == "layers") != bool(self.layers):
            raise UserError(
                "layers are named, and only then, with the mode layers: as mode='layers', layers=('layer4',) (--mode "
                "layers --layers layer4)"
            )
        if self.pooled and self.mode != "head":
            raise UserError(f"mode = {self.mode!r} trains the features that the model has: pooled takes the mode head")
        need_whole("epochs", self.epochs)
        need_whole("batch_size", self.batch_size, 2)
        if self.lr <= 0 or self.weight_decay < 0:
            raise UserError(
                f"lr = {self.lr:g}, weight_decay = {self.weight_decay:g}: lr must be above 0, weight_decay at least 0"
            )


@dataclass(frozen=True, slots=True)
class TransferResult:
    """A network fitted to a task.

    Args:
        model: The tuned network.
        accuracy: Its accuracy on the test images of the task.
        penalty: The penalty chosen for its head.
    """

    model: Classifier
    accuracy: Accuracy
    penalty: float


@gated
def measure_transfer_learning(
    model: nn.Module, train: TensorData, test: TensorData, how: FineTuning = FineTuning(), seed: int = 0
) -> TransferResult:
    """Fit a copy of a model to a task and test it; the model itself does not change.

    Args:
        model: The model whose representation is transferred.
        train: Training images of the task.
        test: Test images of the task.
        how: Settings of the fit.
        seed: Seed of the validation split and of the order of images.

    Returns:
        The tuned network, its test accuracy and the penalty of its head.

    Raises:
        UserError: If no linear layer gives the logits of the model, a class has no training image, the images have
            another size than the model takes, or the model has no layers for the mode.
    """
    source = as_classifier(model, as_taken(model, train.x[:2]))
    check_task(source, train)
    tuned = Classifier(copy.deepcopy(source.body), nn.Identity(), copy.deepcopy(source.normalize)).eval()
    if how.pooled:
        tuned.body = Pooled(tuned.body, tuned.normalize(pixels(train.x[:1]))).eval()
    if how.mode != "head":
        _settle(tuned, train, how, seed)
    features = _features(tuned, train)
    head, penalty = validated_probe(features, train.y, len(train.classes), seed=seed)
    tuned.head = head
    if how.mode != "head":
        tuned.head = _scaled(head, features)
        _tune(tuned, train, how, seed)
    return TransferResult(tuned, evaluate(tuned, test, {}).table()["clean"], penalty)


def check_task(model: nn.Module, train: TensorData) -> None:
    """Raise `UserError` for a task that the model cannot be fitted to."""
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
    """Draw images at random, with numbers per class that are as equal as possible.

    Args:
        data: The images to draw from.
        count: Number of images to draw: at least one per class, at most all.
        seed: Seed of the draw.

    Returns:
        The drawn images, in the order of `data`.

    Raises:
        UserError: If `count` is larger than the number of images or smaller than the number of classes.
    """
    classes = len(data.classes)
    if not classes <= count <= len(data):
        raise UserError(
            f"count = {count} images of {classes} classes: take {classes} to {len(data)}, at least one of each class"
        )
    rng = make_rng(mixed_seed("shots", seed))
    order = torch.randperm(len(data), generator=rng)
    place = torch.empty(len(data), dtype=torch.long)  # number of images of the same class that come before
    y = data.y.cpu()[order]
    for c in range(classes):
        own = (y == c).nonzero()[:, 0]
        place[own] = torch.arange(len(own))
    first = place.argsort(stable=True)[:count]
    return data[order[first].sort().values.to(data.y.device)]


# -- training more than the head


def last_block(model: Classifier, x: Tensor) -> nn.Module:
    """Return the last module of the body that runs with weights of two dimensions or more, or the block around it.

    That is a residual unit of a residual network, and the last layer of a body that is one sequence.
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
def _settle(model: Classifier, train: TensorData, how: FineTuning, seed: int) -> None:
    """Set the running statistics of batch norm to those of the task, averaged over batches in random order.

    In the order of the data, a batch may hold a single class, and the variance between classes would be lost.
    """
    norms = _norms(model)
    if how.mode == "norms" and not norms:
        raise UserError("mode = 'norms' trains batch norm, which this model does not have: take head, block or all")
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    size = max(2, len(train) // -(-len(train) // how.batch_size))  # no batch of one
    order = torch.randperm(len(train), generator=make_rng(mixed_seed("settle", seed))).to(train.x.device)
    for start in range(0, len(train) - 1, size):
        model(pixels(train.x[order[start : start + size]]))
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
    """Return the same head on features of mean 0 and mean variance 1, so that one learning rate suits any scale."""
    scaled, layer = _Scaled(features), copy.deepcopy(head)
    with torch.no_grad():
        layer.bias.add_(head.weight @ scaled.mean)
        layer.weight.mul_(scaled.spread)
    return nn.Sequential(scaled, layer)


def _tune(model: Classifier, train: TensorData, how: FineTuning, seed: int) -> None:
    norms = _norms(model)
    for p in model.parameters():
        p.requires_grad_(how.mode == "all")
    chosen = [model.head, *norms]
    if how.mode == "block":
        chosen.append(last_block(model, pixels(train.x[:2])))
    chosen += [_named(model.body, name) for name in how.layers]
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
            if len(rows) < 2:  # batch norm has no variance in a batch of one
                falling.step()
                continue
            part = train[rows.to(train.y.device)]
            search.zero_grad()
            with torch.enable_grad():
                F.cross_entropy(model(pixels(part.x)), part.y).backward()
            search.step()
            falling.step()
    model.eval()


def _named(body: nn.Module, name: str) -> nn.Module:
    """Return a module of the body by its name in the body, or in the classifier."""
    names = [each for each, _ in body.named_modules() if each]
    own = name.removeprefix("body.")
    if own not in names:
        raise UserError(f"the body of the model has no layer {name!r}: {nearest(own, names)}")
    return body.get_submodule(own)


# -- distances between tasks


@gated
def task_embedding(model: nn.Module, train: TensorData, seed: int = 0) -> Tensor:
    """Compute the Task2Vec embedding of a task: the diagonal Fisher information of the body with a head for the task.

    The head is fitted to `train`, and the information is averaged over the weights of each filter. It is exact over
    classes and computed per image, so it does not depend on a batch size.

    Args:
        model: The model, which must be the same for all tasks that are compared.
        train: Training images of the task.
        seed: Seed of the validation split with which the head is fitted.

    Returns:
        One number per filter, in one vector, in float64.

    References:
        Task2Vec: https://arxiv.org/abs/1902.03545.
    """
    source = as_classifier(model, as_taken(model, train.x[:2]))
    check_task(source, train)
    head, _ = validated_probe(_features(source, train), train.y, len(train.classes), seed=seed)
    fitted = Classifier(source.body, head, source.normalize)
    with eval_mode(fitted):
        found = weights.diagonal(fitted, train)
    kept = [f.flatten(1).mean(1) for name, f in found.items() if name.startswith("body.") and f.ndim > 1]
    return torch.cat(kept).double()


def task_distance(a: Tensor, b: Tensor) -> float:
    """Compute the symmetric distance of two tasks: 1 - the cosine of a / (a + b) and b / (a + b).

    Args:
        a: Embedding of one task, as from `task_embedding`.
        b: Embedding of the other task.

    Returns:
        The distance: 0 for the same task, at most 1.

    Raises:
        UserError: If the embeddings are of different networks.

    References:
        Task2Vec: https://arxiv.org/abs/1902.03545.
    """
    if a.shape != b.shape:
        raise UserError(f"embeddings of one network are compared: these have {len(a)} and {len(b)} numbers")
    both = (a + b).clamp_min(1e-300)
    return 1 - float(F.cosine_similarity(a / both, b / both, dim=0))
