"""`sparring analyze`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UserError, nearest
from .common import argument, print_json, say

if TYPE_CHECKING:
    from ..analysis import Landscape
    from ..core import Threat

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
    run, found = RunFolder(target), {}
    for name in dict.fromkeys([target, *([options.beside] if options.beside else [])]):
        if not options.json:
            say(f"looking at {name}", sys.stderr)
        found[name] = _looked(Path(name), options)
    plain = {name: each.plain() for name, each in found.items()}
    how = {key: getattr(options, key) for key in ("weights", "steps", "points", "seed")}
    write_json(run.analysis(kind, "json"), {**plain[target], "how": how})
    import numpy as np

    with replacing(run.analysis(kind, "npz")) as file:
        np.savez_compressed(file, **found[target].arrays())  # type: ignore[arg-type]
    surfaces = {Path(name).name: each.surfaces for name, each in found.items()}
    report.landscape(surfaces, found[target].grid, found[target].threat, run.analysis(kind, "png"))
    if options.json:
        print_json({"runs": plain, "how": how})
    else:
        _show(plain)
        say(f"{run.analysis(kind, 'json')}, {run.analysis(kind, 'png')}")
    return 0


def _looked(path: Path, options: _Options) -> "Landscape":
    from ..analysis import landscape
    from ..environment import device_of
    from ..trained import load_model, recipe_of

    if not path.is_dir():
        raise UserError(f"{path} is no run folder")
    from ..results import RunFolder

    device, recipe = device_of(options.device), recipe_of(path)
    weights = RunFolder(path).weights(options.weights)
    if not weights.exists():
        raise UserError(f"{path} has no {options.weights} weights yet: train it first")
    test = recipe.data.load()[1][: options.examples].to(device)
    threat = _threat(recipe, options)
    model = load_model(weights, recipe).to(device)
    return landscape(model, test, threat, steps=options.steps, points=options.points, seed=options.seed)


def _threat(recipe: Any, options: _Options) -> "Threat":
    from ..evaluate import threat_of
    from ..threats import threat

    found = threat(options.threat) if options.threat else threat_of(dict(recipe.evaluation.adversaries))
    if found is None:
        raise UserError("the recipe names no threat: name one, as --threat linf:8/255")
    return found


def _show(plain: dict[str, Any]) -> None:
    from rich import print as rich_print
    from rich.table import Table

    table = Table("", *(f"{name}: mean, 95 %" for name in plain), *(f"{name}: largest" for name in plain), "meaning")
    for figure, one in next(iter(plain.values()))["figures"].items():
        rows = [each["figures"][figure] for each in plain.values()]
        means = [f"{row['mean']:.4g} [{row['low']:.4g}, {row['high']:.4g}]" for row in rows]
        table.add_row(figure, *means, *(f"{row['largest']:.4g}" for row in rows), one["meaning"])
    rich_print(table)
