"""A study: arms x seeds, the results of the runs, and their verdicts on the claims of a paper."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..core.errors import UserError, nearest
from ..core.reading import reading
from ..records.results import Array
from ..records.run_folder import RunFolder
from ..records.statistics import Cell, Cells, Claim, Resampled, Statistic, Verdict, judge, observed, resampled
from ..runs.recipe import Recipe
from ..training.cost import cost
from .jobs import Plan, recorded

WEIGHTS = ("best", "last")
WORST = "worst"
"""Name of the accuracy that counts an example only if it is robust to every adversary that is not set apart."""
RUN = "run"
"""Stands in for the kind of weights, for numbers of a training that are not accuracies on the test images."""

Runs: TypeAlias = Mapping[tuple[str, int], RunFolder]  # by arm and seed


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the trainings that a study compares.

    Args:
        name: Name of the arm in tables and figures.
        recipe: What is trained; each seed of the study replaces the seed in it.
        after: True to train this arm only after all other arms, so that its recipe may name their folders.
    """

    name: str
    recipe: Recipe
    after: bool = False

    @property
    def folder(self) -> str:
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")

    def seeded(self, seed: int) -> Recipe:
        return replace(self.recipe, seed=seed)


class Measurement(NamedTuple):
    """An analysis of every run: `look(run, device, how)` writes its results and settings to the run's folder.

    `kind` names the analysis, and `how` are its settings.
    """

    kind: str
    look: Callable[[RunFolder, str, Mapping[str, Any]], None]
    how: Mapping[str, Any]

    def done(self, run: RunFolder) -> bool:
        """Return True if the run was analyzed with these settings; it may also have been analyzed with others."""
        return recorded(run.analysis(self.kind, "json"), self.how)


