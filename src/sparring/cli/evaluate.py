"""The command `sparring evaluate`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import UserError
from .common import argument, check_options, plainly, print_json, say, value_of
from .models import ROBUSTBENCH, ForeignOptions, filled_in, foreign, is_foreign
from .report import rewrite
from .shards import divided, say_shards, shard_of_flags

if TYPE_CHECKING:
    from torch import nn

    from ..core.types import Threat
    from ..evaluation import Adversary, Cascade
    from ..records.results import EvaluationResult
    from ..runs.recipe import Evaluation, Recipe

_EVALUATE = """\
usage: sparring evaluate TARGET [--autoattack VERSION] [--min-norm] [--threat THREAT] [--out DIR] [--json] ...

Measures the accuracy on test images, clean and under each attack, with 95 % Wilson intervals. TARGET is

  a run folder        its best and its last weights are evaluated, and the results written to the folder
  a file of weights   written by sparring, or with --recipe RECIPE that names its model and data, or with
                      --model ARCHITECTURE and --data DATA (RobustBench's names are read)
  module:function     a model of your own, with --data DATA; this runs the code of that module
  timm:NAME           a pretrained model of timm, with --data DATA; also torchvision:NAME and
                      hub:ORGANISATION/NAME@COMMIT (of the Hugging Face Hub)
  robustbench:NAME    a model of RobustBench, such as robustbench:cifar10/Linf/Wang2023Better_WRN-28-10, on its own
                      test images and at its own threat if none are given; --weights FOLDER holds its weights

If there is no recipe with attacks, AutoAttack runs at --threat. An evaluation that was killed is resumed, if it has a
folder to write to. With --shard 1/8 to --shard 8/8, machines that share the folder evaluate an eighth of the images
each; --merge, with the same flags, makes one result of them. `sparring evaluate TARGET --help` shows all flags.

  sparring evaluate runs/quickstart --autoattack standard --min-norm
  sparring evaluate runs/quickstart --shard 2/8
  sparring evaluate runs/quickstart --suite full --transfer-from runs/other
  sparring evaluate runs/quickstart --certify 0.25
  sparring evaluate mymodels:build --data npz:test.npz --threat linf:8/255 --out runs/my-model"""


@dataclass(frozen=True, kw_only=True)
class Options:
    recipe: str | None = None
    """The recipe whose model, data and attacks to use, for weights that do not contain it."""
    autoattack: Literal["standard", "plus", "rand"] | None = None
    """Add this version of AutoAttack to the attacks of the recipe; rand is for randomised models."""
    min_norm: bool = False
    """Add minimum-norm attacks, for robustness-curve.png and hardest-examples.png (needs a folder)."""
    attack: tuple[str, ...] = ()
    """Attacks instead of those of the recipe: fgsm, pgd, pgd-50-10, apgd, square, autoattack, ..., or of your own, as
    myattacks.py:MyAttack, which is called with the threat."""
    threat: str | None = None
    """Threat of --attack, AutoAttack and the minimum-norm attacks: linf:8/255, l2:0.5 or l1:12. By default the threat
    of the recipe. Given alone, it adds AutoAttack."""
    eps: str | None = None
    """Radius in Linf, such as 8/255, instead of --threat."""
    suite: Literal["full"] | None = None
    """Instead of the attacks of the recipe, a suite: full is AutoAttack in several norms and their union, decisions
    alone, smallest distances, and what --transfer-from and --corruptions add."""
    suite_threats: tuple[str, ...] = ()
    """Sets of the norms of --suite, besides that of the training or of --threat; by default linf:8/255, l2:0.5 and
    l1:12."""
    transfer_from: str | None = None
    """Add an attack on another model, a run folder or a file of weights, whose examples are shown to this one."""
    corruptions: str | None = None
    """Folder of the test images with common corruptions, in the format of CIFAR-10-C, on which to measure accuracy."""
    certify: float | None = None
    """Certify in L2 by randomized smoothing, instead of attacking: the sigma of the Gaussian noise, best that of the
    training."""
    certify_samples: int = 100_000
    """Number of noisy copies of each image for --certify."""
    keep_images: bool = False
    """Keep all adversarial images with the per-example results."""
    out: str | None = None
    """Folder for the results; those of a run are written to its own folder."""
    shard: str | None = None
    """Evaluate one of several parts of the images: 2/8 is the second of eight, of every eighth image. Each part has a
    file of its own in the folder, and may be evaluated on another machine."""
    merge: bool = False
    """Merge the results of all shards in the folder. Give the flags that the shards had."""
    only: tuple[int, ...] = ()
    """Evaluate only the examples with these numbers, with the random numbers that they have among all, and write
    nothing. Of a run, its best weights or those of --weights."""
    overwrite: bool = False
    """Replace the results in the folder, even if they are on more images."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the attacks: auto is bf16 where the processor has it. Adversarial examples are verified in
    fp32."""
    compile: Literal["auto", "on", "off", "max-autotune"] = "auto"
    """Compile the attacked model: auto does not."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Trackers that show the results of a run too, beside its training."""
    json: bool = False
    """Print one JSON object on standard output instead of a table."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    weights: Literal["both", "best", "last"] = "both"
    """Weights of a run to evaluate."""


@dataclass(frozen=True, kw_only=True)
class ForeignEvaluation(ForeignOptions, Options): ...


def evaluate(args: list[str]) -> int:
    target, rest = argument(args, "TARGET", _EVALUATE)
    rest = filled_in(target, rest)
    if {"-h", "--help"} & set(rest) and not _is_known(target):
        say(_EVALUATE)
        return 0
    from ..acceleration import tune_process
    from ..runs.processes import together

    tune_process()
    with together(value_of("--device", rest) or "auto") as device:
        if value_of("--certify", rest) is not None:
            from .certify import certify

            return certify(target, rest, device)
        result = _evaluated(target, rest, device)
    if result is None:
        return 0
    options, found, attacks, out = result
    if out is not None and options.shard is None:
        rewrite(Path(out))
    if options.json:
        print_json({which: _plain(each) for which, each in found.items()})
    else:
        _show(target, options, found, attacks, out)
    return 0


def _show(
    target: str,
    options: Options,
    found: "Mapping[str, EvaluationResult]",
    attacks: Mapping[str, Any],
    out: str | None,
) -> None:
    """Print the tables, what the attacks were, and where the results are."""
    from rich import print as rich_print

    from ..records.summary import Summary
    from . import console

    summaries = {which: Summary.of(each).rows() for which, each in found.items()}
    rich_print(console.accuracy_table({which: each.table() for which, each in found.items()}, summaries))
    for which, each in found.items():
        say("\n".join(console.remarks(which, each)))
    for name, adversary in attacks.items():
        say(f"{name}: {plainly(adversary)}")
    if target.startswith(ROBUSTBENCH):
        say(_published(target))
    if out is not None and options.shard is not None:
        say_shards(Path(out), list(found), options.shard)
    elif out is not None:
        _say_where(Path(out))


def _published(target: str) -> str:
    """Return a sentence with the accuracies that RobustBench has for a model."""
    from ..models import published

    model = published(target.partition(",")[0])
    other = "" if model.external is None else f", {model.external:.2f} % under the strongest attack known"
    measured = f"{model.clean:.2f} % clean, {model.autoattack:.2f} % under AutoAttack{other}"
    return f"RobustBench has for {model.key}, at {model.threat}: {measured}"


def _evaluated(target: str, args: list[str], device: str) -> "_Found | None":
    """Evaluate a target; of several processes, all but the first get None."""
    from ..core import ranks
    from ..records.merging import merge_evaluations
    from . import console

    def evaluated(*more: str) -> _Found:
        with console.evaluating() as on_progress:
            news = on_progress if ranks.first() else lambda *news: None
            if is_foreign(target, args):
                return _evaluate_foreign(target, [*args, *more], news)
            return _evaluate_ours(Path(target), [*args, *more], news)

    return divided(args, device, evaluated, merge_evaluations)


def _is_known(target: str) -> bool:
    """Return False for a run whose recipe cannot be read, as it names code that is not trusted."""
    from ..runs.load import recipe_of

    try:
        return not Path(target).exists() or recipe_of(Path(target)) is not None
    except UserError:
        return False


def _plain(evaluated: "EvaluationResult") -> dict[str, object]:
    plain: dict[str, object] = {name: accuracy.plain() for name, accuracy in evaluated.table().items()}
    if evaluated.distance is not None:
        plain["median distance"] = evaluated.median_distance()
    from ..records.summary import Summary

    plain["summary"] = Summary.of(evaluated).plain()
    return {**plain, "notes": list(evaluated.notes)} if evaluated.notes else plain


def _say_where(path: Path) -> None:
    from ..records.run_folder import RunFolder

    run = RunFolder(path)
    say(f"run folder: {path}")
    say(f"report: {run.report}")
    for picture in (run.adversarial_examples, run.robustness_curve, run.hardest_examples):
        if picture.exists():
            say(f"picture: {picture}")


_Found = tuple[Options, "dict[str, EvaluationResult]", "Mapping[str, object]", str | None]


def _evaluate_ours(path: Path, args: list[str], on_progress: object) -> _Found:
    """Evaluate a run folder, or weights whose recipe is known."""
    from ..acceleration import AcceleratedCopy
    from ..core import ranks
    from ..records.run_folder import RunFolder
    from ..runs.load import evaluate_run, evaluate_weights

    options, recipe = chosen(path, args)
    if options.only and path.is_dir():
        path = RunFolder(path).weights("last" if options.weights == "last" else "best")
    _check_track(path, options)
    _check_only(options)
    _check_together(options, str(path) if path.is_dir() else options.out)
    if path.is_dir() and options.out:
        raise UserError(f"the results of a run are written to its folder, {path}: leave out --out")
    _check_own(options.out, path)
    if options.weights != "both" and not path.is_dir() and not options.only:
        raise UserError(f"--weights chooses weights of a run folder, and {path} is a file of weights: leave it out")
    recipe = replace(recipe, evaluation=_with_more(recipe.evaluation, options))
    backend = AcceleratedCopy(options.precision, options.compile)
    common = {
        "device": options.device,
        "overwrite": options.overwrite,
        "keep_images": options.keep_images,
        "backend": backend,
        "shard": shard_of_flags(options, str(path) if path.is_dir() else options.out),
        "merge": options.merge,
        "on_progress": on_progress,
    }
    if path.is_dir():
        which = ("best", "last") if options.weights == "both" else (options.weights,)
        track = () if common["shard"] and ranks.world() > 1 else options.track
        found = evaluate_run(RunFolder(path), recipe, which=which, track=track, **common)  # type: ignore[arg-type]
    else:
        out = RunFolder(options.out) if options.out else None
        given = {**common, "only": options.only}
        found = {"weights": evaluate_weights(path, recipe, out=out, **given)}  # type: ignore[arg-type]
    return options, found, recipe.evaluation.adversaries, str(path) if path.is_dir() else options.out


def _check_only(options: Options) -> None:
    if options.only and (options.shard is not None or options.merge):
        raise UserError("--only chooses single examples, and --shard and --merge are about all: give it without them")


def _check_together(options: Options, folder: str | None) -> None:
    """Raise `UserError` for an option that has no effect without another."""
    if options.suite_threats and options.suite is None:
        raise UserError("--suite-threats are the sets of a suite: give --suite full with them")
    if options.certify is None and options.certify_samples != Options.certify_samples:
        raise UserError("--certify-samples is the number of noisy copies of --certify: give --certify SIGMA with it")
    for flag, given in (("--keep-images", options.keep_images), ("--overwrite", options.overwrite)):
        if given and folder is None:
            raise UserError(f"{flag} is about the results in a folder, and there is none: give --out FOLDER with it")


def _check_own(out: str | None, path: Path | None) -> None:
    """Raise `UserError` if results would be written to the folder of another training, and be taken for its own."""
    from ..records.run_folder import RunFolder

    if out is None or RunFolder(out).recipe() is None:
        return
    if path is None or path.parent.resolve() != Path(out).resolve():
        raise UserError(f"{out} is the folder of another training, whose results would be replaced: name another --out")


def _check_track(path: Path, options: Options) -> None:
    if options.track and not path.is_dir():
        raise UserError("--track shows the results of a run beside its training: name a run folder")


def chosen(path: Path, args: list[str]) -> "tuple[RunOptions, Recipe]":
    """Return the recipe of the run, of the weights or of --recipe, with data and evaluation changed by the flags."""
    from ..runs.load import recipe_of
    from .flags import parse
    from .train import recipe_named

    named = value_of("--recipe", args)
    recipe = recipe_named(named) if named else recipe_of(path)
    what = "Measures accuracy on the test set, clean and under each attack. Flags change fields of the recipe."
    fields = ("data", "evaluation", "seed")
    options, recipe, _ = parse(RunOptions, recipe, {}, args, f"sparring evaluate {path}", what, fields)
    return options, recipe


def _with_more(evaluation: "Evaluation", options: Options) -> "Evaluation":
    """Return the evaluation of the recipe, with the attacks and the corruptions that the flags add."""
    if options.corruptions is not None:
        from ..data import CorruptedImages

        evaluation = replace(evaluation, corruptions=CorruptedImages(options.corruptions))
    if not (options.autoattack or options.min_norm or options.attack or options.suite or options.transfer_from):
        if options.threat is None and options.eps is None:
            return evaluation
        options = replace(options, autoattack="standard")
    threat = _threat(options, evaluation)
    own = {} if options.attack or options.suite else evaluation.adversaries
    return replace(evaluation, adversaries={**own, **_added(options, threat)})


def _added(options: Options, threat: "Threat") -> "dict[str, Adversary]":
    from ..evaluation import AutoAttack, MinimumNorm

    named = {name: own for spec in options.attack for name, own in _named(spec, threat).items()}
    more: dict[str, Any] = {**_suite(options, threat), **named}
    if options.autoattack is not None:
        more["autoattack"] = AutoAttack(threat, options.autoattack)
    if options.min_norm:
        more["nearest"] = MinimumNorm.of(threat)
    return more


def _named(spec: str, threat: "Threat") -> "Mapping[str, Adversary | Cascade]":
    """Return the attack of a name, or of a class or function of the user's, by its name in the result."""
    from ..core.foreign import split
    from ..evaluation.named import ADVERSARIES, adversaries_of
    from ..runs.parts import own_attack

    if split(spec, ADVERSARIES) is None:
        return adversaries_of([spec], threat)
    return adversaries_of(dict([own_attack(spec, threat)]), None)


def _suite(options: Options, threat: "Threat") -> dict[str, Any]:
    """Return the attacks of --suite and --transfer-from."""
    from ..attacks.threats import threat as parsed
    from ..evaluation import full_suite
    from ..evaluation.suite import RADII, transfer

    surrogate = None if options.transfer_from is None else (options.transfer_from, _surrogate(options))
    if options.suite is not None:
        others = tuple(parsed(each) for each in options.suite_threats) or RADII
        return dict(full_suite(threat, others, surrogate))  # type: ignore[arg-type]
    return {} if surrogate is None else {"transfer": transfer(*surrogate, threat)}  # type: ignore[arg-type]


def _surrogate(options: Options) -> "nn.Module":
    from ..runs.environment import device_of
    from ..runs.load import load_model

    assert options.transfer_from is not None
    if not Path(options.transfer_from).exists():
        raise UserError(f"--transfer-from {options.transfer_from}: there is no such run folder or file of weights")
    return load_model(options.transfer_from).to(device_of(options.device))


def _threat(options: Options, evaluation: "Evaluation | None") -> "Threat":
    from ..attacks.threats import threat
    from ..evaluation import threat_of

    if options.threat and options.eps:
        raise UserError("--eps is the radius in Linf, and --threat names a set with its own: give one of them")
    given = options.threat or (f"linf:{options.eps}" if options.eps else None)
    found = threat(given) if given else threat_of(dict(evaluation.adversaries) if evaluation else {})
    if found is None:
        raise UserError("no recipe or flag gives the threat of the attacks: name one, as --threat linf:8/255")
    return found


def _evaluate_foreign(target: str, args: list[str], on_progress: object) -> _Found:
    from ..acceleration import AcceleratedCopy
    from ..data import CorruptedImages
    from ..records.run_folder import RunFolder
    from ..runs.environment import device_of
    from ..runs.load import evaluate_models
    from ..runs.recipe import Evaluation
    from .flags import parse
    from .train import recipe_named

    what = "Measures the accuracy of a model of your own, clean and under AutoAttack."
    options, _, _ = parse(ForeignEvaluation, None, {}, args, f"sparring evaluate {target}", what)
    check_options(options)
    _check_track(Path(target), options)
    _check_only(options)
    _check_together(options, options.out)
    _check_own(options.out, None)
    recipe = recipe_named(options.recipe) if options.recipe else None
    threat = _threat(options, recipe.evaluation if recipe else None)
    shard, device = shard_of_flags(options, options.out), device_of(options.device)
    model, test = foreign(target, options)
    named = options.attack or options.suite or options.transfer_from
    version = options.autoattack if named else options.autoattack or "standard"
    evaluation = Evaluation(
        _added(replace(options, autoattack=version), threat),
        options.examples,
        options.batch_size,
        None if options.corruptions is None else CorruptedImages(options.corruptions),
    )
    model, test = model.to(device), test.to(device)
    how = {"target": target, "data": options.data, "threat": repr(threat), "version": version, "seed": options.seed}
    found = evaluate_models(
        {"model": lambda: model},
        test,
        evaluation,
        seed=options.seed,
        out=RunFolder(options.out) if options.out else None,
        how=how,
        overwrite=options.overwrite,
        keep_images=options.keep_images,
        backend=AcceleratedCopy(options.precision, options.compile),
        shard=shard,
        merge=options.merge,
        only=options.only,
        on_progress=on_progress,  # type: ignore[arg-type]
    )
    return options, found, evaluation.adversaries, options.out
