"""Work of each job of a study: training, evaluation, and analyses."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..records.run_folder import RunFolder
from ..runs.fit import fit
from ..runs.load import evaluate_run
from ..runs.recipe import recipe_from_plain
from ..training.cost import cost
from ..training.hooks import Interrupted
from .jobs import Together, Training
from .sharing import Work
from .study import JointMeasurement, Measurement, Study


def recipe_of(study: Study, job: Training) -> dict[str, Any]:
    """Return the recipe of a training, as JSON."""
    return next(arm for arm in study.arms if arm.name == job.arm).seeded(job.seed).plain()


def trainings(study: Study, missing: Sequence[Training], joined: Sequence[Together]) -> list[Work]:
    """Return the trainings to do: those for headline claims first, then the longest.

    Arms that come after others have to wait for these.
    """
    passes, ranks = {}, study.ranks()
    for arm in study.arms:
        recipe = arm.recipe
        passes[arm.name] = cost(recipe.method, recipe.update, recipe.epochs, 100).both * recipe.epochs
    first = {job.name for job in missing if not job.after}
    outdated = {each.seed: each.path for each in joined}
    return [
        Work(
            job,
            partial(_trained, job, recipe_of(study, job), study.measurements, outdated.get(job.seed)),
            after=(_before(study, job) or first) if job.after else (),
        )
        for job in sorted(missing, key=lambda job: (ranks[job.arm], job.after, -passes[job.arm]))
    ]


def _before(study: Study, job: Training) -> set[str]:
    """Return the names of the trainings of the same seed that the recipe of one names."""
    [arm] = [arm for arm in study.arms if arm.name == job.arm]
    return {f"{other.folder}-{job.seed}" for other in study.named(arm)}


def _trained(
    job: Training, plain: dict[str, Any], measurements: Sequence[Measurement], outdated: Path | None, device: str
) -> str:
    """Train, evaluate and analyze as far as this is missing, and return the accuracies as text."""
    if outdated is not None:
        outdated.unlink(missing_ok=True)  # the joint analysis of what this run was
    recipe, run = recipe_from_plain(plain), RunFolder(job.path)
    try:
        if run.recipe() is None or not run.finished():
            fit(recipe, job.path, device=device)
    except Interrupted:
        raise KeyboardInterrupt from None
    if not run.evaluated():
        evaluate_run(run, recipe, device=device)
    for look in measurements:
        if not look.done(run):
            with run.locked():
                look.look(run, device, look.how)
    table = run.read_flags("last").table()
    return ", ".join(f"{name} {100 * accuracy.value:.1f} %" for name, accuracy in table.items() if "/" not in name)


def analyses(study: Study, missing: Sequence[Training], joined: Sequence[Together]) -> list[Work]:
    """Return the joint analyses to do, each of which needs all trainings of its seed."""
    if study.joint is None:
        return []
    changed = {job.seed for job in missing}
    return [
        Work(job, partial(_analyzed, job, study.joint), [each.name for each in job.trainings], needs_all=True)
        for job in joined
        if job.seed in changed or not job.done()
    ]


def _analyzed(job: Together, joint: JointMeasurement, device: str) -> str:
    joint.look({each.arm: RunFolder(each.path) for each in job.trainings}, job.path, device, joint.how)
    return "done"
