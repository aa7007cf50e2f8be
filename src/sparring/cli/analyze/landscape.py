"""The command `sparring analyze RUN landscape`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..common import say
from .common import Attacked, attacked, how, print_if_json, say_files

if TYPE_CHECKING:
    from ...analysis import LossLandscape


@dataclass(frozen=True, kw_only=True)
class Options(Attacked):
    points: int = 10
    """Number of random directions that bound the Lipschitz constant from below."""


def run(target: str, options: Options) -> int:
    import numpy as np

    from ...analysis.landscape.measure import measure_landscape
    from ...analysis.landscape.plot import plot_landscape
    from ...core.writing import replacing, write_json

    runs, threat = attacked(target, options)
    given = {key: getattr(options, key) for key in ("steps", "points", "seed", "batch_size")}
    found = {name: measure_landscape(run.model, run.test, threat, **given) for name, run in runs.items()}
    folder, first = next(iter(runs.values())).run, next(iter(found.values()))
    write_json(folder.analysis("landscape", "json"), {**first.plain(), "how": how(options)})
    with replacing(folder.analysis("landscape", "npz")) as file:
        np.savez_compressed(file, **first.arrays())  # type: ignore[arg-type]
    surfaces = [(name, each.surfaces) for name, each in found.items()]
    plot_landscape(surfaces, first.grid, first.threat, folder.analysis("landscape", "png"))
    if print_if_json(runs, found, options):
        return 0
    _show(found)
    say("medians, also of paired differences, with 95 % intervals over images; another training would differ by more")
    say_files(runs, "landscape")
    return 0


def _show(found: "dict[str, LossLandscape]") -> None:
    import numpy as np
    from rich import print as rich_print
    from rich.markup import escape
    from rich.table import Table

    from ...analysis import estimate

    each = list(found.values())
    paired = ["difference"] if len(each) == 2 else []
    table = Table("", *map(escape, [*found, *paired]))
    plain = [one.plain()["figures"] for one in each]
    for figure in plain[0]:
        cells = [_interval(one[figure]["median"]) for one in plain]
        if paired:
            cells.append(_interval(estimate(each[1].values[figure] - each[0].values[figure], np.median)))
        table.add_row(figure, *cells)
    rich_print(table)
    say("\n".join(f"{figure}: {one['meaning']}" for figure, one in plain[0].items()))


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.4g} [{estimate['low']:.4g}, {estimate['high']:.4g}]"
