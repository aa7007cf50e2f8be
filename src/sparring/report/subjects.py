"""Subjects of a report: evaluations by name, with their folders. Imports no torch."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import UserError
from ..records.results import EvaluationResult
from ..records.run_folder import RunFolder, read_evaluated

WEIGHTS = ("best", "last", "weights", "model")
"""The names under which evaluations lie in a folder; the first that is there is what a report is about."""
STUDY = "study.json"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, as a report sees it.

    Args:
        name: Its name in the report.
        path: The folder or file that was named.
        run: Its folder; None for a file of results.
        evaluations: Its evaluations by the weights that were evaluated, the one that counts first.
    """

    name: str
    path: Path
    run: RunFolder | None
    evaluations: Mapping[str, EvaluationResult] = field(default_factory=dict)

    @property
    def weights(self) -> str:
        """Which weights count: the first that were evaluated."""
        return next(iter(self.evaluations), "")

    @property
    def result(self) -> EvaluationResult | None:
        """The evaluation that counts; None if there is none."""
        return next(iter(self.evaluations.values()), None)


def is_study(path: Path) -> bool:
    """Return True if a path is the folder of a study that came to an end."""
    return (path / STUDY).is_file()


def is_model(path: Path) -> bool:
    """Return True if a folder is that of a run, or holds an evaluation."""
    run = RunFolder(path)
    return bool(_evaluated(run)) or (not run.foreign() and run.recipe() is not None)


def _evaluated(run: RunFolder) -> list[str]:
    return [which for which in WEIGHTS if run.flags(which).exists()]


def subjects(targets: Sequence[Path]) -> list[Subject]:
    """Read what the targets name: run folders, folders of evaluations, or .npz files of per-example results."""
    found = [_subject(path, name) for path, name in zip(targets, _names(targets), strict=True)]
    if len(found) > 1:
        for each in found:
            if each.result is None:
                command = shlex.join(["sparring", "evaluate", str(each.path)])
                raise UserError(f"{each.path} holds no evaluation to compare: run {command} first")
    return found


def _names(targets: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    short = [path.resolve().name for path in targets]
    return short if len(set(short)) == len(short) else [str(path) for path in targets]


def _subject(path: Path, name: str) -> Subject:
    if path.is_file():
        return Subject(name, path, None, {path.stem.removeprefix("evaluation-"): read_evaluated(path)})
    if not is_model(path):
        raise UserError(
            f"{path} is no run, no study and no evaluation: name a run folder, the folder of a study that came to its "
            "end, or an .npz file of an evaluation"
        )
    run = RunFolder(path)
    return Subject(name, path, run, {which: run.read_flags(which) for which in _evaluated(run)})
