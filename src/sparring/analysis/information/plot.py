"""Plots of the information, transfer and inversion analyses. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...records.results import Array
from ...report.figures import finish, new_figure, plot_images, save

_BARS = (
    ("weights: trace: all", "weights: trace"),
    ("prediction: trace", "prediction: trace"),
    ("representation: trace", "representation: trace"),
    ("representation: scale-free", "representation: scale-free"),
)


def plot_information(runs: Sequence[tuple[str, Array, Mapping[str, Array]]], path: Path) -> None:
    """Plot the mean singular values of J (left) and the traces on a logarithmic axis (right) of each run.

    `runs` are (name, singular values `[N, m]`, values of each image by name).
    """
    figure = new_figure(11, 3.8)
    left, right = figure.subplots(1, 2)
    for i, (name, singular, values) in enumerate(runs):
        mean = singular.mean(0)
        left.plot(np.arange(1, len(mean) + 1), np.maximum(mean, 1e-12), label=name, linewidth=1.2)
        places = np.arange(len(_BARS)) + 0.8 * (i - (len(runs) - 1) / 2) / len(runs)
        right.bar(places, [values[key].mean() for key, _ in _BARS], 0.7 / len(runs), label=name)
    left.set(yscale="log", xlabel="number", ylabel="singular value of the derivative by the image")
    right.set(yscale="log", ylabel="mean over images")
    right.set_xticks(range(len(_BARS)), [label.replace(": ", ":\n") for _, label in _BARS], fontsize=8)
    for axes in (left, right):
        finish(axes)
    save(figure, path)


def plot_transfers(runs: Sequence[tuple[str, Mapping[str, Array], Sequence[int]]], path: Path) -> None:
    """Plot, for each task, accuracy `[seeds, shots]` over the number of images that were fitted to.

    The line of a run is the mean over seeds, the band goes from the smallest to the largest.
    """
    tasks = list(runs[0][1])
    figure = new_figure(4.2 * len(tasks), 3.4)
    grid = figure.subplots(1, len(tasks), squeeze=False)[0]
    for task, axes in zip(tasks, grid, strict=True):
        for name, accuracy, shots in runs:
            found = 100 * accuracy[task]
            (line,) = axes.plot(shots, found.mean(0), marker="o", markersize=3, linewidth=1.2, label=name)
            axes.fill_between(shots, found.min(0), found.max(0), alpha=0.15, color=line.get_color())
        axes.set(xscale="log", xlabel="images of the task", ylabel="test accuracy, %", title=task)
        finish(axes)
    save(figure, path)


def plot_inversions(rows: Sequence[tuple[str, Array, Sequence[tuple[str, Array]]]], path: Path) -> None:
    """Plot originals in the first column, then the inversions of each network; one row per image, one block per source.

    `rows` are (source of the images, originals `[P, C, H, W]`, (network, images) for each network).
    """
    names = [(name, "black") for name in ("original", *(name for name, _ in rows[0][2]))]
    lines = [
        (where if i == 0 else "", [original, *(images[i] for _, images in nets)], names if block == i == 0 else [])
        for block, (where, originals, nets) in enumerate(rows)
        for i, original in enumerate(originals)
    ]
    plot_images(lines, path, inches=1.1)


def plot_features(runs: Sequence[tuple[str, Array, Array]], path: Path) -> None:
    """Plot a row for each run: images of maximised features `[F, C, H, W]`, then interpolations `[N, S, C, H, W]`."""
    titles = [(f"feature {i + 1}", "black") for i in range(len(runs[0][1]))]
    for i, way in enumerate(runs[0][2]):
        titles += [(f"way {i + 1}", "black"), *[("", "black")] * (len(way) - 1)]
    lines = [
        (name, [*maximised, *(image for way in between for image in way)], titles if run == 0 else [])
        for run, (name, maximised, between) in enumerate(runs)
    ]
    plot_images(lines, path, inches=1.0)


def plot_against_eps(eps: Sequence[float], panels: Mapping[str, Mapping[str, Array]], path: Path) -> None:
    """Plot one panel for each kind of number, one line for each entry: means over seeds `[S, eps]`, seeds as dots."""
    figure = new_figure(5.2 * len(panels), 3.8)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    places = np.arange(len(eps))
    for (title, lines), axes in zip(panels.items(), grid, strict=True):
        for name, values in lines.items():
            (line,) = axes.plot(places, values.mean(0), linewidth=1.2, label=name)
            axes.plot(np.tile(places, len(values)), values.ravel(), ".", markersize=3, color=line.get_color())
        axes.set(xlabel="eps in training (L2)", ylabel=title)
        axes.set_xticks(places, [f"{each:g}" for each in eps])
        finish(axes)
    save(figure, path)
