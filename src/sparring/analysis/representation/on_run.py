"""The representation analysis of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...core.rng import make_rng
from ...core.types import Threat
from ...core.writing import write_json
from ...records.run_folder import RunFolder
from ..runs import AnalyzedModel, open_last
from .measure import Representation, measure_representation
from .plot import plot_representation


def analyze_representation(
    subject: AnalyzedModel, threat: Threat, *, bank: int = 5000, seed: int = 0, **how: Any
) -> Representation:
    """Measure the representation of a run with heads fitted on `bank` of its training images, drawn by `seed`.

    `how` are further arguments of `measure_representation`.
    """
    data = subject.training.data
    rows = torch.randperm(len(data), generator=make_rng(seed))[:bank].sort().values.to(data.y.device)
    return measure_representation(subject.model, data[rows], subject.test, threat, seed=seed, **how)


def write_representation(
    run: RunFolder, found: Sequence[tuple[str, Representation]], how: Mapping[str, Any], draw: bool = True
) -> None:
    """Write `analysis-representation.png` of all runs and, last, `.json` of the first."""
    if draw:
        drawn = [
            (
                name,
                {
                    reading: [(each.value, *each.interval) for each in (r.clean, r.robust, r.defense_success_rate)]
                    for reading, r in one.readings.items()
                },
            )
            for name, one in found
        ]
        plot_representation(drawn, run.analysis("representation", "png"))
    write_json(run.analysis("representation", "json"), {**found[0][1].plain(), "how": dict(how)})


def study_representation(run: RunFolder, device: str, how: Mapping[str, Any]) -> None:
    """Run the analysis of a study after each training, with the last weights and the threat of the evaluation.

    No figure is drawn.
    """
    rest: dict[str, Any] = {key: each for key, each in how.items() if key != "examples"}
    rest["softness"] = tuple(how["softness"])
    subject, threat = open_last(run, how["examples"], device)
    write_representation(run, [(run.path.name, analyze_representation(subject, threat, **rest))], how, draw=False)
