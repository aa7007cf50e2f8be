"""What the features of a run are worth."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...core.rng import make_rng
from ...core.types import Threat
from ...core.writing import write_json
from ...records.run_folder import RunFolder
from .. import Representation
from ..runs import Looked, last_of
from . import measure as representation
from . import plot as representation_plots


def represented(looked: Looked, threat: Threat, *, bank: int = 5000, **how: Any) -> Representation:
    """What the features of a run are worth, read by `bank` of its training images; `how` as the analysis."""
    data = looked.training.data
    rows = torch.randperm(len(data), generator=make_rng(0))[:bank].sort().values.to(data.y.device)
    return representation(looked.model, data[rows], looked.test, threat, **how)


def write_representation(run: RunFolder, found: Sequence[tuple[str, Representation]], how: Mapping[str, Any]) -> None:
    """`analysis-representation.png` of all runs and, last, `.json` of the first."""
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
    representation_plots.representation(drawn, run.analysis("representation", "png"))
    write_json(run.analysis("representation", "json"), {**found[0][1].plain(), "how": dict(how)})


def look_at_representation(run: RunFolder, device: str, how: Mapping[str, Any]) -> None:
    """What a study does after each training: as for memorization."""
    rest: dict[str, Any] = {key: each for key, each in how.items() if key != "examples"}
    rest["softness"] = tuple(how["softness"])
    looked, threat = last_of(run, how["examples"], device)
    write_representation(run, [(run.path.name, represented(looked, threat, **rest))], how)
