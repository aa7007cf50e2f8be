"""The figure of a study. Imports no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..records.results import Array
from .figures import finish, new_figure, save

Estimate = tuple[float, float, float]


def plot_study(
    rows: Sequence[tuple[str, Mapping[str, Estimate]]],
    curves: Mapping[str, tuple[Array, Array]],
    title: str,
    path: Path,
) -> None:
    """Plot final accuracies with intervals by training and adversary (left) and robust accuracy over passes (right).

    `rows` are (training, {adversary: (value, low, high)}), `curves` are (passes, held-out robust accuracy).
    """
    figure = new_figure(14, 1.4 + 0.32 * len(rows))
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    ranked = sorted(rows, key=lambda row: row[1]["worst"][0])
    names = [name for name in ranked[0][1] if name != "worst" and all(name in row[1] for row in rows)]
    for name, marker in zip([*names, "worst"], "o^sDvP" * 2, strict=False):
        at = [100 * row[1][name][0] for row in ranked]
        bars = [
            [max(0.0, 100 * (row[1][name][0] - row[1][name][1])) for row in ranked],
            [max(0.0, 100 * (row[1][name][2] - row[1][name][0])) for row in ranked],
        ]
        colour = "black" if name == "worst" else None
        left.errorbar(at, range(len(ranked)), xerr=bars, fmt=marker, markersize=4, capsize=2, label=name, color=colour)
    left.set(yticks=range(len(ranked)), xlabel="test accuracy, %", xlim=(0, 100))
    left.set_yticklabels([row[0] for row in ranked], fontsize=8)
    styles = ("-", "--", "-.", ":")
    for i, (name, (passes, accuracy)) in enumerate(curves.items()):
        right.plot(passes, 100 * accuracy, styles[i // 10 % 4], label=name, linewidth=1.2)
    right.set(
        xlabel="forward-backward passes, millions of images", ylabel="held-out robust accuracy, %", ylim=(0, None)
    )
    finish(left)
    right.grid(alpha=0.3)
    figure.legend(*right.get_legend_handles_labels(), fontsize=7, loc="outside right center")
    figure.suptitle(title, fontsize=10)
    save(figure, path)
