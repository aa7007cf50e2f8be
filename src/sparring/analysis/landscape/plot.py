"""Plots of loss surfaces. No torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...records.results import Array
from ...report.figures import new_figure, save


def plot_landscape(surfaces: Sequence[tuple[str, Array]], grid: Array, threat: str, path: Path) -> None:
    """Plot the loss over (steepest, random) directions: a row for each named model, a column for each image.

    `surfaces` are names and losses `[P, G, G]` in nats, of the same images; `grid` `[G]` is in eps. The surfaces of a
    column share one scale.
    """
    count = len(surfaces[0][1])
    figure = new_figure(3.2 * count + 0.4, 3.0 * len(surfaces) + 0.4)
    ends = [float(grid[0]), 0.0, float(grid[-1])]
    along, chance = np.meshgrid(grid, grid, indexing="ij")
    for i, (name, each) in enumerate(surfaces):
        for k in range(count):
            axes = figure.add_subplot(len(surfaces), count, i * count + k + 1, projection="3d")
            low = min(float(s[k].min()) for _, s in surfaces)
            high = max(float(s[k].max()) for _, s in surfaces)
            axes.plot_surface(
                along,
                chance,
                each[k],
                cmap="viridis",
                vmin=low,
                vmax=high,
                rcount=40,
                ccount=40,
                linewidth=0,
                antialiased=False,
            )
            axes.set_title(f"{name}, image {k}", fontsize=9, pad=0)
            axes.set_xlabel("steepest, eps", fontsize=7, labelpad=-4)
            axes.set_ylabel("random, eps", fontsize=7, labelpad=-4)
            axes.set(xticks=ends, yticks=ends, zlim=(low, high))
            axes.tick_params(labelsize=6, pad=-2)
            axes.set_box_aspect(None, zoom=0.9)
    figure.suptitle(f"cross-entropy around test images, {threat}", fontsize=10)
    save(figure, path)
