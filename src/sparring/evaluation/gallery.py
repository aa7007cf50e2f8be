"""A few examples of an evaluation with their images, for a reader to look at."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..core.types import pixels
from ..records.gallery import Gallery, chosen, gallery_size
from ..records.results import Array, EvaluationResult
from .runner import AttackPlan, AttackRecord, EvaluationContext


def gallery_of(
    setting: EvaluationContext, found: EvaluationResult, books: Mapping[str, tuple[AttackPlan, AttackRecord]]
) -> Gallery | None:
    """Show a few examples of each fate under the last adversary; None if only smallest distances were searched.

    Fates are: wrong on the clean image, broken by one of the stages, robust.
    """
    name = next((name for name, (chain, _) in reversed(list(books.items())) if chain.nearest is None), None)
    if name is None:
        return None
    images, fates = books[name][1].images, found.broken_by(name)
    there = [*images, *np.flatnonzero((fates == "") | (fates == "clean")).tolist()]
    row = chosen(np.array(there, np.int64), fates, found.margin[name], gallery_size(setting.data.shape[1:]))
    x = torch.cat([setting.batch(rows)[0] for rows in torch.from_numpy(row).split(setting.batch_size)])
    z = torch.stack([images[each].to(x) if each in images else x[i] for i, each in enumerate(row.tolist())])
    return Gallery(name, row, _half(x), _half(z), _confidence(setting, x), _confidence(setting, z))


def _half(images: Tensor) -> Array:
    half: Array = pixels(images.cpu()).numpy().astype(np.float16)
    return half


@torch.no_grad()
def _confidence(setting: EvaluationContext, images: Tensor) -> Array:
    """Probability of the predicted class, `[G]`; NaN where the logits are not finite."""
    with torch.autocast(images.device.type, enabled=False):
        logits = [setting.judge.model(part) for part in images.split(setting.batch_size)]
    found: Array = torch.cat(logits).cpu().double().softmax(1).amax(1).float().numpy()
    return found
