"""What the kinds of analysis share on the command line."""

import sys
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ...core.errors import UserError
from ..common import check_options, print_json, say, threat_for

if TYPE_CHECKING:
    from ...analysis.runs import AnalyzedRun
    from ...core.types import Threat

KINDS = {
    "landscape": "how the loss bends around test images: curvature on the way of an attack, the Lipschitz constant of "
    "the gradient, and loss surfaces over (steepest, random) directions",
    "memorization": "what was learned by heart: the robust generalisation gap, labels that were changed, how stable "
    "the gradient of three training losses is when the weights move, complexity measures, hard examples",
    "representation": "what its features are worth: read by nearest neighbours, by a linear probe and by the head of "
    "the run, clean and under the worst of several attacks; what they keep of an image that is attacked",
    "information": "how much it tells: Fisher information of the weights about the task, of the prediction and of the "
    "representation about the image; effective information, singular values",
    "transfer": "what its features are worth for other tasks, by the number of images they are fitted to, and how far "
    "these tasks are from its own",
    "inversion": "images rebuilt from its features: how near they come to the originals, on its own images and on "
    "others; features raised, and ways between images",
}


def _usage() -> str:
    about = [textwrap.indent("\n".join(textwrap.wrap(text, 100)), " " * 17) for text in KINDS.values()]
    listed = [f"  {kind:<15}{text.lstrip()}" for kind, text in zip(KINDS, about, strict=True)]
    return "\n".join([_HEAD, *listed, "", _TAIL])


_HEAD = """\
usage: sparring analyze RUN KIND [--compare-with RUN ...] [--examples N] [--weights best|last] [--json] ...

Looks into a run. KIND is
"""
_TAIL = """\
Figures go to analysis-KIND.json of the run folder, those of every image to .npz, the picture to .png.
`sparring analyze RUN KIND --help` has the flags of a kind.

  sparring analyze runs/relu landscape
  sparring analyze runs/pgd memorization --weights last --compare-with runs/trades
  sparring analyze runs/fashion_amdim representation --compare-with runs/fashion_sat
  sparring analyze runs/fashion_standard transfer --to digits --resize --compare-with runs/fashion_pgd
  sparring analyze runs/fashion_standard inversion --compare-with runs/fashion_pgd --reference-run runs/other"""

USAGE = _usage()


@dataclass(frozen=True, kw_only=True)
class Common:
    compare_with: tuple[str, ...] = ()
    """Other runs, analysed alike and drawn in the same picture."""
    examples: int = 200
    """How many images to look at, the first ones."""
    weights: Literal["best", "last"] = "best"
    batch_size: int = 128
    """Images at a time; fewer need less memory."""
    seed: int = 0
    """Decides all random numbers."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print one JSON object on standard output instead of a table."""


@dataclass(frozen=True, kw_only=True)
class Attacked(Common):
    threat: str | None = None
    """Where the attack goes: linf:8/255, l2:0.5 or l1:12. Left out, the threat of the recipe."""
    steps: int = 20
    """Steps of the attack."""


Options = TypeVar("Options", bound=Common)


def options_for(kind: type[Options], target: str, name: str, args: list[str]) -> Options:
    import tyro

    options = tyro.cli(kind, args=args, prog=f"sparring analyze {target} {name}", description=KINDS[name])
    check_options(options)
    from ...acceleration import tune_process

    tune_process()
    return options


def open_runs(target: str, options: Common) -> "dict[str, AnalyzedRun]":
    """The runs by their names, as short as they are unequal. Raises `UserError` for other test images."""
    from ...analysis.runs import open_run

    names = [target, *options.compare_with]
    short = [Path(name).name for name in names]
    labels = short if len(set(short)) == len(short) else names
    found: dict[str, AnalyzedRun] = {}
    for label, name in zip(labels, names, strict=True):
        if not options.json:
            say(f"looking at {name}", sys.stderr)
        found[label] = open_run(Path(name), options.weights, options.examples, options.device)
    if len({tuple(run.test.y.tolist()) for run in found.values()}) > 1:
        raise UserError(f"{' and '.join(names)} are of other test images: look at each by itself")
    return found


def attacked(target: str, options: Attacked) -> "tuple[dict[str, AnalyzedRun], Threat]":
    """The same, and the threat that they have in common. Raises `UserError` for runs that have different ones."""
    found = open_runs(target, options)
    threats = [threat_for(run.recipe, options.threat) for run in found.values()]
    if len({repr(threat) for threat in threats}) > 1:
        raise UserError(
            f"{' and '.join([target, *options.compare_with])} have different threats: name one, as --threat linf:8/255"
        )
    return found, threats[0]


def how(options: Common) -> dict[str, Any]:
    """What decides the figures."""
    return {
        key: value for key, value in asdict(options).items() if key not in ("compare_with", "device", "json", "threat")
    }


def told(
    runs: "dict[str, AnalyzedRun]", found: dict[str, Any], options: Common, more: dict[str, Any] | None = None
) -> bool:
    """Prints everything as JSON if that is asked for, and says whether it did."""
    if options.json:
        plain = [{"run": str(runs[name].run.path), **each.plain()} for name, each in found.items()]
        print_json({"runs": plain, **(more or {}), "how": how(options)})
    return options.json


def files(runs: "dict[str, AnalyzedRun]", kind: str) -> None:
    """Says where it was written."""
    folder = next(iter(runs.values())).run
    say(f"{folder.analysis(kind, 'json')}, {folder.analysis(kind, 'png')}")
