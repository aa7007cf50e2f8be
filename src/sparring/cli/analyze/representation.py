"""The command `sparring analyze RUN representation`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..common import say
from .common import Attacked, attacked, how, print_if_json, say_files

if TYPE_CHECKING:
    from ...analysis import Representation


@dataclass(frozen=True, kw_only=True)
class Options(Attacked):
    bank: int = 5000
    """Number of training images for the nearest neighbours and the linear probe, drawn at random."""
    k: int = 75
    """Number of nearest neighbours that vote, one vote each."""
    restarts: int = 2
    """Number of restarts of the attacks on soft votes."""


def run(target: str, options: Options) -> int:
    from ...analysis.representation.on_run import analyze_representation, write_representation

    runs, threat = attacked(target, options)
    given = {key: getattr(options, key) for key in ("bank", "k", "steps", "restarts", "batch_size", "seed")}
    found = {name: analyze_representation(run, threat, **given) for name, run in runs.items()}
    write_representation(next(iter(runs.values())).run, list(found.items()), how(options))
    if print_if_json(runs, found, options):
        return 0
    _show(found)
    say("defended: share of the correctly classified images that stay so under the worst of the attacks")
    say_files(runs, "representation")
    return 0


def _show(found: "dict[str, Representation]") -> None:
    from rich import print as rich_print
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "classifier", "clean", "robust", "defended")
    for name, each in found.items():
        for reading, r in each.readings.items():
            table.add_row(escape(name), escape(reading), str(r.clean), str(r.robust), str(r.defense_success_rate))
    rich_print(table)
    for name, each in found.items():
        say(
            f"{name}: {each.threat}; lower bound of the mutual information between the features of an image and of its "
            f"adversarial example: {each.information}; spread of the features {each.spread:.2f}, effective rank "
            f"{each.rank:.1f}"
        )
