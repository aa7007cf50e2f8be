"""The command `sparring analyze RUN inversion`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...core.errors import UserError
from ..common import say
from .common import Common, how, open_runs, print_if_json, say_files

if TYPE_CHECKING:
    from ...analysis.inversion.on_run import InversionAnalysis


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    examples: int = 64
    """Number of images to reconstruct, taken from the beginning of the test set."""
    layers: tuple[str, ...] = ("features",)
    """Layers to match: features (the input of the head), or modules of the model by name."""
    search: Literal["descent", "adam", "fourier", "network"] = "descent"
    """descent: normalised gradient steps, as in attacks; or Adam on pixels (adam), on Fourier coefficients (fourier),
    or on the weights of a network that generates the image (network)."""
    steps: int = 400
    """Number of steps of the search."""
    smooth: float = 0.0
    """Weight of the total variation, a prior that does not depend on the model."""
    on: tuple[str, ...] = ()
    """Other data sets whose images are inverted too, named as for --to of transfer."""
    resize: bool = False
    """Stretch these images to the size that the run was trained on, and convert their channels."""
    reference_run: str | None = None
    """Another run, whose model (best or last, by --weights) judges if a reconstruction is of the same class as the
    original."""
    features: int = 0
    """Number of features to maximise, starting from grey, drawn in a separate picture with the paths between two pairs
    of images; needs at least four images."""
    pictures: int = 8
    """Number of images in the picture."""
    batch_size: int = 64


def run(target: str, options: Options) -> int:
    from ...analysis.inversion.on_run import analyze_inversion, how_to_invert, judge_of, write_inversion

    if options.features < 0:
        raise UserError(f"--features {options.features} is below 0")
    if options.features and options.examples < 4:
        raise UserError("--features joins two pairs of images: give --examples 4 or more")
    if options.steps < 1:
        raise UserError(f"an inversion takes at least one step, not {options.steps}")
    if options.reference_run is not None and Path(options.reference_run).resolve() in [
        Path(run).resolve() for run in (target, *options.compare_with)
    ]:
        raise UserError(
            f"{options.reference_run} is inverted itself: a judge takes no part in it, so name another --reference-run"
        )
    runs = open_runs(target, options)
    first = next(iter(runs.values()))
    judge = None if options.reference_run is None else judge_of(Path(options.reference_run), options.weights, first)
    names = {key: getattr(options, key) for key in ("resize", "examples", "features", "batch_size", "seed")}
    found = {
        name: analyze_inversion(
            run,
            how_to_invert(run, options.search, options.steps, options.layers, options.smooth),
            elsewhere=options.on,
            judge=judge,
            **names,
        )
        for name, run in runs.items()
    }
    write_inversion(first.run, list(found.items()), how(options), options.pictures)
    if print_if_json(runs, found, options):
        return 0
    _show(found)
    say_files(runs, "inversion")
    if options.features:
        say(str(first.run.analysis("inversion-features", "png")))
    return 0


def _show(found: "dict[str, InversionAnalysis]") -> None:
    from rich import print as rich_print
    from rich.markup import escape
    from rich.table import Table

    from ...analysis.inversion.measure import MEANINGS

    table = Table("images", "", *map(escape, found))
    plain = {name: each.plain()["images"] for name, each in found.items()}
    for where, figures in next(iter(plain.values())).items():
        for figure in figures:
            kind = "mean" if figure == "agreement" else "median"
            cells = [_interval(each[where][figure][kind]) for each in plain.values()]
            table.add_row(where if figure == next(iter(figures)) else "", figure, *cells)
    rich_print(table)
    shown = {name for figures in next(iter(plain.values())).values() for name in figures}
    say("\n".join(f"{name}: {meaning}" for name, meaning in MEANINGS.items() if name in shown))
    means = " (of the agreement the mean)" if "agreement" in shown else ""
    say(f"medians over images{means} with 95 % bootstrap intervals over them")


def _interval(estimate: "dict[str, float]") -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
