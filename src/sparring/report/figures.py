"""Figures of a run, drawn from the files of its folder. Imports no torch."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.writing import write_bytes
from ..records.results import Array, EvaluationResult, Examples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_learning_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot loss terms and held-out accuracy, clean and robust, over the epochs. Without rows, no file is written."""
    steps = [row for row in rows if "terms" in row]
    epochs = [row for row in rows if "held_out" in row]
    if not steps and not epochs:
        return
    figure = new_figure(9, 3.4)
    left, right = figure.subplots(1, 2)
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
    count = len(examples.label)
    delta = examples.adversarial - examples.clean
    largest = float(np.abs(delta).max()) or 1.0
    figure = new_figure(1.4 * max(3, count) + 0.6, 5.2)
    grid = figure.subplots(3, count, squeeze=False)
    rows = (examples.clean, 0.5 + delta / (2 * largest), examples.adversarial)
    titles = (examples.clean_prediction, None, examples.adversarial_prediction)
    for axes_row, images, predicted in zip(grid, rows, titles, strict=True):
        for i, axes in enumerate(axes_row):
            picture(axes, images[i])
            if predicted is not None:
                right = predicted[i] == examples.label[i]
                axes.set_title(_name(classes, int(predicted[i])), fontsize=8, color="black" if right else "crimson")
            elif examples.norm is not None and np.isfinite(examples.norm[i]):
                axes.set_title(f"eps {examples.norm[i]:.3g}", fontsize=8)
    for axes, label in zip(grid[:, 0], ("clean", f"perturbation\n(largest {largest:.3g})", "adversarial"), strict=True):
        axes.set_ylabel(label, fontsize=9)
    save(figure, path)


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


def _name(classes: Sequence[str], number: int) -> str:
    """The name of a predicted class; a number outside the classes means that the logits were not finite."""
    return classes[number] if 0 <= number < len(classes) else "no class"


def picture(axes: "Axes", image: Array) -> None:
    """Draw one image `[C, H, W]` in [0, 1]."""
    shown = np.clip(image.transpose(1, 2, 0), 0, 1)
    axes.imshow(shown[:, :, 0] if shown.shape[2] == 1 else shown, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure; width and height are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # instead of pyplot, which needs a window system and global state
    return figure


def finish(axes: "Axes") -> None:
    """Add a grid, and a legend if there are labels."""
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def save(figure: "Figure", path: Path) -> None:
    """Write a figure in the format of its file name; equal figures give equal files."""
    from matplotlib import rc_context

    drawn = BytesIO()  # drawing may fail, and must leave no partial file
    with rc_context({"svg.hashsalt": "sparring", "svg.fonttype": "none"}):  # deterministic ids in SVG
        how: dict[str, Any] = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
        figure.savefig(drawn, dpi=130, format=path.suffix[1:], **how)
    write_bytes(path, drawn.getvalue())
