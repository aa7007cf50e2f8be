"""A study: arms x seeds, the results of the runs, and their verdicts on the claims of a paper."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..core.errors import UserError, nearest
from ..records.outcomes import Cell, Cells
from ..records.results import Array
from ..records.run_folder import RunFolder
from ..records.statistics import Claim
from ..runs.recipe import Recipe
from .collapse import COLLAPSED, ONSET
from .jobs import Plan, recorded

WEIGHTS = ("best", "last")
WORST = "worst"
"""Name of the accuracy that counts an example only if it is robust to every adversary that is not set apart."""
RUN = "run"
"""Stands in for the kind of weights, for numbers of a training that are not accuracies on the test images."""

MARGIN = "margin: "
"""Beginning of the names of margins: `margin: pgd-20` is the mean over images of z_y - max_k z_k under PGD-20."""

Runs: TypeAlias = Mapping[tuple[str, int], RunFolder]  # by arm and seed


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the trainings that a study compares.

    Args:
        name: Name of the arm in tables and figures.
        recipe: What is trained; each seed of the study replaces the seed in it.
        after: True to train this arm only after those whose folders its recipe names, as `ARM-{seed}`; after all other
            arms if it names none.
        seeds: Number of its seeds; None for that of the study.
    """

    name: str
    recipe: Recipe
    after: bool = False
    seeds: int | None = None

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
    """Trainings with the same seeds, and the claims that they decide; those compared have the same test images.

    Args:
        name: Name on the command line.
        title: Title of the tables.
        source: Link to the paper.
        baseline: Name of the arm that differences are given to.
        arms: The trainings to compare.
        claims: The claims to decide.
        seeds: Number of seeds of an arm that has no number of its own.
        remarks: Notes below the tables.
        apart: Names of adversaries that do not count as the worst and that an arm may go without. Apart from these, all
            arms have the same evaluation.
        measurements: Analyses of each run, after its training and evaluation.
        joint: An analysis of all runs of a seed, after all of them.
        numbers: Function of all runs that returns further numbers `[S]` by arm and name, for claims to use.
        shares: Names of numbers that are shares of examples, and of how many examples at least.
        draw: Function that writes further figures of all runs to the folder of the study.

    Raises:
        UserError: If names clash or are unknown, there is no seed, a claim is made twice or is of an arm or an attack
            that there is not, or the arms have different evaluations.
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
    shares: Mapping[str, int] = field(default_factory=dict)
    draw: Callable[[Runs, Path], None] | None = None

    def __post_init__(self) -> None:
        folders = [arm.folder for arm in self.arms]
        if len(set(folders)) < len(folders):
            raise UserError(f"two arms of a study share a folder: {sorted(folders)}")
        if self.baseline not in [arm.name for arm in self.arms]:
            raise UserError(f"the baseline {self.baseline!r} is none of the arms")
        if self.seeds < 1:
            raise UserError(f"a study has at least one seed, not {self.seeds}")
        sentences = [claim.sentence for claim in self.claims]
        if twice := sorted({sentence for sentence in sentences if sentences.count(sentence) > 1}):
            raise UserError(f"a study makes each claim once, not twice: {twice}; say in each what is claimed of what")
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
        self._check_claims()

    def _check_claims(self) -> None:
        """Refuse a claim about an arm or an adversary that there is not, before hours of training."""
        measured = {arm.name: _measured(arm) for arm in self.arms}
        for claim in self.claims:
            for arm, which, under in sorted(self.asked(claim)):
                if which == RUN:  # a number of an analysis, which may be of a group of arms
                    continue
                if arm not in measured:
                    raise UserError(
                        f"{claim.sentence!r} is about {arm!r}, no arm of the study: {nearest(arm, measured)}"
                    )
                if which not in WEIGHTS:
                    raise UserError(f"{claim.sentence!r} is about {which!r} weights: {nearest(which, [*WEIGHTS, RUN])}")
                if under.removeprefix(MARGIN) not in measured[arm]:
                    raise UserError(
                        f"{claim.sentence!r} is about {under!r}, by which {arm!r} is not evaluated: "
                        f"{nearest(under.removeprefix(MARGIN), measured[arm])}"
                    )

    def seeds_of(self, arm: Arm) -> int:
        """Return the number of seeds of an arm."""
        return arm.seeds or self.seeds

    @property
    def common(self) -> int:
        """Number of seeds that all arms have."""
        return min(self.seeds_of(arm) for arm in self.arms)

    def named(self, arm: Arm) -> tuple[Arm, ...]:
        """Return the other arms whose folders the recipe of an arm names; none of an arm that comes after no other."""
        written = json.dumps(arm.recipe.plain()) if arm.after else ""
        # whole names, as one may be the end of another
        found = set(re.findall(r"([a-z0-9.-]+)-\{seed\}", written))
        return tuple(other for other in self.arms if other is not arm and other.folder in found)

    def needed(self, asked: Iterable[Cell]) -> frozenset[str]:
        """Return the arms that have to be trained for some results, those included that recipes name.

        All arms are needed for the numbers of analyses, which are computed from all runs of a seed.
        """
        cells = list(asked)
        return frozenset(arm.name for arm in self.arms) if _of_analyses(cells) else self._used(cells)

    def _used(self, asked: Iterable[Cell]) -> frozenset[str]:
        """Return the arms of some results, and those that their recipes name."""
        names = {name for name, _, _ in asked}
        arms = [arm for arm in self.arms if arm.name in names]
        return frozenset(each.name for arm in arms for each in (arm, *self.named(arm)))

    def asked(self, claim: Claim) -> frozenset[Cell]:
        """Return the results that the number of a claim is computed from, before there are any."""
        one = np.ones(1)
        known = {(arm.name, which, under): one for arm in self.arms for which in WEIGHTS for under in _measured(arm)}
        cells = Cells(defaultdict(lambda: one, known))
        with np.errstate(all="ignore"):
            claim.statistic(cells)
        return frozenset(cells.asked)

    def ranks(self) -> dict[str, int]:
        """Return the place of each arm in the order of work: which headline claim, from 0 on, is the first to use it.

        The arms that no headline claim uses come last.
        """
        headlines = [claim for claim in self.claims if claim.headline]
        found = dict.fromkeys((arm.name for arm in self.arms), len(headlines))
        for place, claim in reversed([*enumerate(headlines)]):
            found |= dict.fromkeys(self._used(self.asked(claim)), place)
        return found

    def part(self, arms: Collection[str]) -> "Study | None":
        """Return the study of some arms, with the claims on which all arms would give the same verdict.

        These need no other arm and no analyses, and no claim of their family does. Returns None without such a claim or
        the baseline.
        """
        kept = tuple(arm for arm in self.arms if arm.name in arms)
        asked = [(claim, self.asked(claim)) for claim in self.claims]
        left_out = [claim for claim, cells in asked if _of_analyses(cells) or not self._used(cells) <= set(arms)]
        families = {claim.family for claim in left_out} - {""}
        claims = tuple(claim for claim in self.claims if claim not in left_out and claim.family not in families)
        if self.baseline not in arms or not claims:
            return None
        known = {name for arm in kept for name in arm.recipe.evaluation.adversaries}
        apart = tuple(name for name in self.apart if name in known)
        return replace(self, arms=kept, claims=claims, apart=apart, joint=None, numbers=None, draw=None)

    def plan(self, scale: str) -> Plan:
        """Return what the study consists of, as its folder says it."""
        return Plan(
            study=self.name,
            scale=scale,
            arms=tuple(
                {"name": arm.name, "folder": arm.folder, "after": arm.after, "seeds": self.seeds_of(arm)}
                for arm in self.arms
            ),
            analyses={each.kind: each.how for each in self.measurements},
            joint=None if self.joint is None else self.joint.how,
        )


def _measured(arm: Arm) -> tuple[str, ...]:
    """Return the names of the accuracies that an arm is evaluated to."""
    return ("clean", *arm.recipe.evaluation.adversaries, WORST)


def _of_analyses(asked: Iterable[Cell]) -> bool:
    """Return True if some of the results are numbers that analyses give."""
    return any(which == RUN and name not in (COLLAPSED, ONSET) for _, which, name in asked)


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
