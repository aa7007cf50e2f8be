"""`sparring analyze`."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import UserError, nearest
from .common import argument, print_json, say, threat_for

if TYPE_CHECKING:
    from ..analyses import Looked, Memorization
    from ..analysis import Landscape, Representation
    from ..core import Threat

_ANALYZE = """\
usage: sparring analyze RUN KIND [--beside RUN] [--examples N] [--threat THREAT] [--weights best|last] [--json] ...

Looks into a run. KIND is

  landscape      how the loss bends around test images: curvature on the way of an attack, the Lipschitz constant of
                 the gradient, and loss surfaces over (steepest, random) directions
  memorization   what was learned by heart: the robust generalisation gap, labels that were changed, how stable the
                 gradient of three training losses is when the weights move, complexity measures, hard examples
  representation what its features are worth: read by nearest neighbours, by a linear probe and by the head of the run,
                 clean and under the worst of several attacks; what they keep of an image that is attacked

Figures go to analysis-KIND.json of the run folder, those of every image to .npz, the picture to .png.

  sparring analyze runs/relu landscape
  sparring analyze runs/pgd memorization --weights last --beside runs/trades
  sparring analyze runs/fashion_amdim representation --beside runs/fashion_sat"""


@dataclass(frozen=True, kw_only=True)
class _Common:
    beside: str | None = None
    """Another run, analysed alike and drawn in the same picture."""
    examples: int = 200
    """How many images to look at, the first ones."""
    threat: str | None = None
    """Where the attack goes: linf:8/255, l2:0.5 or l1:12. Left out, the threat of the recipe."""
    weights: Literal["best", "last"] = "best"
    steps: int = 20
    """Steps of the attack."""
    batch_size: int = 128
    """Images at a time; fewer need less memory."""
    seed: int = 0
    """Decides all random numbers."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print one JSON object on standard output instead of a table."""


@dataclass(frozen=True, kw_only=True)
class _Landscape(_Common):
    points: int = 10
    """Random directions by which the Lipschitz constant is bounded from below."""


@dataclass(frozen=True, kw_only=True)
class _Memorization(_Common):
    examples: int = 300
    """How many images of the training set and of the test set to look at, the first ones."""
    close: int = 100
    """On how many of the training images stability and complexity are measured, all at once."""
    steps: int = 10
    """Steps of the attack."""


@dataclass(frozen=True, kw_only=True)
class _Representation(_Common):
    bank: int = 5000
    """How many training images are read by, drawn at random."""
    k: int = 75
    """Nearest neighbours that vote, one vote each."""
    restarts: int = 2
    """Of the attacks on soft votes."""


def analyze(args: list[str]) -> int:
    target, rest = argument(args, "RUN", _ANALYZE)
    kind, rest = argument(rest, "KIND", _ANALYZE)
    if kind == "landscape":
        return _landscape(target, _options(_Landscape, target, kind, rest))
    if kind == "memorization":
        return _memorization(target, _options(_Memorization, target, kind, rest))
    if kind == "representation":
        return _representation(target, _options(_Representation, target, kind, rest))
    raise UserError(f"no analysis {kind!r}: {nearest(kind, ('landscape', 'memorization', 'representation'))}")


Options = TypeVar("Options", bound=_Common)


def _options(kind: type[Options], target: str, name: str, args: list[str]) -> Options:
    import tyro

    options = tyro.cli(kind, args=args, prog=f"sparring analyze {target} {name}", description=_ANALYZE)
    least = min(options.examples, getattr(options, "close", 1))
    if least < 1:
        raise UserError(f"an analysis needs at least one image, not {least}")
    from ..fast import tune_process

    tune_process()
    return options


def _opened(target: str, options: _Common) -> "tuple[dict[str, Looked], Threat]":
    """The runs by their names, as short as they are unequal, and the threat that they have in common.

    Raises `UserError` for two that have another threat, or other test images, before anything is measured.
    """
    from ..analyses import opened

    names = [target, *([options.beside] if options.beside else [])]
    short = [Path(name).name for name in names]
    labels = short if len(set(short)) == len(short) else names
    found = {}
    for label, name in zip(labels, names, strict=True):
        if not options.json:
            say(f"looking at {name}", sys.stderr)
        found[label] = opened(Path(name), options.weights, options.examples, options.device)
    threats = [threat_for(run.recipe, options.threat) for run in found.values()]
    if len({(repr(t), tuple(run.test.y.tolist())) for t, run in zip(threats, found.values(), strict=True)}) > 1:
        raise UserError(
            f"{' and '.join(names)} are of other test images or another threat: name one, as --threat linf:8/255"
        )
    return found, threats[0]


def _how(options: _Common) -> dict[str, Any]:
    """What decides the figures."""
    return {key: value for key, value in asdict(options).items() if key not in ("beside", "device", "json", "threat")}


def _landscape(target: str, options: _Landscape) -> int:
    import numpy as np

    from .. import report
    from ..analysis import landscape
    from ..results import replacing, write_json

    runs, threat = _opened(target, options)
    how = {key: getattr(options, key) for key in ("steps", "points", "seed", "batch_size")}
    found = {name: landscape(run.model, run.test, threat, **how) for name, run in runs.items()}
    folder, first = next(iter(runs.values())).run, next(iter(found.values()))
    write_json(folder.analysis("landscape", "json"), {**first.plain(), "how": _how(options)})
    with replacing(folder.analysis("landscape", "npz")) as file:
        np.savez_compressed(file, **first.arrays())  # type: ignore[arg-type]
    surfaces = [(name, each.surfaces) for name, each in found.items()]
    report.landscape(surfaces, first.grid, first.threat, folder.analysis("landscape", "png"))
    if options.json:
        plain = [{"run": str(runs[name].run.path), **each.plain()} for name, each in found.items()]
        print_json({"runs": plain, "how": _how(options)})
        return 0
    _show_landscape(found)
    say("medians, and of differences by image, with 95 % intervals over images; another training would differ by more")
    say(f"{folder.analysis('landscape', 'json')}, {folder.analysis('landscape', 'png')}")
    return 0


