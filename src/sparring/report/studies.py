"""The figure of a study. Imports no torch."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..records.results import Array
from .figures import PALETTE, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

Estimate = tuple[float, float, float]
Curves = Mapping[str, tuple[Array, Array]]
FRAMES = 3
"""Number of small frames beside each other."""
CONTEXT = 12
"""Number of points, about, of a curve that is grey context: all curves are in all frames."""


def plot_study(
    rows: Sequence[tuple[str, Mapping[str, Estimate]]],
    curves: Curves,
    title: str,
    path: Path,
) -> None:
    """Plot final accuracies with intervals by training and adversary (left) and robust accuracy over passes (right).

    `rows` are (training, {adversary: (value, low, high)}), `curves` are (passes, held-out robust accuracy). More curves
    than a frame can show have a small frame each, with all others in grey. Without curves there is the left part alone.
    """
    if not curves:
        figure = new_figure(8, 1.9 + 0.3 * len(rows))
        _plot_accuracies(figure.subplots(), rows)
    else:
        figure = new_figure(14, 1.9 + max(0.3 * len(rows), 0.85 * math.ceil(len(curves) / FRAMES)))
        parts: Any = figure.subfigures(1, 2, width_ratios=(1.1, 1), wspace=0.03)
        left, right = parts
        _plot_accuracies(left.subplots(), rows)
        if len(curves) <= len(PALETTE):
            _plot_together(right.subplots(), curves)
        else:
            _plot_apart(right, curves)
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def _plot_accuracies(axes: "Axes", rows: Sequence[tuple[str, Mapping[str, Estimate]]]) -> None:
    ranked = sorted(rows, key=lambda row: row[1]["worst"][0])
    names = [name for name in ranked[0][1] if name != "worst" and all(name in row[1] for row in rows)]
    shown = [*names[: len(PALETTE) - 1], "worst"]
    for name, marker in zip(shown, [*"o^svPX"[: len(shown) - 1], "D"], strict=True):
        at = [100 * row[1][name][0] for row in ranked]
        bars = [
            [max(0.0, 100 * (row[1][name][0] - row[1][name][1])) for row in ranked],
            [max(0.0, 100 * (row[1][name][2] - row[1][name][0])) for row in ranked],
        ]
        colour: dict[str, Any] = {"color": "black"} if name == "worst" else {}
        axes.errorbar(at, range(len(ranked)), xerr=bars, fmt=marker, markersize=4, capsize=2, label=name, **colour)
    axes.set(yticks=range(len(ranked)), xlabel="test accuracy, %, with 95 % intervals", xlim=(0, 100))
    axes.set_yticklabels([row[0] for row in ranked], fontsize=8)
    axes.legend(fontsize=8, ncols=len(shown), loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    axes.grid(alpha=0.3)


def _plot_together(axes: "Axes", curves: Curves) -> None:
    """Plot all curves in one frame, each with its name at its end."""
    for name, (passes, accuracy) in curves.items():
        (line,) = axes.plot(passes, 100 * accuracy, linewidth=1.5)
        end, colour = (float(passes[-1]), 100 * float(accuracy[-1])), line.get_color()
        axes.annotate(name, end, (5, 0), textcoords="offset points", fontsize=8, color=colour, va="center")
    axes.set(xlabel=_PASSES, ylabel=_ROBUST, ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)


def _plot_apart(figure: "SubFigure", curves: Curves) -> None:
    """Plot each curve in a frame of its own, with all others in grey."""
    grid = list(figure.subplots(math.ceil(len(curves) / FRAMES), FRAMES, sharex=True, sharey=True, squeeze=False).flat)
    for axes, name in zip(grid, curves, strict=False):
        for passes, accuracy in curves.values():
            every = max(1, len(passes) // CONTEXT)
            axes.plot(passes[::every], 100 * accuracy[::every], color="0.85", linewidth=0.7)
        passes, accuracy = curves[name]
        axes.plot(passes, 100 * accuracy, color=PALETTE[0], linewidth=1.6)
        axes.set_title(textwrap.fill(name, 32), fontsize=7.5, loc="left", pad=2)
        axes.set_ylim(0, None)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel(_PASSES, fontsize=9)
    figure.supylabel(_ROBUST, fontsize=9)


_PASSES = "forward-backward passes, millions of images"
_ROBUST = "held-out robust accuracy, %"
