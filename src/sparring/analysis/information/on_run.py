"""The information analysis of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.writing import replacing, write_json
from ...records.run_folder import RunFolder
from ..runs import AnalyzedModel, open_last
from .measure import Information, measure_information
from .plot import plot_information


def analyze_information(subject: AnalyzedModel, *, examples: int, **how: Any) -> Information:
    """Measure the information of the weights on the first `examples` training images, the rest on the test images.

    `how` are further arguments of `measure_information`. The covariance of pixels is that of up to 2,000 training
    images.
    """
    training = subject.training.data
    few, many = (training[: min(count, len(training))] for count in (examples, _PIXELS))
    return measure_information(subject.model, few, subject.test, pixels_of=many, **how)


_PIXELS = 2000


def write_information(
    run: RunFolder, found: Sequence[tuple[str, Information]], how: Mapping[str, Any], draw: bool = True
) -> None:
    """Write `analysis-information.npz`, `.png` (of all runs) and, last, `.json`; data files are of the first run."""
    first = found[0][1]
    with replacing(run.analysis("information", "npz")) as file:
        np.savez_compressed(file, **first.arrays())  # type: ignore[arg-type]
    if draw:
        shown = [(name, np.sqrt(each.eigenvalues), dict(each.values)) for name, each in found]
        plot_information(shown, run.analysis("information", "png"))
    write_json(run.analysis("information", "json"), {**first.plain(), "how": dict(how)})


def study_information(run: RunFolder, device: str, how: Mapping[str, Any]) -> None:
    """Run the analysis of a study after each training: on the last weights, with the seed of the run and no picture."""
    subject, _ = open_last(run, how["examples"], device)
    write_information(run, [(run.path.name, analyze_information(subject, seed=subject.seed, **how))], how, draw=False)
