"""Figures of a run, drawn from the files of its folder. Imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.writing import write_bytes
from ..records.certification import Certification
from ..records.results import Array, EvaluationResult, Examples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text


PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7A6200", "#56B4E9", "#565D68")
"""Seven colours that all readers tell apart, after Okabe and Ito; a frame has at most as many series."""


def plot_learning_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot loss terms and held-out accuracy, clean and robust, over the epochs. Without rows, no file is written."""
    steps = [row for row in rows if "terms" in row]
    epochs = [row for row in rows if "held_out" in row]
    if not steps and not epochs:
        return
    figure, ((left, right),) = panels(9, 3.4, columns=2)
    for name in dict.fromkeys(name for row in steps for name in row["terms"]):
        known = [(row["epoch"], row["terms"][name]) for row in steps if name in row["terms"]]
        left.plot(*zip(*known, strict=True), label=name, linewidth=1)
    left.set(xlabel="epoch", ylabel="loss terms")
    for name in ("clean", "robust"):
        points = [(row["epoch"], 100 * row["held_out"][name]) for row in epochs]
        right.plot(*zip(*points, strict=True) if points else ([], []), label=name, marker="o", markersize=3)
    best = next((row for row in reversed(epochs) if row.get("best")), None)
    if best:
        right.axvline(best["epoch"], color="grey", linestyle=":", label="best")
    right.set(xlabel="epoch", ylabel="held-out accuracy, %", ylim=(0, 100))
    for axes in (left, right):
        finish(axes)
    save(figure, path)


def plot_adversarial_examples(examples: Examples, classes: Sequence[str], path: Path) -> None:
    """Plot one column per example: clean, perturbation (scaled to be visible, with the scale as label), adversarial."""
    delta = examples.adversarial - examples.clean
    largest = float(np.abs(delta).max()) or 1.0
    norms = np.full(len(delta), np.nan) if examples.norm is None else examples.norm
    plot_images(
        [
            ("clean", examples.clean, _predicted(examples.clean_prediction, examples, classes)),
            (
                f"perturbation\n(largest {largest:.3g})",
                0.5 + delta / (2 * largest),
                [(f"eps {norm:.3g}" if np.isfinite(norm) else "", "black") for norm in norms],
            ),
            ("adversarial", examples.adversarial, _predicted(examples.adversarial_prediction, examples, classes)),
        ],
        path,
        inches=1.4,
    )


