"""Robust accuracy, kept per example."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..checks import check_data, check_images, check_logits
from ..core import Data, make_rng, pixels
from ..errors import UserError
from ..results import Evaluated, Examples
from ..views import eval_mode, frozen
from .adversary import Adversary

PICTURES = 8


def evaluate(
    model: nn.Module,
    data: Data,
    adversaries: Mapping[str, Adversary],
    *,
    batch_size: int = 256,
    seed: int = 0,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Evaluated:
    """Which examples the model gets right: clean, and under each adversary.

    Works for any model that gives logits. An example that is wrong already counts as broken and is not attacked; an
    attack cannot put it right. The pictures are of the last adversary. `on_batch` hears how many examples are done.
    Raises `UserError` for images outside [0, 1], wrong labels, probabilities instead of logits, NaN.
    """
    check_data(data, "evaluation")
    if batch_size < 1:
        raise UserError(f"an evaluation takes batches of at least one image, not {batch_size}")
    found: dict[str, list[Tensor]] = {name: [] for name in ("clean", *adversaries)}
    pictures: list[_Pictures] = []
    rng = make_rng(seed, data.x.device)
    with eval_mode(model), frozen(model):
        for start in range(0, len(data), batch_size):
            batch = data[start : start + batch_size]
            flags, shown = _batch(model, batch, adversaries, rng)
            for name, standing in flags.items():
                found[name].append(standing.cpu())
            pictures.append(shown)
            on_batch(start + len(batch))
    flags_of = {name: torch.cat(parts).numpy() for name, parts in found.items()}
    return Evaluated(flags_of, data.y.cpu().numpy(), _choose(pictures))


_Pictures = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _batch(
    model: nn.Module, batch: Data, adversaries: Mapping[str, Adversary], rng: torch.Generator
) -> tuple[dict[str, Tensor], _Pictures]:
    x, y = pixels(batch.x), batch.y
    with torch.no_grad():
        logits = model(x)
    check_logits(logits, len(x), len(batch.classes))
    if not bool(logits.isfinite().all()):
        raise UserError("the model gives NaN or infinite logits on clean images")
    flags = {"clean": logits.argmax(1) == y}
    rows = flags["clean"].nonzero().squeeze(1)
    shown = x[:0], x[:0], y[:0], y[:0], y[:0]
    for name, adversary in adversaries.items():
        flags[name] = flags["clean"].clone()
        if len(rows):
            z, predicted = _attacked(model, x[rows], y[rows], adversary, rng)
            flags[name][rows] = predicted == y[rows]
            few = (predicted != y[rows]).nonzero().squeeze(1)[:PICTURES]
            shown = x[rows][few], z[few], y[rows][few], y[rows][few], predicted[few]
    return flags, shown


@torch.no_grad()
def _attacked(
    model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The adversarial images and what the model takes them for; -1 where it gives NaN, which counts as fooled."""
    z = adversary(model, x, y, rng)
    check_images(z, "adversarial images")  # NaN there means a gradient that was NaN
    out = model(z)
    return z, out.argmax(1).masked_fill(~out.isfinite().all(1), -1)


def _choose(pictures: list[_Pictures]) -> Examples | None:
    clean, adversarial, label, before, after = (
        torch.cat(part)[:PICTURES].cpu() for part in zip(*pictures, strict=True)
    )
    if not len(clean):
        return None
    arrays = (clean, adversarial, label, before, after)
    return Examples(*(part.numpy() for part in arrays))