class JointMeasurement(NamedTuple):
    """An analysis of all runs of a seed, by arm: `look(runs, path, device, how)` writes the path.

    The file is written last and in one step, with the settings `how`.
    """

    look: Callable[[Mapping[str, RunFolder], Path, str, Mapping[str, Any]], None]
    how: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Study:
    """Trainings that are compared on the same test images and with the same seeds, and the claims that they decide.

    Args:
        name: Name on the command line.
        title: Title of the tables.
        source: Link to the paper.
        baseline: Name of the arm that differences are given to.
        arms: The trainings to compare.
        claims: The claims to decide.
        seeds: Number of seeds per arm.
        remarks: Notes below the tables.
        apart: Names of adversaries that do not count as the worst and that an arm may go without. Apart from these, all
            arms have the same evaluation.
        measurements: Analyses of each run, after its training and evaluation.
        joint: An analysis of all runs of a seed, after all of them.
        numbers: Function of all runs that returns further numbers `[S]` by arm and name, for claims to use.
        draw: Function that writes further figures of all runs to the folder of the study.

    Raises:
        UserError: If names clash or are unknown, there is no seed, or the arms have different evaluations.
    """

    name: str
    title: str
    source: str
    baseline: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    seeds: int = 3
    remarks: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    joint: JointMeasurement | None = None
    numbers: Callable[[Runs], Mapping[tuple[str, str], Array]] | None = None
    draw: Callable[[Runs, Path], None] | None = None

    def __post_init__(self) -> None:
        folders = [arm.folder for arm in self.arms]
        if len(set(folders)) < len(folders):
            raise UserError(f"two arms of a study share a folder: {sorted(folders)}")
        if self.baseline not in [arm.name for arm in self.arms]:
            raise UserError(f"the baseline {self.baseline!r} is none of the arms")
        if self.seeds < 1:
            raise UserError(f"a study has at least one seed, not {self.seeds}")
        known = {name for arm in self.arms for name in arm.recipe.evaluation.adversaries}
        for name in self.apart:
            if name not in known:
                raise UserError(f"{name!r} is set apart, but no arm is evaluated by it: {nearest(name, known)}")
        alike = {tuple(n for n in arm.recipe.evaluation.adversaries if n not in self.apart) for arm in self.arms}
        if len(alike) > 1:
            raise UserError(
                f"the arms of a study are evaluated by different adversaries, none of them apart: {alike}; list those "
                "that differ in `apart`"
            )

    def plan(self, scale: str) -> Plan:
        """Return what the study consists of, as its folder says it."""
        return Plan(
            study=self.name,
            scale=scale,
            seeds=self.seeds,
            arms=tuple({"name": arm.name, "folder": arm.folder, "after": arm.after} for arm in self.arms),
            analyses={each.kind: each.how for each in self.measurements},
            joint=None if self.joint is None else self.joint.how,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """Results of an arm. Accuracies and differences are (value, low, high), 0 to 1, by (weights, adversary)."""

    arm: str
    passes_a_step: float
    passes: float
    """Forward-backward passes of the whole training, in millions of images."""
    accuracy: Mapping[tuple[str, str], tuple[float, float, float]]
    difference: Mapping[tuple[str, str], tuple[float, float, float]]
    """Paired difference to the baseline."""


@dataclass(frozen=True, slots=True)
class Findings:
    """Results of a study: the table, the verdicts, the flags of every example, further numbers, and training curves."""

    study: Study
    adversaries: tuple[str, ...]
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    flags: Mapping[Cell, Array]
    numbers: Mapping[tuple[str, str], Array]
    """Further numbers `[S]`, by arm (or the name of a group of arms) and name."""
    estimates: Mapping[tuple[str, str], tuple[float, float, float]]
    """The further numbers as (mean, low, high)."""
    curves: Mapping[str, tuple[Array, Array]]
    """For each arm, passes so far and robust accuracy on the held-out set, averaged over seeds, after each epoch."""


def aggregate(study: Study, runs: Runs) -> Findings:
    """Combine the runs, given by arm and seed, into the results of the study."""
    flags = _flags(study, runs)
    given = {} if study.numbers is None else _numbers(study.numbers, runs)
    cells = {(owner, RUN, name): each for (owner, name), each in given.items()}
    replicas, seen = resampled(flags, numbers=cells), observed(flags, cells)
    adversaries = tuple(dict.fromkeys(under for _, _, under in flags))
    rows, curves = [], {}
    for arm in study.arms:
        history = [_history(runs[arm.name, seed]) for seed in range(study.seeds)]
        steps, held_out = history[0][0], np.mean([h[1] for h in history], axis=0)
        each = _passes(arm, steps)
        curves[arm.name] = (each * steps * arm.recipe.batch_size * arm.recipe.views_per_image / 1e6, held_out)
        accuracy, difference = {}, {}
        for which, under in ((which, under) for name, which, under in flags if name == arm.name):
            own = partial(_accuracy, arm=arm.name, which=which, under=under)
            value, low, high = _estimate(seen, replicas, own)
            accuracy[which, under] = value, max(0.0, low), min(1.0, high)
            if (study.baseline, which, under) in flags:
                less = partial(_difference, arm=arm.name, other=study.baseline, which=which, under=under)
                difference[which, under] = _estimate(seen, replicas, less)
        rows.append(Row(arm.name, each, float(curves[arm.name][0][-1]), accuracy, difference))
    estimates = {
        (owner, name): _estimate(seen, replicas, partial(_accuracy, arm=owner, which=RUN, under=name))
        for owner, name in given
    }
    verdicts = tuple(judge(claim, seen, replicas) for claim in study.claims)
    return Findings(study, adversaries, tuple(rows), verdicts, flags, given, estimates, curves)


def _numbers(numbers: Callable[[Runs], Mapping[tuple[str, str], Array]], runs: Runs) -> Mapping[tuple[str, str], Array]:
    folder = next(iter(runs.values())).path.parent
    with reading(folder, "an analysis of a run is damaged or from another version: delete it and repeat the command"):
        return numbers(runs)


def _accuracy(cells: Cells, arm: str, which: str, under: str) -> Array:
    return cells(arm, under, which)


def _difference(cells: Cells, arm: str, other: str, which: str, under: str) -> Array:
    return cells(arm, under, which) - cells(other, under, which)


def _estimate(seen: Cells, replicas: Resampled, statistic: Statistic) -> tuple[float, float, float]:
    value = float(statistic(seen)[0])
    return value, *replicas.interval(statistic, value)


def _flags(study: Study, runs: Runs) -> dict[Cell, Array]:
    """Return which examples are classified correctly, `[S, N]`, by arm, weights and adversary (and the worst case)."""
    found: dict[Cell, list[Array]] = {}
    for arm in study.arms:
        for seed in range(study.seeds):
            for which in WEIGHTS:
                robust = runs[arm.name, seed].read_flags(which).robust
                whole = {name: flags for name, flags in robust.items() if "/" not in name}
                whole[WORST] = np.logical_and.reduce([whole[name] for name in whole if name not in study.apart])
                for under, flags in whole.items():
                    found.setdefault((arm.name, which, under), []).append(flags)
    return {cell: np.stack(flags) for cell, flags in found.items()}


def of_each(runs: Runs, facts: Callable[[str, int], Mapping[str, float]]) -> dict[tuple[str, str], Array]:
    """Return numbers of every training, `[S]` by arm and name; `facts(arm, seed)` gives those of one training."""
    seeds = range(seeds_of(runs))
    found: dict[tuple[str, str], Array] = {}
    for arm in dict.fromkeys(arm for arm, _ in runs):
        each = [facts(arm, seed) for seed in seeds]
        found |= {(arm, name): np.array([one[name] for one in each]) for name in each[0]}
    return found


def seeds_of(runs: Runs) -> int:
    return 1 + max(seed for _, seed in runs)


def _history(run: RunFolder) -> tuple[Array, Array]:
    rows = [row for row in run.metrics() if "held_out" in row]
    return np.array([row["step"] for row in rows]), np.array([row["held_out"]["robust"] for row in rows])


def _passes(arm: Arm, steps: Array) -> float:
    """Return forward-backward passes per example and step, for the epoch length that the run had."""
    recipe = arm.recipe
    return cost(recipe.method, recipe.update, recipe.epochs, int(steps[0])).both
