"""Options and output shared by all kinds of analysis."""

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
    "landscape": "the loss around test images: curvature along the path of an attack, the Lipschitz constant of "
    "the gradient, and loss surfaces over (steepest, random) directions",
    "memorization": "memorization of training examples: the robust generalisation gap, fit of changed labels, "
    "stability of the gradient of three training losses when the weights move, complexity measures, hard examples",
    "representation": "quality of the features: accuracy of nearest neighbours, of a linear probe and of the head of "
    "the run, clean and under the worst of several attacks; information about an image that the features keep under "
    "attack",
    "information": "Fisher information of the weights about the task, of the prediction and of the representation "
    "about the image; effective information, singular values",
    "transfer": "accuracy of the features on other tasks, by the number of images fitted to, and the distance of these "
    "tasks from the task of the run",
    "inversion": "images reconstructed from the features: their similarity to the originals, for test images of the "
    "run and for other data sets; maximised features, and paths between images",
}


def _usage() -> str:
    about = [textwrap.indent("\n".join(textwrap.wrap(text, 100)), " " * 17) for text in KINDS.values()]
    listed = [f"  {kind:<15}{text.lstrip()}" for kind, text in zip(KINDS, about, strict=True)]
    return "\n".join([_HEAD, *listed, "", _TAIL])


_HEAD = """\
usage: sparring analyze RUN KIND [--compare-with RUN ...] [--examples N] [--weights best|last] [--json] ...

Analyses a trained run. KIND is
"""
_TAIL = """\
Results are written to analysis-KIND.json of the run folder, those of every image to .npz, the picture to .png.
`sparring analyze RUN KIND --help` shows the flags of a kind.

  sparring analyze runs/relu landscape
  sparring analyze runs/pgd memorization --weights last --compare-with runs/trades
  sparring analyze runs/fashion_amdim representation --compare-with runs/fashion_sat
  sparring analyze runs/fashion_standard transfer --to digits --resize --compare-with runs/fashion_pgd
  sparring analyze runs/fashion_standard inversion --compare-with runs/fashion_pgd --reference-run runs/other"""

USAGE = _usage()


@dataclass(frozen=True, kw_only=True)
class Common:
    compare_with: tuple[str, ...] = ()
    """Other runs, analysed in the same way and drawn in the same picture."""
    examples: int = 200
    """Number of images, taken from the beginning of the test set."""
    weights: Literal["best", "last"] = "best"
    batch_size: int = 128
    """Number of images at a time; fewer need less memory."""
    seed: int = 0
    """Seed of all random numbers."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print one JSON object on standard output instead of a table."""


@dataclass(frozen=True, kw_only=True)
class Attacked(Common):
    threat: str | None = None
    """Threat of the attack: linf:8/255, l2:0.5 or l1:12. By default the threat of the recipe."""
    steps: int = 20
    """Number of steps of the attack."""


Options = TypeVar("Options", bound=Common)


def options_for(kind: type[Options], target: str, name: str, args: list[str]) -> Options:
    import tyro

    options = tyro.cli(kind, args=args, prog=f"sparring analyze {target} {name}", description=KINDS[name])
    check_options(options)
    from ...acceleration import tune_process

    tune_process()
    return options


def open_runs(target: str, options: Common) -> "dict[str, AnalyzedRun]":
    """Open the runs, keyed by the shortest distinct names. Raises `UserError` if their test images differ."""
    from ...analysis.runs import open_run

    names = [target, *options.compare_with]
    short = [Path(name).name for name in names]
    labels = short if len(set(short)) == len(short) else names
    found: dict[str, AnalyzedRun] = {}
    for label, name in zip(labels, names, strict=True):
        if not options.json:
            say(f"opening {name}", sys.stderr)
        found[label] = open_run(Path(name), options.weights, options.examples, options.device)
    if len({tuple(run.test.y.tolist()) for run in found.values()}) > 1:
        raise UserError(f"{' and '.join(names)} have different test images: analyse each by itself")
    return found


def attacked(target: str, options: Attacked) -> "tuple[dict[str, AnalyzedRun], Threat]":
    """Open the runs and return them with their common threat. Raises `UserError` if their threats differ."""
    found = open_runs(target, options)
    threats = [threat_for(run.recipe, options.threat) for run in found.values()]
    if len({repr(threat) for threat in threats}) > 1:
        raise UserError(
            f"{' and '.join([target, *options.compare_with])} have different threats: name one, as --threat linf:8/255"
        )
    return found, threats[0]


def how(options: Common) -> dict[str, Any]:
    """Return the options that affect the results."""
    return {
        key: value for key, value in asdict(options).items() if key not in ("compare_with", "device", "json", "threat")
    }


def print_if_json(
    runs: "dict[str, AnalyzedRun]", found: dict[str, Any], options: Common, more: dict[str, Any] | None = None
) -> bool:
    """Print all results as JSON if that is asked for; return True if so."""
    if options.json:
        plain = [{"run": str(runs[name].run.path), **each.plain()} for name, each in found.items()]
        print_json({"runs": plain, **(more or {}), "how": how(options)})
    return options.json


def say_files(runs: "dict[str, AnalyzedRun]", kind: str) -> None:
    """Print the paths of the files that were written."""
    folder = next(iter(runs.values())).run
    say(f"{folder.analysis(kind, 'json')}, {folder.analysis(kind, 'png')}")
