"""Loss surfaces. No torch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..scores import Array
from .figures import new_figure, save


def landscape(surfaces: Mapping[str, Array], grid: Array, threat: str, path: Path) -> None:
    """A row for each model by name, a column for each image: the loss over (steepest, random) directions.

    `surfaces` are `[P, G, G]` in nats, `grid` `[G]` in eps. Heights of a column have one scale, from the same images.
    """
    count = len(next(iter(surfaces.values())))
    figure = new_figure(3.4 * count + 0.4, 3.1 * len(surfaces) + 0.3)
    along, chance = np.meshgrid(grid, grid, indexing="ij")
    for i, (name, each) in enumerate(surfaces.items()):
        for k in range(count):
            axes = figure.add_subplot(len(surfaces), count, i * count + k + 1, projection="3d")
            low = min(float(s[k].min()) for s in surfaces.values())
            high = max(float(s[k].max()) for s in surfaces.values())
            axes.plot_surface(
                along, chance, each[k], cmap="viridis", vmin=low, vmax=high, rcount=40, ccount=40, linewidth=0
            )
            axes.set(xlabel="steepest, eps", ylabel="random, eps", title=f"{name}, image {k}")
            axes.set_zlim(low, high)
            axes.tick_params(labelsize=6)
    figure.suptitle(f"cross-entropy around test images, {threat}", fontsize=10)
    save(figure, path)
