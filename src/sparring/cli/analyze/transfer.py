"""The command `sparring analyze RUN transfer`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...core.errors import UserError
from ..common import say
from .common import Common, how, open_runs, print_if_json, say_files

if TYPE_CHECKING:
    from ...analysis.transfer.on_run import TransferAnalysis


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    to: tuple[str, ...] = ()
    """The tasks: digits, fashion_mnist, cifar10:DIR, folder:DIR, npz:FILE, ..; they are changed by +rotated, +inverted
    and +classes=0-4."""
    resize: bool = False
    """Convert images of another size or number of channels to those that the model takes."""
    fit: Literal["stretch", "crop"] = "stretch"
    """With --resize, what happens to images of another shape: they are stretched, or their centre is cut out."""
    mode: Literal["head", "norms", "block", "layers", "all"] = "head"
    """Parts to fit: a new head; batch norm too; the last block too; the --layers too; everything."""
    layers: tuple[str, ...] = ()
    """Modules to fit in the mode layers, by name, such as layer4."""
    pooled: bool = False
    """Fit the head to features that are averaged over the image, one for each channel, instead of the whole map."""
    shots: tuple[int, ...] = (100, 400, 1600)
    """Numbers of images of the task to fit to."""
    seeds: int = 3
    """Number of repetitions, each with other images."""
    images: int = 1000
    """Number of test images of a task, taken from the beginning."""
    distance_examples: int = 200
    """Number of images of each task for its distance, at least one per class; with 0 it is not measured."""
    epochs: int = 20
    """Epochs of fitting, if more than a head is fitted."""
    lr: float = 0.01
    """Initial learning rate of fitting, if more than a head is fitted."""
    batch_size: int = 64
    """Batch size of fitting."""


def run(target: str, options: Options) -> int:
    from ...analysis import FineTuning
    from ...analysis.transfer.on_run import analyze_transfer_learning, write_transfers

    if not options.to:
        raise UserError("no task is named: give --to digits, or --to fashion_mnist+classes=5-9 for some classes")
    if options.distance_examples < 0:
        raise UserError(
            f"--distance-examples {options.distance_examples} is below 0; with 0, distances are not measured"
        )
    runs = open_runs(target, options)
    names = {key: getattr(options, key) for key in ("resize", "fit", "seeds", "images", "distance_examples", "seed")}
    tuning = FineTuning(
        options.mode, options.epochs, options.lr, options.batch_size, layers=options.layers, pooled=options.pooled
    )
    found = {
        name: analyze_transfer_learning(run, options.to, counts=options.shots, how=tuning, **names)
        for name, run in runs.items()
    }
    write_transfers(next(iter(runs.values())).run, list(found.items()), how(options))
    if print_if_json(runs, found, options):
        return 0
    _show(found, len(next(iter(runs.values())).test), "features averaged over the image; " if options.pooled else "")
    say_files(runs, "transfer")
    return 0


def _show(found: "dict[str, TransferAnalysis]", own: int, features: str) -> None:
    from rich import print as rich_print
    from rich.markup import escape
    from rich.table import Table

    first = next(iter(found.values()))
    gains = list(found)[1:]
    table = Table("task", "images", *map(escape, [*found, *(f"{name}, gain" for name in gains)]))
    table.add_row("its own", "", *(f"{100 * each.own:.1f} %" for each in found.values()), *([""] * len(gains)))
    for task, accuracy in first.accuracy.items():
        for i, count in enumerate(first.shots):
            each = [f"{100 * one.accuracy[task][:, i].mean():.1f} %" for one in found.values()]
            gained = [_gain(found[name].accuracy[task][:, i] - accuracy[:, i]) for name in gains]
            table.add_row(task if i == 0 else "", str(count), *each, *gained)
        if task in first.distance:
            table.add_row("", "distance", *(f"{one.distance[task]:.3f}" for one in found.values()))
    rich_print(table)
    say(
        f"{features}test accuracy, mean over draws of the images fitted to; gains over the first run, in points, with "
        "95 % intervals over these draws (Student's t): another training would differ by more. The own task of the "
        f"run is tested on {own} images"
    )


def _gain(points: "object") -> str:
    import numpy as np
    from scipy.stats import t

    values = 100 * np.asarray(points)
    if len(values) < 2:
        return f"{values.mean():+.1f}"
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.1f} [{values.mean() - half:+.1f}, {values.mean() + half:+.1f}]"
