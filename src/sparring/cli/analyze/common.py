"""Options and output shared by all kinds of analysis."""

import re
import sys
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ...core.errors import UserError
from ..common import check_options, note_unfinished, print_json, read, say, threat_for
from ..models import ModelOptions, cut_for, foreign_model, is_foreign

if TYPE_CHECKING:
    from ...analysis.runs import AnalyzedModel
    from ...core.types import TensorData, Threat
    from ...runs.recipe import Recipe

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
usage: sparring analyze TARGET KIND [--compare-with TARGET ...] [--examples N] [--weights best|last] [--json] ...
       sparring analyze module:function KIND --data DATA [--threat THREAT] [--out DIR] ...

Analyses a trained model. TARGET is a run folder, module:function for a model of your own, or timm:NAME,
torchvision:NAME or hub:ORGANISATION/NAME, the last four with --data. KIND is
"""
_TAIL = """\
Results are written to analysis-KIND.json of the run folder or of --out, those of every image to .npz, the picture to
.png, and the report of a run is written anew.
`sparring analyze TARGET KIND --help` shows the flags of a kind.

  sparring analyze runs/relu landscape
  sparring analyze mymodels:build information --data npz:mine.npz --layer features
  sparring analyze runs/pgd memorization --weights last --compare-with runs/trades
  sparring analyze runs/fashion_amdim representation --compare-with runs/fashion_sat
  sparring analyze runs/fashion_standard transfer --to digits --resize --compare-with runs/fashion_pgd
  sparring analyze runs/fashion_standard inversion --compare-with runs/fashion_pgd --reference-run runs/other"""

USAGE = _usage()


@dataclass(frozen=True, kw_only=True)
class Common(ModelOptions):
    data: str | None = None
    """Training and test images of a model that is no run: npz:FILE, folder:DIR, cifar10, ..."""
    out: str | None = None
    """Folder for the results of a model that is no run; by default runs/analysis-NAME."""
    compare_with: tuple[str, ...] = ()
    """Other runs or models, analysed in the same way and drawn in the same picture."""
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
    options = read(kind, args, f"sparring analyze {target} {name}", KINDS[name])
    check_options(options)
    from ...acceleration import tune_process

    tune_process()
    return options


def open_runs(target: str, options: Common) -> "dict[str, AnalyzedModel]":
    """Open the runs, keyed by the shortest distinct names. Raises `UserError` if their test images differ."""
    names = [target, *options.compare_with]
    short = [Path(name).name for name in names]
    labels = short if len(set(short)) == len(short) else names
    found: dict[str, AnalyzedModel] = {}
    for label, name in zip(labels, names, strict=True):
        if not options.json:
            say(f"opening {name}", sys.stderr)
        found[label] = _opened(name, options)
    first, *others = (run.test for run in found.values())
    if not all(_alike(first, other) for other in others):
        raise UserError(f"{' and '.join(names)} have different test images: analyse each by itself")
    return found


def _alike(one: "TensorData", other: "TensorData") -> bool:
    from ...core.types import pixels

    if one.x.shape != other.x.shape:
        return False
    return bool((one.y == other.y).all() and (pixels(one.x) == pixels(other.x)).all())


def folder_of(target: str, options: Common) -> Path:
    """Return the folder for the results: that of a run, or for another model the one that --out names."""
    if Path(target).is_dir():
        given = {"--model": options.model, "--data": options.data, "--mean": options.mean, "--std": options.std}
        unused = [flag for flag, value in {**given, "--out": options.out}.items() if value is not None]
        if unused and all(Path(name).is_dir() for name in options.compare_with):
            raise UserError(f"{target} is a run folder, which has all of these: leave out {', '.join(unused)}")
        return Path(target)
    if not is_foreign(target, ["--model", options.model] if options.model else []):
        raise UserError(
            f"{target} is no run folder: name one, or a model as module:function or timm:NAME, with --data DATA"
        )
    name = re.sub(r"[^\w.-]+", "-", target.rpartition(":")[2].rpartition("/")[2])
    return Path(options.out or f"runs/analysis-{name}")


def _opened(target: str, options: Common) -> "AnalyzedModel":
    from ...analysis.runs import AnalyzedModel, open_run

    folder = folder_of(target, options)
    if Path(target).is_dir():
        note_unfinished(target)
        return open_run(folder, options.weights, options.examples, options.device)
    from ...core.gate import as_taken, check_taken
    from ...core.validation import check_logits
    from ...data import load_test, source_of
    from ...runs.external_models import fitting

    if options.data is None:
        raise UserError(f"--data is missing: name the training and test images of {target}, as --data npz:FILE")
    model = foreign_model(target, options, load_test(options.data) if options.model else None, options.seed).eval()
    train, test = source_of(options.data, None if options.model else cut_for(model)).load()
    few = test[:2]
    fitting(model, few)
    check_logits(check_taken(model, as_taken(model, few.x)), len(few), highest=int(max(train.y.max(), test.y.max())))
    return AnalyzedModel.of(model, train, test, folder, options.examples, options.device)


def attacked(target: str, options: Attacked) -> "tuple[dict[str, AnalyzedModel], Threat]":
    """Open the runs and return them with their common threat. Raises `UserError` if their threats differ."""
    found = open_runs(target, options)
    threats = [_threat(name, run.recipe, options.threat) for name, run in found.items()]
    if len({repr(threat) for threat in threats}) > 1:
        raise UserError(
            f"{' and '.join([target, *options.compare_with])} have different threats: name one, as --threat linf:8/255"
        )
    return found, threats[0]


def _threat(name: str, recipe: "Recipe | None", given: str | None) -> "Threat":
    if recipe is None and given is None:
        raise UserError(f"{name} has no recipe that names a threat: name one, as --threat linf:8/255")
    if recipe is not None:
        return threat_for(recipe, given)
    from ...attacks.threats import threat

    return threat(given or "")


_NOT_RECORDED = ("compare_with", "device", "json", "out", "threat")


def how(options: Common) -> dict[str, Any]:
    """Return the options that affect the results."""
    return {key: value for key, value in asdict(options).items() if key not in _NOT_RECORDED and value is not None}


def print_if_json(
    runs: "dict[str, AnalyzedModel]", found: dict[str, Any], options: Common, more: dict[str, Any] | None = None
) -> bool:
    """Print all results as JSON if that is asked for; return True if so."""
    if options.json:
        plain = [{"run": str(runs[name].run.path), **each.plain()} for name, each in found.items()]
        print_json({"runs": plain, **(more or {}), "how": how(options)})
    return options.json


def say_files(runs: "dict[str, AnalyzedModel]", kind: str) -> None:
    """Print the paths of the files that were written."""
    folder = next(iter(runs.values())).run
    say(f"{folder.analysis(kind, 'json')}, {folder.analysis(kind, 'png')}")
