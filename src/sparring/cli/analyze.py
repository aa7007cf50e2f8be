"""`sparring analyze`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..errors import UserError, nearest
from .common import argument, print_json, say, threat_for

if TYPE_CHECKING:
    from ..analysis import Landscape

_ANALYZE = """\
usage: sparring analyze RUN KIND [--beside RUN] [--examples N] [--threat THREAT] [--weights best|last] [--json] ...

Looks into a run. KIND is

  landscape   how the loss bends around test images: curvature on the way of an attack, the Lipschitz constant of the
              gradient, and loss surfaces over (steepest, random) directions

Figures go to analysis-KIND.json of the run folder, those of every image to .npz, the picture to .png.

  sparring analyze runs/relu landscape
  sparring analyze runs/relu landscape --beside runs/silu"""

_KINDS = ("landscape",)


@dataclass(frozen=True, kw_only=True)
class _Options:
    beside: str | None = None
    """Another run, analysed alike and drawn in the same picture."""
    examples: int = 200
    """How many test images to look at, the first ones."""
    threat: str | None = None
    """Where the attack goes: linf:8/255, l2:0.5 or l1:12. Left out, the threat of the recipe."""
    weights: Literal["best", "last"] = "best"
    steps: int = 20
    """Steps of the attack."""
    points: int = 10
    """Random directions by which the Lipschitz constant is bounded from below."""
    batch_size: int = 128
    """Images at a time; fewer need less memory."""
    seed: int = 0
    """Decides all random numbers."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print one JSON object on standard output instead of a table."""


def analyze(args: list[str]) -> int:
    target, rest = argument(args, "RUN", _ANALYZE)
    kind, rest = argument(rest, "KIND", _ANALYZE)
    if kind not in _KINDS:
        raise UserError(f"no analysis {kind!r}: {nearest(kind, _KINDS)}")
    import tyro

    options = tyro.cli(_Options, args=rest, prog=f"sparring analyze {target} {kind}", description=_ANALYZE)
    if options.examples < 1:
        raise UserError(f"an analysis needs at least one image, not {options.examples}")
    from .. import report
    from ..fast import tune_process
    from ..results import RunFolder, replacing, write_json

    tune_process()
    names = [target, *([options.beside] if options.beside else [])]
    found = []
    for name in names:
        if not options.json:
            say(f"looking at {name}", sys.stderr)
        found.append(_looked(Path(name), options))
    if len({(each.landscape.threat, each.labels) for each in found}) > 1:
        raise UserError(
            f"{' and '.join(names)} are of other test images or another threat: name one, as --threat linf:8/255"
        )
    run, first = RunFolder(target), found[0].landscape
    how = {key: getattr(options, key) for key in ("weights", "steps", "points", "seed")}
    write_json(run.analysis(kind, "json"), {**first.plain(), "how": how})
    import numpy as np

    with replacing(run.analysis(kind, "npz")) as file:
        np.savez_compressed(file, **first.arrays())  # type: ignore[arg-type]
    short = [Path(name).name for name in names]
    labels = short if len(set(short)) == len(short) else names
    surfaces = [(label, each.landscape.surfaces) for label, each in zip(labels, found, strict=True)]
    report.landscape(surfaces, first.grid, first.threat, run.analysis(kind, "png"))
    plain = [{"run": name, **each.landscape.plain()} for name, each in zip(names, found, strict=True)]
    if options.json:
        print_json({"runs": plain, "how": how})
        return 0
    _show(labels, [each.landscape for each in found])
    say("medians, and of differences by image, with 95 % intervals over images; another training would differ by more")
    say(f"{run.analysis(kind, 'json')}, {run.analysis(kind, 'png')}")
    return 0


class _Looked(NamedTuple):
    landscape: "Landscape"
    labels: tuple[int, ...]


def _looked(path: Path, options: _Options) -> _Looked:
    from ..analysis import landscape
    from ..environment import device_of
    from ..results import RunFolder
    from ..trained import load_model, recipe_of

    if not path.is_dir():
        raise UserError(f"{path} is no run folder")
    device, recipe = device_of(options.device), recipe_of(path)
    weights = RunFolder(path).weights(options.weights)
    if not weights.exists():
        raise UserError(f"{path} has no {options.weights} weights yet: train it first")
    test = recipe.data.load()[1][: options.examples].to(device)
    how = {key: getattr(options, key) for key in ("steps", "points", "seed", "batch_size")}
    found = landscape(load_model(weights, recipe).to(device), test, threat_for(recipe, options.threat), **how)
    return _Looked(found, tuple(test.y.tolist()))


def _show(names: list[str], found: "list[Landscape]") -> None:
    import numpy as np
    from rich import print as rich_print
    from rich.table import Table

    from ..analysis import estimate

    paired = ["difference"] if len(found) > 1 else []
    table = Table("", *names, *paired)
    plain = [each.plain()["figures"] for each in found]
    for figure in plain[0]:
        cells = [_said(each[figure]["median"]) for each in plain]
        if paired:
            cells.append(_said(estimate(found[1].values[figure] - found[0].values[figure], np.median)))
        table.add_row(figure, *cells)
    rich_print(table)
    say("\n".join(f"{figure}: {one['meaning']}" for figure, one in plain[0].items()))


def _said(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.4g} [{estimate['low']:.4g}, {estimate['high']:.4g}]"