def _show_landscape(found: "dict[str, Landscape]") -> None:
    import numpy as np
    from rich import print as rich_print
    from rich.table import Table

    from ..analysis import estimate

    each = list(found.values())
    paired = ["difference"] if len(each) > 1 else []
    table = Table("", *found, *paired)
    plain = [one.plain()["figures"] for one in each]
    for figure in plain[0]:
        cells = [_said(one[figure]["median"]) for one in plain]
        if paired:
            cells.append(_said(estimate(each[1].values[figure] - each[0].values[figure], np.median)))
        table.add_row(figure, *cells)
    rich_print(table)
    say("\n".join(f"{figure}: {one['meaning']}" for figure, one in plain[0].items()))


def _said(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.4g} [{estimate['low']:.4g}, {estimate['high']:.4g}]"


def _memorization(target: str, options: _Memorization) -> int:
    from ..analyses import agreement, difficulties, memorization, write_memorization

    runs, threat = _opened(target, options)
    first, *others = runs.values()
    for other in others:
        first.check_alike(other)
    how = {key: getattr(options, key) for key in ("examples", "close", "steps", "batch_size", "seed")}
    found = {name: memorization(run, threat, **how) for name, run in runs.items()}
    folder = first.run
    write_memorization(folder, list(found.items()), _how(options))
    alike = None if len(found) < 2 else agreement(*difficulties(*found.values()))
    if options.json:
        plain = [{"run": str(runs[name].run.path), **each.plain()} for name, each in found.items()]
        print_json({"runs": plain, "agreement": None if alike is None else asdict(alike), "how": _how(options)})
        return 0
    _show_memorization(found)
    if alike is not None:
        say(
            f"do the two find the same examples hard? Kendall's tau of the adversarial losses of {alike.examples} "
            f"training examples is {alike.tau:.3f} [{alike.low:.3f}, {alike.high:.3f}]"
        )
    say(f"{folder.analysis('memorization', 'json')}, {folder.analysis('memorization', 'png')}")
    return 0


def _representation(target: str, options: _Representation) -> int:
    from ..analyses import represented, write_representation

    runs, threat = _opened(target, options)
    how = {key: getattr(options, key) for key in ("bank", "k", "steps", "restarts", "batch_size", "seed")}
    found = {name: represented(run, threat, **how) for name, run in runs.items()}
    folder = next(iter(runs.values())).run
    write_representation(folder, list(found.items()), _how(options))
    if options.json:
        plain = [{"run": str(runs[name].run.path), **each.plain()} for name, each in found.items()]
        print_json({"runs": plain, "how": _how(options)})
        return 0
    _show_representation(found)
    say("defended: of the images that are right, the share that stays so under the worst of the attacks")
    say(f"{folder.analysis('representation', 'json')}, {folder.analysis('representation', 'png')}")
    return 0


def _show_representation(found: "dict[str, Representation]") -> None:
    from rich import print as rich_print
    from rich.table import Table

    table = Table("", "read by", "clean", "robust", "defended")
    for name, each in found.items():
        for reading, r in each.readings.items():
            table.add_row(name, reading, str(r.clean), str(r.robust), str(r.defended))
    rich_print(table)
    for name, each in found.items():
        say(
            f"{name}: {each.threat}; information between the features of an image and of its adversarial version, from "
            f"below: {each.information}; spread of the features {each.spread:.2f}, effective rank {each.rank:.1f}"
        )


def _show_memorization(found: "dict[str, Memorization]") -> None:
    from rich import print as rich_print
    from rich.table import Table

    table = Table("", *found)
    rows: dict[str, list[str]] = {}
    for each in found.values():
        for name, cell in _cells(each).items():
            rows.setdefault(name, []).append(cell)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    rich_print(table)


def _cells(found: "Memorization") -> dict[str, str]:
    """What there is to say of a run, in the same order for all."""
    fitted = {name: str(found.fitted[name]) if name in found.fitted else "" for name in _FITTED}
    steady = {
        f"{loss}: cosine of the gradient after moving by {found.stability.lengths[i]:g}, {way}": f"{values[i]:.3f}"
        for (loss, way), values in found.stability.cosine.items()
        for i in (len(values) // 2,)
    }
    return {
        "threat": found.threat,
        **{f"{part}, {under}": str(accuracy) for (part, under), accuracy in found.accuracy.items()},
        "robust generalisation gap": f"{100 * found.gap:.1f} points",
        "labels that were changed": f"{100 * found.wrong:.1f} %",
        **{f"there, {name}": cell for name, cell in fitted.items()},
        **{
            f"gradient in the {phase} of training": "" if length is None else f"{length:.4g}"
            for phase, length in found.phases().items()
        },
        **steady,
        **{name: value if isinstance(value, str) else f"{value:.4g}" for name, value in found.measures.items()},
    }


_FITTED = ("given label, clean", "given label, robust", "true label, clean", "true label, robust")