def _predicted(predicted: Array, examples: Examples, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Name and colour of each predicted class; a number outside the classes means that the logits were not finite."""
    return [
        (classes[each] if 0 <= each < len(classes) else "no class", "black" if each == label else "crimson")
        for each, label in zip(map(int, predicted), examples.label, strict=True)
    ]


def plot_robustness_curve(
    found: Mapping[str, EvaluationResult], norm: str, points: Mapping[str, float], path: Path
) -> None:
    """Plot accuracy against eps, from the smallest distances found, with 95 % Wilson bands.

    `points` are the adversaries that were run in the same norm, each at its own eps; the curve does not exceed them.
    """
    figure = new_figure(6, 3.8)
    axes = figure.subplots()
    curves = {which: each for which, each in found.items() if each.distance is not None}
    finite = [d[np.isfinite(d)] for e in curves.values() if (d := e.distance) is not None]
    reach = max(
        [1e-3, *(1.5 * eps for eps in points.values()), *(float(np.quantile(d, 0.99)) for d in finite if len(d))]
    )
    grid = np.linspace(0, reach, 200)
    for which, evaluated in curves.items():
        at = [evaluated.robust_at(float(e)) for e in grid]
        (line,) = axes.plot(grid, [100 * a.value for a in at], label=f"{which}: minimum-norm attacks")
        low, high = zip(*(a.interval for a in at), strict=True)
        axes.fill_between(grid, 100 * np.array(low), 100 * np.array(high), alpha=0.2, color=line.get_color())
        for marker, (name, eps) in zip("os^vD" * len(points), points.items(), strict=False):
            accuracy = evaluated.table()[name]
            below, above = accuracy.interval
            bars = [[max(0.0, 100 * (accuracy.value - below))], [max(0.0, 100 * (above - accuracy.value))]]
            style: dict[str, Any] = {"fmt": marker, "color": line.get_color(), "capsize": 3, "markersize": 4}
            axes.errorbar([eps], [100 * accuracy.value], yerr=bars, label=f"{which}: {name}", **style)
    axes.set(xlabel=f"eps ({norm})", ylabel="accuracy, %", xlim=(0, reach), ylim=(0, 100))
    finish(axes)
    save(figure, path)


def plot_certified_accuracy(found: Mapping[str, Certification], path: Path) -> None:
    """Plot certified accuracy against the L2 radius, with 95 % Wilson bands."""
    figure = new_figure(6, 3.8)
    axes = figure.subplots()
    reach = max(1e-3, *(each.largest_radius for each in found.values()))
    grid = np.linspace(0, 1.05 * reach, 200)
    for which, each in found.items():
        at = list(each.accuracies(grid.tolist()).values())
        (line,) = axes.plot(grid, [100 * a.value for a in at], label=f"{which}, {each.terms}")
        low, high = zip(*(a.interval for a in at), strict=True)
        axes.fill_between(grid, 100 * np.array(low), 100 * np.array(high), alpha=0.2, color=line.get_color())
    axes.set(xlabel="radius (L2)", ylabel="certified accuracy, %", xlim=(0, grid[-1]), ylim=(0, 100))
    finish(axes)
    save(figure, path)


def plot_images(
    rows: Sequence[tuple[str, Iterable[Array], Sequence[tuple[str, str]]]], path: Path, *, inches: float
) -> None:
    """Plot rows of images `[C, H, W]` in [0, 1], each with a label and with a title and its colour above each image.

    `inches` is the width of an image. All are drawn on one pair of axes: a pair each is some twenty times as slow.
    """
    columns, space = max(3, *(len(list(images)) for _, images, _ in rows)), 0.22
    figure = new_figure(inches * (1.05 * columns + 0.5), inches * (1 + space) * len(rows), constrained=False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for row, (label, images, titles) in enumerate(rows):
        top = row * (1 + space) + 0.85 * space
        axes.text(-0.1, top + 0.5, label, rotation=90, ha="right", va="center", fontsize=6.5 * inches)
        for column, image in enumerate(images):
            left = 1.05 * column
            shown = np.clip(image.transpose(1, 2, 0), 0, 1)
            high, wide = (side / max(shown.shape[:2]) for side in shown.shape[:2])
            shown = shown[:, :, 0] if shown.shape[2] == 1 else shown
            axes.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(left, left + wide, top + high, top))
            if column < len(titles):
                text, colour = titles[column]
                axes.text(left + 0.5, top - 0.03, text, ha="center", fontsize=5.7 * inches, color=colour)
    axes.set(xlim=(-0.5, 1.05 * columns), ylim=(len(rows) * (1 + space), 0))
    save(figure, path)


def new_figure(width: float, height: float, *, constrained: bool = True) -> "Figure":
    """An empty figure; width and height are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)  # instead of pyplot, which needs a window system and global state
    figure.add_axobserver(lambda changed: changed.axes[-1].set_prop_cycle(color=PALETTE))
    return figure


def panels(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple["Figure", Any]:
    """An empty figure with a grid `[rows, columns]` of axes; width and height are in inches.

    The margins are fixed: a layout that fits them to the labels draws everything twice.
    """
    figure = new_figure(width, height, constrained=False)
    left, right, top, bottom, apart, below = 0.7, 0.15, 0.35, 0.5, 0.95, 0.85  # inches
    wide, high = width - left - right - apart * (columns - 1), height - top - bottom - below * (rows - 1)
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=apart * columns / wide,
        hspace=below * rows / high,
    )
    return figure, figure.subplots(rows, columns, squeeze=False)


def finish(axes: "Axes") -> None:
    """Add a grid, and a legend if there are labels."""
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _powers(figure: "Figure") -> "set[Text]":
    """Return the texts beside logarithmic axes, which are powers of ten; what they say is known when they are drawn."""
    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis) if axis.get_scale() == "log"]
    ticks = [tick for axis in axes for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())]
    return {text for tick in ticks for text in (tick.label1, tick.label2)}


def save(figure: "Figure", path: Path) -> None:
    """Write a figure in the format of its file name; equal figures give equal files."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    powers = _powers(figure)
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in powers:
            text.set_parse_math(False)  # names may hold dollars
    drawn = BytesIO()  # drawing may fail, and must leave no partial file
    with rc_context({"svg.hashsalt": "sparring", "svg.fonttype": "none"}):  # deterministic ids in SVG
        how: dict[str, Any] = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
        figure.savefig(drawn, dpi=130, format=path.suffix[1:], **how)
    write_bytes(path, drawn.getvalue())
