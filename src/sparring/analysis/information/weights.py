"""The Fisher information of the weights about the task: how fast predictions change with the weights.

F is the expectation, over images and over labels drawn from the prediction itself, of g gᵀ with g the gradient of log
p(y|x). Its trace is computed exactly over classes, or estimated from drawn labels, or from gradients of whole batches.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ...core.errors import UserError
from ...core.modes import full_precision
from ...core.rng import make_rng
from ...core.types import Classifier, TensorData, pixels
from .jacobian import refuse_coupling

BUDGET = 2**28
"""Largest number of bytes that per-image gradients may take at a time."""
ALL = "all"

Traces = Mapping[str, Tensor]  # by group of parameters


def groups(model: nn.Module) -> dict[str, str]:
    """Return the group of each parameter by name: head, convolutions, linear layers, or norms and biases.

    In a model that is no `Classifier`, the head is the linear layer that was created last.
    """
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]
    head = "head." if isinstance(model, Classifier) else f"{last[0]}." if last else "\n"
    kinds = {}
    for name, p in model.named_parameters():
        kind = "norms and biases" if p.ndim < 2 else "linear layers" if p.ndim == 2 else "convolutions"
        kinds[name] = "head" if name.startswith(head) else kind
    return kinds


def sizes(model: nn.Module) -> dict[str, int]:
    """Return how many parameters there are in each group and in total."""
    kinds, found = groups(model), {ALL: 0}
    for name, p in model.named_parameters():
        for kind in (ALL, kinds[name]):
            found[kind] = found.get(kind, 0) + p.numel()
    return found


def exact(model: nn.Module, data: TensorData, batch_size: int = 128) -> tuple[Traces, Traces]:
    """Return tr F of each image, `[N]`, by group, and the same trace for relative changes of the weights.

    The trace is Σ over classes of p |g|². The relative one, Σ p (g w)², does not change when a weight is scaled and a
    later layer undoes the scale. Costs one backward pass per class and image. Raises `UserError` for models that do not
    treat images independently.
    """
    return _traces(model, data, batch_size, _over_classes(model))


def sampled(
    model: nn.Module, data: TensorData, draws: int = 1, batch_size: int = 128, seed: int = 0
) -> tuple[Traces, Traces]:
    """Estimate the traces of `exact` with `draws` labels per image from the prediction: one backward pass per draw."""
    return _traces(model, data, batch_size, _over_draws(model, draws, seed))


Weighted = Callable[[Tensor], Iterator[tuple[dict[str, Tensor], Tensor]]]
"""From images `[B, ...]` to pairs of gradients of each image, by name, and the share `[B]` that they have in F."""


def _over_classes(model: nn.Module) -> Weighted:
    def measured(x: Tensor) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        p = _probabilities(model, x)
        for c in range(p.shape[1]):
            yield gradients(model, x, torch.full_like(x[:, 0, 0, 0], c, dtype=torch.long)), p[:, c]

    return measured


def _over_draws(model: nn.Module, draws: int, seed: int) -> Weighted:
    rng = make_rng(seed)  # on the CPU, so that draws are the same on every device

    def measured(x: Tensor) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        p = _probabilities(model, x)
        for _ in range(draws):
            y = torch.multinomial(p.cpu(), 1, generator=rng)[:, 0].to(x.device)
            yield gradients(model, x, y), torch.full_like(p[:, 0], 1 / draws)

    return measured


def from_batches(
    model: nn.Module, data: TensorData, batch_size: int = 32, draws: int = 1, seed: int = 0
) -> tuple[Traces, Traces]:
    """Estimate the traces of `exact` from batches, without bias, by B |g|², g that of the mean over B images.

    The labels are drawn from the prediction, so per-image gradients have mean 0, and those of a batch add up like
    independent errors. Returns `[batches, draws]` by group. Costs one backward pass per batch and draw, and no
    per-image gradient. A last batch that is not full is left out.
    """
    refuse_coupling(model)
    if not 1 <= batch_size <= len(data) or draws < 1:
        raise UserError(
            f"the trace cannot be estimated with batch_size = {batch_size} and draws = {draws}: take a batch_size of 1 "
            f"to {len(data)}, the number of images, and at least one draw"
        )
    rng, kinds = make_rng(seed), groups(model)
    raw: dict[str, list[Tensor]] = {}
    relative: dict[str, list[Tensor]] = {}
    with full_precision(), thawed(model):
        named = dict(model.named_parameters())
        for start in range(0, len(data) - batch_size + 1, batch_size):
            x = pixels(data.x[start : start + batch_size])
            p = _probabilities(model, x)
            drawn: tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]] = ([], [])
            for _ in range(draws):
                y = torch.multinomial(p.cpu(), 1, generator=rng)[:, 0].to(x.device)
                with torch.enable_grad():
                    grads = torch.autograd.grad(
                        F.cross_entropy(model(x).float(), y), list(named.values()), allow_unused=True
                    )
                for by_draw, scaled in zip(drawn, (False, True), strict=True):
                    by_draw.append(_of_batch(named, grads, kinds, batch_size, scaled))
            for found, by_draw in zip((raw, relative), drawn, strict=True):
                for kind in by_draw[0]:
                    found.setdefault(kind, []).append(torch.stack([one[kind] for one in by_draw]))
    first, second = ({kind: torch.stack(values) for kind, values in found.items()} for found in (raw, relative))
    return first, second


def _of_batch(
    named: Mapping[str, nn.Parameter], grads: Sequence[Tensor | None], kinds: Mapping[str, str], size: int, scaled: bool
) -> dict[str, Tensor]:
    """Return `size` |g|² by group of parameters; if `scaled`, `size` |g w|²."""
    total: dict[str, Tensor] = {}
    for (name, p), g in zip(named.items(), grads, strict=True):
        value = p.new_zeros(()) if g is None else size * (g * p.detach() if scaled else g).square().sum()
        for kind in (ALL, kinds[name]):
            _add(total, kind, value)
    return total


@contextmanager
def thawed(model: nn.Module) -> Generator[None]:
    """Enable gradients for all parameters, frozen ones included, because the information is about every weight."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def diagonal(
    model: nn.Module, data: TensorData, batch_size: int = 128, *, draws: int | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Return the diagonal of F by parameter name, averaged over images: exact over classes, or from `draws` labels."""
    total: dict[str, Tensor] = {}
    measured = _over_classes(model) if draws is None else _over_draws(model, draws, seed)

    def add(x: Tensor) -> None:
        part: dict[str, Tensor] = {}
        for each, share in measured(x):
            for name, g in each.items():
                _add(part, name, torch.einsum("b...,b->...", g.square(), share) / len(data))
        for name, value in part.items():
            _add(total, name, value)

    by_itself(add, model, data, batch_size)
    return total


def _traces(
    model: nn.Module,
    data: TensorData,
    batch_size: int,
    measured: Weighted,
) -> tuple[Traces, Traces]:
    kinds, weights = groups(model), {name: p.detach() for name, p in model.named_parameters()}
    parts: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def add(x: Tensor) -> None:
        raw: dict[str, Tensor] = {}
        relative: dict[str, Tensor] = {}
        for each, share in measured(x):
            for name, g in each.items():
                for kind in (ALL, kinds[name]):
                    _add(raw, kind, share * g.square().flatten(1).sum(1))
                    _add(relative, kind, share * (g * weights[name]).square().flatten(1).sum(1))
        parts.append((raw, relative))

    by_itself(add, model, data, batch_size)
    first, second = ({kind: torch.cat([part[i][kind] for part in parts]) for kind in parts[0][i]} for i in (0, 1))
    return first, second


def _add(total: dict[str, Tensor], name: str, value: Tensor) -> None:
    total[name] = total[name] + value if name in total else value


def _probabilities(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).float().softmax(1)


def by_itself(use: Callable[[Tensor], Any], model: nn.Module, data: TensorData, batch_size: int) -> None:
    """Call `use` with batches of images whose gradients fit into `BUDGET`; batches are halved when memory runs out."""
    refuse_coupling(model)
    if not len(data):
        raise UserError("the data set has no images")
    one = 4 * sum(p.numel() for p in model.parameters())
    size, start = max(1, min(batch_size, BUDGET // max(1, one))), 0
    with full_precision():
        while start < len(data):
            try:
                use(pixels(data.x[start : start + size]))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = -(-size // 2)
                continue
            start += size


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return the gradient of log p(y|x) of each image, `[B, ...]` by parameter name.

    The images are vectorized over, which is 2.6 times as fast as one by one (a small CNN, 2 cores). An operation that
    cannot be vectorized, for example a hand-written gradient, is differentiated one image at a time.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def likelihood(given: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, {**given, **buffers}, (image[None],))
        return -F.cross_entropy(logits.float(), label[None])

    try:
        found: dict[str, Tensor] = vmap(grad(likelihood), (None, 0, 0))(parameters, x, y)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        alone = [_alone(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
        found = {name: torch.stack([one[name] for one in alone]) for name in alone[0]}
    return {name: g.detach() for name, g in found.items()}


def _alone(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    with torch.enable_grad(), thawed(model):
        loss = -F.cross_entropy(model(x).float(), y)
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}
