"""Findings of a study: a table, the verdicts on its claims, and training curves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from ..core.reading import reading
from ..records.outcomes import Cell, Cells, Outcomes, Statistic
from ..records.results import Array, EvaluationResult
from ..records.run_folder import RunFolder
from ..records.statistics import DECIDED, TAIL, Claim, Verdict, judge
from ..training.cost import cost
from .collapse import COLLAPSED, ONSET, collapse
from .study import MARGIN, RUN, WEIGHTS, WORST, Arm, Runs, Study


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
    """Results of a study: the table, the verdicts, the results of each seed, further numbers, and training curves."""

    study: Study
    adversaries: tuple[str, ...]
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    outcomes: Outcomes
    numbers: Mapping[tuple[str, str], Array]
    """Further numbers `[S]`, by arm (or the name of a group of arms) and name."""
    estimates: Mapping[tuple[str, str], tuple[float, float, float]]
    """The further numbers as (mean, low, high)."""
    curves: Mapping[str, tuple[Array, Array]]
    """For each arm, passes so far and robust accuracy on the held-out set, averaged over seeds, after each epoch."""
    looks: tuple[int, ...] = ()
    """Numbers of seeds at which claims were looked at, if seeds were added until claims were decided."""

    @property
    def flags(self) -> Mapping[Cell, Array]:
        """Which test images are classified correctly, `[S, N]`."""
        return self.outcomes.flags

    def open(self) -> tuple[Claim, ...]:
        """Return the claims that more seeds may decide."""
        both = zip(self.study.claims, self.verdicts, strict=True)
        return tuple(claim for claim, verdict in both if _open(claim, verdict))


def _open(claim: Claim, verdict: Verdict) -> bool:
    """Return True for a claim that more seeds may decide: neither the setting nor the test images stand in the way."""
    images = claim.within is not None and verdict.outcome == "not testable here" and verdict.seeds > 1
    return verdict.outcome not in DECIDED and not claim.untestable and not images


def aggregate(study: Study, runs: Runs, looks: tuple[int, ...] = ()) -> Findings:
    """Combine runs into the results of a study.

    Args:
        study: The study.
        runs: The runs, by arm and seed.
        looks: Numbers of seeds at which claims are looked at, if seeds are added until claims are decided.

    Returns:
        The results.
    """
    histories = {key: _history(run) for key, run in runs.items()}
    evaluated = _evaluated(study, runs)
    flags, falls = _flags(study, evaluated), _collapses(study, runs, histories)
    given = {} if study.numbers is None else _numbers(study, study.numbers, runs)
    numbers = {(owner, RUN, name): each for (owner, name), each in {**falls, **given}.items()}
    outcomes = Outcomes(flags, numbers, _margins(evaluated), study.shares)
    verdicts = judge(study.claims, outcomes, looks)
    used = {(arm, name) for claim in study.claims for arm, _, name in outcomes.asked(claim.statistic)}
    if not used.isdisjoint(falls):
        given = {**falls, **given}
    rows, curves = [], {}
    for arm in study.arms:
        history = [histories[arm.name, seed] for seed in range(study.seeds_of(arm))]
        # none has an epoch if a guard stopped all of them in their first
        each = _passes(arm, next((steps for steps, _ in history if len(steps)), np.ones(1)))
        million = each * arm.recipe.batch_size * arm.recipe.views_per_image / 1e6  # in a step
        epochs = min(len(robust) for _, robust in history)  # a guard may have stopped some trainings early
        if epochs:
            curve = np.mean([robust[:epochs] for _, robust in history], axis=0)
            curves[arm.name] = (million * history[0][0][:epochs], curve)
        last = [steps[-1] if len(steps) else 0 for steps, _ in history]
        rows.append(_row(study, arm, outcomes, each, million * float(np.mean(last))))
    estimates = {
        (owner, name): _estimate(outcomes, partial(_accuracy, arm=owner, which=RUN, under=name))
        for owner, name in given
    }
    adversaries = tuple(dict.fromkeys(under for _, _, under in flags))
    return Findings(study, adversaries, tuple(rows), verdicts, outcomes, given, estimates, curves, looks)


def _row(study: Study, arm: Arm, outcomes: Outcomes, passes_a_step: float, passes: float) -> Row:
    accuracy, difference = {}, {}
    for which, under in ((which, under) for name, which, under in outcomes.flags if name == arm.name):
        value, low, high = _estimate(outcomes, partial(_accuracy, arm=arm.name, which=which, under=under))
        accuracy[which, under] = value, max(0.0, low), min(1.0, high)
        baseline = outcomes.flags.get((study.baseline, which, under))
        if baseline is not None and baseline.shape[1] == outcomes.flags[arm.name, which, under].shape[1]:
            less = partial(_difference, arm=arm.name, other=study.baseline, which=which, under=under)
            difference[which, under] = _estimate(outcomes, less)
    return Row(arm.name, passes_a_step, passes, accuracy, difference)


def _numbers(
    study: Study, numbers: Callable[[Runs], Mapping[tuple[str, str], Array]], runs: Runs
) -> Mapping[tuple[str, str], Array]:
    """Return the numbers of the seeds that all arms have."""
    folder = next(iter(runs.values())).path.parent
    common = {(arm, seed): run for (arm, seed), run in runs.items() if seed < study.common}
    with reading(folder, "an analysis of a run is damaged or from another version: delete it and repeat the command"):
        return numbers(common)


def _collapses(
    study: Study, runs: Runs, histories: Mapping[tuple[str, int], tuple[Array, Array]]
) -> dict[tuple[str, str], Array]:
    found: dict[tuple[str, str], Array] = {}
    for arm in study.arms:
        of_arm = [(histories[arm.name, seed][1], _stopped(runs[arm.name, seed])) for seed in range(study.seeds_of(arm))]
        if not all(len(robust) or stopped for robust, stopped in of_arm):
            continue
        each = [collapse(robust, arm.recipe.epochs if stopped else None) for robust, stopped in of_arm]
        found |= {(arm.name, name): np.array([one[name] for one in each]) for name in (COLLAPSED, ONSET)}
    return found


def _accuracy(cells: Cells, arm: str, which: str, under: str) -> Array:
    return cells(arm, under, which)


def _difference(cells: Cells, arm: str, other: str, which: str, under: str) -> Array:
    return cells(arm, under, which) - cells(other, under, which)


def _estimate(outcomes: Outcomes, statistic: Statistic) -> tuple[float, float, float]:
    estimate = outcomes.estimate(statistic)
    return estimate.value, *estimate.interval(TAIL)


_Evaluated: TypeAlias = Mapping[tuple[str, str], Sequence[EvaluationResult]]  # of each seed, by arm and weights


def _evaluated(study: Study, runs: Runs) -> _Evaluated:
    both = [(arm, which) for arm in study.arms for which in WEIGHTS]
    return {
        (arm.name, which): [runs[arm.name, seed].read_flags(which) for seed in range(study.seeds_of(arm))]
        for arm, which in both
    }


def _flags(study: Study, evaluated: _Evaluated) -> dict[Cell, Array]:
    """Return which examples are classified correctly, `[S, N]`, by arm, weights and adversary (and the worst case)."""
    found: dict[Cell, list[Array]] = {}
    for (arm, which), each in evaluated.items():
        for result in each:
            whole = {name: flags for name, flags in result.robust.items() if "/" not in name}
            whole[WORST] = np.logical_and.reduce([whole[name] for name in whole if name not in study.apart])
            for under, flags in whole.items():
                found.setdefault((arm, which, under), []).append(flags)
    return {cell: np.stack(flags) for cell, flags in found.items()}


def _margins(evaluated: _Evaluated) -> dict[Cell, Array]:
    """Return the lowest margin of logits that was found of every example, `[S, N]`, by arm, weights and adversary."""
    found: dict[Cell, list[Array]] = {}
    for (arm, which), each in evaluated.items():
        for result in each:
            for under, margins in result.margin.items():
                found.setdefault((arm, which, f"{MARGIN}{under}"), []).append(margins)
    return {cell: np.stack(margins) for cell, margins in found.items()}


def _history(run: RunFolder) -> tuple[Array, Array]:
    """Return the steps at the ends of epochs, and robust accuracy there, which is empty without held-out images."""
    rows = [row for row in run.metrics() if "best" in row]
    robust = [row["held_out"]["robust"] for row in rows if "held_out" in row]
    return np.array([row["step"] for row in rows]), np.array(robust)


def _stopped(run: RunFolder) -> bool:
    """Return True if a guard stopped the training because it overfitted catastrophically."""
    return run.status().get("stopped") is not None


def _passes(arm: Arm, steps: Array) -> float:
    """Return forward-backward passes per example and step, for the epoch length that the run had."""
    recipe = arm.recipe
    return cost(recipe.method, recipe.update, recipe.epochs, int(steps[0])).both


# -- more seeds


def extended(findings: Findings) -> Study | None:
    """Return the study with the seeds of the next look for the arms that open claims need; None if there is no more."""
    study, wanted = findings.study, {arm.name: findings.study.seeds_of(arm) for arm in findings.study.arms}
    for claim in findings.open():
        asked = findings.outcomes.asked(claim.statistic)
        have = min(study.seeds_of(arm) for arm in study.arms if arm.name in study.needed(asked))
        following = next((look for look in findings.looks if look > have), have)
        for arm in study.needed(asked):
            wanted[arm] = max(wanted[arm], following)
    arms = tuple(replace(arm, seeds=wanted[arm.name]) for arm in study.arms)
    more = any(wanted[arm.name] > study.seeds_of(arm) for arm in study.arms)
    return replace(study, arms=arms) if more else None


def added(before: Study, after: Study) -> str:
    """Return in words which arms get more seeds."""
    by_seeds: dict[int, int] = {}
    for old, arm in zip(before.arms, after.arms, strict=True):
        if after.seeds_of(arm) > before.seeds_of(old):
            by_seeds[after.seeds_of(arm)] = by_seeds.get(after.seeds_of(arm), 0) + 1
    return ", ".join(f"{arms} trainings get {seeds} seeds" for seeds, arms in sorted(by_seeds.items()))
