"""The command `sparring analyze RUN information`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..common import say
from .common import Common, how, open_runs, print_if_json, say_files

if TYPE_CHECKING:
    from ...analysis import Information


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    layer: str = "features"
    """The representation: features (the input of the last linear layer), or a module of the model by name."""
    estimator: Literal["exact", "sampled", "batch"] = "exact"
    """How the information of weights and predictions is measured: exact over classes, from labels drawn for each
    image, or from gradients of whole batches (many classes, large models; with --jacobian-examples 0)."""
    jacobian_examples: int = 20
    """Number of test images for the effective information, which needs a Jacobian with respect to the weights; 0
    leaves it out."""
    probes: int = 16
    """Number of random directions that estimate |J|², for representations of more than 64 numbers."""
    count: int = 50
    """Number of singular values."""
    tolerated: float = 0.1
    """Increase of the loss, in nats, that noise on the weights may cause; it defines the effective information."""


def run(target: str, options: Options) -> int:
    from ...analysis.information.on_run import analyze_information, write_information

    runs = open_runs(target, options)
    names = (
        "examples",
        "layer",
        "jacobian_examples",
        "probes",
        "count",
        "tolerated",
        "estimator",
        "batch_size",
        "seed",
    )
    given = {key: getattr(options, key) for key in names}
    found = {name: analyze_information(run, **given) for name, run in runs.items()}
    write_information(next(iter(runs.values())).run, list(found.items()), how(options))
    if print_if_json(runs, found, options):
        return 0
    _show(found)
    say("means over images with 95 % bootstrap intervals over images; another training would differ by more")
    say_files(runs, "information")
    return 0


_PASSED_ON = (
    *("examples", "layer", "jacobian_examples", "probes", "count", "tolerated", "estimator", "batch_size", "seed"),
)


def _show(found: "dict[str, Information]") -> None:
    from rich import print as rich_print
    from rich.markup import escape
    from rich.table import Table

    table = Table("", *map(escape, found))
    plain = [each.plain() for each in found.values()]
    for figure in dict.fromkeys(name for one in plain for name in one["figures"]):
        table.add_row(figure, *(_cell(one["figures"].get(figure)) for one in plain))
    for name in plain[0]["trace of the weights by estimator"]:
        estimates = [one["trace of the weights by estimator"][name] for one in plain]
        table.add_row(f"weights: trace, {name}", *(_interval(each) for each in estimates))
    if plain[0]["rise"] is not None:
        rises = [f"{one['rise']:.4g}" for one in plain]
        table.add_row(f"loss increase by noise that should cost {plain[0]['tolerated']:g} nats", *rises)
    rich_print(table)
    meanings = {figure.rpartition(": all")[0] or figure: one["meaning"] for figure, one in plain[0]["figures"].items()}
    say("\n".join(f"{figure}: {meaning}" for figure, meaning in meanings.items() if figure.count(":") < 2))


def _cell(figure: "dict[str, dict[str, float]] | None") -> str:
    return "" if figure is None else _interval(figure["mean"])


def _interval(estimate: "dict[str, float]") -> str:
    return f"{estimate['value']:.4g} [{estimate['low']:.4g}, {estimate['high']:.4g}]"
