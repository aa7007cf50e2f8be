"""`sparring analyze RUN information`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..common import say
from .common import Common, files, how, open_runs, told

if TYPE_CHECKING:
    from ...analysis import Information


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    layer: str = "features"
    """The representation: features, what the head reads, or a module of the net by name."""
    jacobian_examples: int = 20
    """On how many of the test images the effective information is measured, which takes a Jacobian by the weights; 0
    leaves it out."""
    probes: int = 16
    """Random directions by which |J|² is estimated, for representations of more than 64 numbers."""
    count: int = 50
    """How many singular values."""
    tolerated: float = 0.1
    """By how many nats the noise on the weights may raise the loss: what counts as effective."""


def run(target: str, options: Options) -> int:
    from ...analysis.information.on_run import analyze_information, write_information

    runs = open_runs(target, options)
    names = ("examples", "layer", "jacobian_examples", "probes", "count", "tolerated", "batch_size", "seed")
    given = {key: getattr(options, key) for key in names}
    found = {name: analyze_information(run, **given) for name, run in runs.items()}
    write_information(next(iter(runs.values())).run, list(found.items()), how(options))
    if told(runs, found, options):
        return 0
    _show(found)
    say("means over images with 95 % bootstrap intervals over them; another training would differ by more")
    files(runs, "information")
    return 0


def _show(found: "dict[str, Information]") -> None:
    from rich import print as rich_print
    from rich.table import Table

    table = Table("", *found)
    plain = [each.plain() for each in found.values()]
    for figure in dict.fromkeys(name for one in plain for name in one["figures"]):
        table.add_row(figure, *(_cell(one["figures"].get(figure)) for one in plain))
    for name in plain[0]["trace of the weights by estimator"]:
        estimates = [one["trace of the weights by estimator"][name] for one in plain]
        table.add_row(f"weights: trace, {name}", *(_said(each) for each in estimates))
    if plain[0]["rise"] is not None:
        told_of = [f"{one['rise']:.4g}" for one in plain]
        table.add_row(f"that noise, to cost {plain[0]['tolerated']:g} nats, costs", *told_of)
    rich_print(table)
    meanings = {figure.rpartition(": all")[0] or figure: one["meaning"] for figure, one in plain[0]["figures"].items()}
    say("\n".join(f"{figure}: {meaning}" for figure, meaning in meanings.items() if figure.count(":") < 2))


def _cell(figure: "dict[str, dict[str, float]] | None") -> str:
    return "" if figure is None else _said(figure["mean"])


def _said(estimate: "dict[str, float]") -> str:
    return f"{estimate['value']:.4g} [{estimate['low']:.4g}, {estimate['high']:.4g}]"
