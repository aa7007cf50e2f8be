"""Plots of memorization and of the stability of losses. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...records.results import Array
from ...report.figures import finish, panels, save


class Memorized(NamedTuple):
    """Measurements of a run: change and cosine of the gradient by (loss, direction) over `lengths`, and curves.

    `gradients` are (epoch, length of the gradient); `accuracy` is (epochs, robust training accuracy), or None if the
    run recorded no example history.
    """

    name: str
    lengths: Array
    change: Mapping[tuple[str, str], Array]
    cosine: Mapping[tuple[str, str], Array]
    gradients: Sequence[tuple[float, float]]
    accuracy: tuple[Array, Array] | None


_COLOURS = {"clean": "tab:blue", "PGD-AT": "tab:red", "TRADES": "tab:green"}


def plot_memorization(runs: Sequence[Memorized], path: Path) -> None:
    """Plot a row for each run: robust training accuracy, length of the gradient, and its change and cosine."""
    figure, grid = panels(15, 3.2 * len(runs), len(runs), 4)
    for run, (accuracy, gradient, change, cosine) in zip(runs, grid, strict=True):
        if run.accuracy is not None:
            accuracy.plot(run.accuracy[0], 100 * run.accuracy[1], marker="o", markersize=2, linewidth=1)
        accuracy.set(xlabel="epoch", ylabel="robust training accuracy, %", ylim=(0, 100), title=run.name)
        if run.gradients:
            gradient.plot(*zip(*run.gradients, strict=True), linewidth=0.8, color="grey")
        gradient.set(xlabel="epoch", ylabel="length of the gradient in training")
        for axes, found, label in ((change, run.change, "change of the gradient"), (cosine, run.cosine, "cosine")):
            for (loss, way), values in found.items():
                style = "-" if way == "up" else "--"
                look: dict[str, Any] = {"color": _COLOURS.get(loss), "linewidth": 1.2, "marker": "o", "markersize": 3}
                axes.plot(run.lengths, values, style, label=f"{loss}, {way}", **look)
            axes.set(xscale="log", xlabel="weights moved by", ylabel=label)
        if all(np.all(values > 0) for values in run.change.values()):
            change.set(yscale="log")
        for axes in (accuracy, gradient, change, cosine):
            finish(axes)
    save(figure, path)
