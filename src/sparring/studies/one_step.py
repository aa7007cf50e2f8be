"""Share of the gain of a strong attack that one step reaches: an analysis of runs, on thousands of test images."""

from collections.abc import Mapping
from typing import Any

import torch

from ..attacks import FGSM, PGD, RandomStart
from ..attacks.losses import CE
from ..core.modes import eval_mode, frozen
from ..core.rng import PerExample
from ..core.types import Attack, TensorData, Threat, pixels
from ..core.writing import write_json
from ..data import Subset
from ..evaluation import threat_of
from ..records.run_folder import RunFolder
from ..runs.environment import device_of
from ..runs.load import load_model, recipe_of
from .study import Measurement

KIND = "one-step"
SHARE = "share of one step"
_AT_ONCE = 500


def one_step(images: int, steps: int) -> Measurement:
    """Return the analysis of how much of what many steps gain one step gains.

    Args:
        images: Number of test images; where a training uses a part of its source, there are more than it tests on.
        steps: Number of steps of the strong attack.

    Returns:
        An analysis of each run. It attacks the same images from the same random starts in all runs.
    """
    return Measurement(KIND, _look, {"images": images, "steps": steps})


def share_of_one_step(run: RunFolder) -> float:
    """Return the mean rise of cross-entropy by one step of eps, as a share of that by many steps."""
    return float(run.read_analysis(KIND)[SHARE])


def _look(run: RunFolder, device: str, how: Mapping[str, Any]) -> None:
    recipe, where = recipe_of(run.path), device_of(device)
    source = recipe.data.source if isinstance(recipe.data, Subset) else recipe.data
    _, test = source.load()
    data = test[: how["images"]].to(where)
    threat = threat_of(dict(recipe.evaluation.adversaries))
    assert threat is not None
    model = load_model(run.weights("last"), recipe).to(where)
    clean, one, many = (_loss(model, data, attack) for attack in (None, *_attacks(threat, how["steps"])))
    share = (one - clean) / (many - clean) if many > clean else 1.0  # of a net that is constant, one step finds all
    found = {"clean": clean, "one step": one, f"{how['steps']} steps": many, SHARE: share}
    write_json(run.analysis(KIND, "json"), {"how": dict(how), **found})


def _attacks(threat: Threat, steps: int) -> tuple[Attack, Attack]:
    return FGSM(threat, threat.eps, RandomStart()), PGD(threat, steps, threat.eps / 4)


def _loss(model: torch.nn.Module, data: TensorData, attack: Attack | None) -> float:
    """Return the mean cross-entropy of images that are attacked, or not."""
    total = 0.0
    with eval_mode(model), frozen(model):
        for rows in torch.arange(len(data)).split(_AT_ONCE):
            part = data[rows.to(data.y.device)]
            loss, x = CE(model, part.y), pixels(part.x)
            if attack is not None:
                x = attack(loss, x, PerExample(0, rows.to(x.device)))
            with torch.no_grad():
                total += float(loss(x).value.double().sum())
    return total / len(data)
