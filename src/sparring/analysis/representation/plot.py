"""Plots of the accuracy of heads on representations, and of the trade-off with robustness. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...records.results import Array
from ...report.figures import finish, new_figure, panels, save

Estimate = tuple[float, float, float]
_KINDS = ("clean", "robust", "defended")
_COLOURS = ("tab:blue", "tab:red", "tab:green")


def plot_representation(runs: Sequence[tuple[str, Mapping[str, Sequence[Estimate]]]], path: Path) -> None:
    """Plot a panel for each run with three bars for each head: clean, robust, and defended share."""
    figure, (grid,) = panels(5 * len(runs), 3.6, columns=len(runs))
    for (name, readings), axes in zip(runs, grid, strict=True):
        for i, (kind, colour) in enumerate(zip(_KINDS, _COLOURS, strict=True)):
            value, low, high = 100 * np.array([bars[i] for bars in readings.values()]).T
            places = np.arange(len(readings)) + 0.27 * (i - 1)
            error = np.abs(np.stack([value - low, high - value]))
            axes.bar(places, value, 0.25, yerr=error, color=colour, label=kind, error_kw={"linewidth": 0.8})
        axes.set_xticks(range(len(readings)), [each.replace(" ", "\n", 1) for each in readings], fontsize=8)
        axes.set(ylim=(0, 100), ylabel="%", title=name)
        finish(axes)
    save(figure, path)


def plot_tradeoff(
    curves: Mapping[str, tuple[Array, Array]], points: Mapping[str, tuple[float, float]], path: Path
) -> None:
    """Plot accuracy against the defended share: curves over epochs, the last one a large dot, and named points."""
    figure = new_figure(6.5, 4.6)
    axes = figure.subplots()
    for name, (clean, defense_success_rate) in curves.items():
        (line,) = axes.plot(100 * clean, 100 * defense_success_rate, marker=".", linewidth=1, label=name)
        axes.plot(100 * clean[-1], 100 * defense_success_rate[-1], marker="o", color=line.get_color())
    for name, (clean_, defended_) in points.items():
        axes.plot(100 * clean_, 100 * defended_, "k^")
        axes.annotate(name, (100 * clean_, 100 * defended_), fontsize=8, xytext=(4, 4), textcoords="offset points")
    axes.set(xlabel="accuracy on clean held-out images, %", ylabel="of these, defended under the PGD that selects, %")
    axes.set_title("A dot is an epoch, a large one the last; a triangle is the last epoch with labels", fontsize=8)
    finish(axes)
    save(figure, path)
