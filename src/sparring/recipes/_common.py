"""What several recipes share."""

from dataclasses import replace
from typing import Literal

from ..attacks import FGSM, PGD, Restarts
from ..attacks.threats import L2, Linf
from ..core.errors import UserError
from ..core.modes import eval_mode, train_mode
from ..core.types import Objective
from ..evaluation import WhiteBox
from ..objectives.batch_norm_statistics import BatchNormStatistics
from ..runs.recipe import Evaluation, Recipe
from ..training.engine import Method

Craft = Literal["eval", "train"]
Moved = Literal["update", "released"]
_CRAFT = {"eval": eval_mode, "train": train_mode}


def crafted(recipe: Recipe, craft: Craft) -> Recipe:
    """`recipe`, crafting in the mode `craft`: "train" goes by the batch, and moves the running statistics at each step.

    Raises `UserError` for another mode.
    """
    assert isinstance(recipe.method, Method)
    if craft not in _CRAFT:
        raise UserError(f"craft = {craft!r} is not one of {', '.join(_CRAFT)}")
    return replace(recipe, method=replace(recipe.method, inner_mode=_CRAFT[craft]))


def moving(objective: Objective, moved: Moved) -> Objective:
    """`objective`, whose passes in the "update" move batch norm's statistics, or with two clean ones, as "released".

    Raises `UserError` for anything else.
    """
    if moved not in ("update", "released"):
        raise UserError(f"moved = {moved!r} is not one of update, released")
    return objective if moved == "update" else BatchNormStatistics(objective, "both", clean_passes=2)


def pgd_50_10(threat: Linf | L2, examples: int | None = None) -> Evaluation:
    """FGSM, and PGD-50 with 10 restarts and steps of eps / 4, as in https://arxiv.org/abs/2001.03994.

    An example rests once it is fooled, which changes no result.
    """
    strong = Restarts(PGD(threat, steps=50, step_size=threat.eps / 4, patience=0), 10)
    return Evaluation({"fgsm": WhiteBox(FGSM(threat)), "pgd-50-10": WhiteBox(strong)}, examples)


def select_by_pgd(threat: Linf | L2, steps: int = 10) -> PGD:
    """The attack by which the best epoch is chosen on the held-out part."""
    return PGD(threat, steps=steps, step_size=threat.eps / 4, patience=0)
