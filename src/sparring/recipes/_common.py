"""Shared parts of the recipes: crafting mode, batch norm statistics, evaluation and selection."""

from dataclasses import replace
from typing import Literal

from ..attacks import PGD
from ..attacks.threats import L2, Linf
from ..core.errors import UserError
from ..core.modes import eval_mode, train_mode
from ..core.types import Objective
from ..evaluation.named import ADVERSARIES
from ..objectives.batch_norm_statistics import BatchNormStatistics
from ..runs.recipe import Evaluation, Recipe
from ..training.engine import Method

Craft = Literal["eval", "train"]
Moved = Literal["update", "released"]
_CRAFT = {"eval": eval_mode, "train": train_mode}


def crafted(recipe: Recipe, craft: Craft) -> Recipe:
    """Return `recipe` with adversarial examples crafted in the mode `craft`.

    "eval" uses the running statistics of batch norm. "train" uses the statistics of the batch and updates the running
    ones at each step of the attack. Raises `UserError` for another mode.
    """
    assert isinstance(recipe.method, Method)
    if craft not in _CRAFT:
        raise UserError(f"craft = {craft!r} is not one of {', '.join(_CRAFT)}")
    return replace(recipe, method=replace(recipe.method, inner_mode=_CRAFT[craft]))


def moving(objective: Objective, moved: Moved) -> Objective:
    """Return `objective` with a choice of the passes that update the running statistics of batch norm.

    "update" counts the objective's own passes; "released" counts clean images twice per step, with additional clean
    passes where the objective runs fewer. Raises `UserError` for anything else.
    """
    if moved not in ("update", "released"):
        raise UserError(f"moved = {moved!r} is not one of update, released")
    return objective if moved == "update" else BatchNormStatistics(objective, "both", clean_passes=2)


def pgd_50_10(threat: Linf | L2, examples: int | None = None) -> Evaluation:
    """Return an evaluation by FGSM, and by PGD-50 with 10 restarts and steps of eps / 4.

    As in https://arxiv.org/abs/2001.03994. The attack stops on an example once it is broken, which changes no result.
    """
    return Evaluation({name: ADVERSARIES[name](threat) for name in ("fgsm", "pgd-50-10")}, examples)


def select_by_pgd(threat: Linf | L2, steps: int = 10) -> PGD:
    """Return the attack that selects the best epoch on the held-out set."""
    return PGD(threat, steps=steps, step_size=threat.eps / 4, patience=0)
