"""`sparring evaluate TARGET --certify SIGMA`: certified accuracy by randomized smoothing."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..core.errors import UserError
from .common import check_options, print_json, say
from .evaluate import ForeignEvaluation, Options, chosen
from .models import foreign, is_foreign
from .shards import divided, shard_of_flags

if TYPE_CHECKING:
    from ..records.certification import Certification
    from ..runs.certified import Certifying

_Found: TypeAlias = "tuple[Options, dict[str, Certification], None, str | None]"


def certify(target: str, args: list[str], device: str) -> int:
    """Certify a target and print the certified accuracies."""
    from ..core import ranks
    from ..records.certification import merge_certifications
    from ..records.certification_files import CertificationFiles
    from ..records.run_folder import RunFolder

    def found(*more: str) -> _Found:
        news = _Lines().show if ranks.first() else lambda *news: None
        return (_foreign if is_foreign(target, args) else _ours)(target, [*args, *more], news)

    result = divided(args, device, found, merge_certifications)
    if result is None:
        return 0
    options, certified, _, out = result
    if options.json:
        print_json({which: each.plain() for which, each in certified.items()})
        return 0
    _show(certified)
    if out is not None and options.shard is not None:
        of = int(options.shard.partition("/")[2])
        done = min(len(CertificationFiles(RunFolder(out)).shards(which, of)) for which in certified)
        then = "give --merge instead of --shard" if done == of else "certify the others, then give --merge"
        say(f"{done} of {of} shards are done: {then}")
    elif out is not None:
        say(f"run folder: {out}\npicture: {CertificationFiles(RunFolder(out)).curve}")
    return 0


def _ours(target: str, args: list[str], news: Callable[[str, int, int], None]) -> _Found:
    from ..records.run_folder import RunFolder
    from ..runs.certified import certify_run, certify_weights

    path = Path(target)
    options, recipe = chosen(path, args)
    _refuse_attacks(options)
    out = target if path.is_dir() else options.out
    evaluation = recipe.evaluation
    how = _how(options, out, evaluation.examples, evaluation.batch_size, recipe.seed)
    if path.is_dir():
        if options.out:
            raise UserError(f"the results of a run are written to its folder, {path}: leave out --out")
        which = ("best", "last") if options.weights == "both" else (options.weights,)
        found = certify_run(RunFolder(path), recipe, how, device=options.device, which=which, on_progress=news)
    else:
        folder = RunFolder(options.out) if options.out else None
        found = certify_weights(path, recipe, how, device=options.device, out=folder, on_progress=news)
    return options, found, None, out


def _foreign(target: str, args: list[str], news: Callable[[str, int, int], None]) -> _Found:
    from ..records.run_folder import RunFolder
    from ..runs.certified import certify_models
    from ..runs.environment import device_of
    from .flags import parse

    what = "Certifies a model of your own in L2 by randomized smoothing."
    options, _, _ = parse(ForeignEvaluation, None, {}, args, f"sparring evaluate {target}", what)
    check_options(options)
    _refuse_attacks(options)
    how = _how(options, options.out, options.examples, options.batch_size, options.seed)
    device = device_of(options.device)
    model, test = foreign(target, options)
    out = RunFolder(options.out) if options.out else None
    model = model.to(device)
    found = certify_models({"model": lambda: model}, test.to(device), how, out=out, on_progress=news)
    return options, found, None, options.out


def _how(options: Options, out: str | None, examples: int | None, batch_size: int | None, seed: int) -> "Certifying":
    from ..runs.certified import Certifying

    assert options.certify is not None
    return Certifying(
        sigma=options.certify,
        samples=options.certify_samples,
        examples=examples,
        batch_size=batch_size,
        seed=seed,
        shard=shard_of_flags(options, out),
        merge=options.merge,
        overwrite=options.overwrite,
    )


def _refuse_attacks(options: Options) -> None:
    given: dict[str, object] = {
        "--attack": options.attack,
        "--autoattack": options.autoattack,
        "--min-norm": options.min_norm,
        "--suite": options.suite,
        "--transfer-from": options.transfer_from,
        "--corruptions": options.corruptions,
        "--suite-threats": options.suite_threats,
        "--precision": options.precision != "auto",
        "--compile": options.compile != "auto",
    }
    given |= {"--threat": options.threat, "--eps": options.eps, "--keep-images": options.keep_images}
    named = [flag for flag, value in given.items() if value]
    if named:
        raise UserError(f"--certify runs no attack, and {', '.join(named)} belongs to attacks: give one or the other")
    if options.only or options.track:
        flag = "--only" if options.only else "--track"
        raise UserError(f"--certify certifies all examples, and shows them nowhere else: leave out {flag}")


def _show(certified: "Mapping[str, Certification]") -> None:
    """Print a table with a row per radius and a column per model; a cell is an accuracy with its 95 % interval."""
    from rich import print as rich_print
    from rich.table import Table

    first = next(iter(certified.values()))
    caption = f"certified accuracy on {len(first.label):,} images with its 95 % Wilson interval: {first.terms}"
    table = Table("radius (L2)", *certified, caption=caption, caption_justify="left")
    curves = [each.curve() for each in certified.values()]
    for radius in curves[0]:
        table.add_row(f"{radius:.4g}", *(str(curve[radius]) for curve in curves))
    table.add_row("abstained", *(f"{int(each.abstained.sum())}" for each in certified.values()))
    table.add_row("average radius", *(f"{each.average_radius():.4g}" for each in certified.values()))
    rich_print(table)


class _Lines:
    """Prints a line every few seconds, to standard error."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def show(self, which: str, done: int, todo: int) -> None:
        from ..runs.progress import QUIET_SECONDS

        if done == todo or time.monotonic() - self.last > QUIET_SECONDS:
            self.last = time.monotonic()
            say(f"{which}: {done}/{todo} certified", sys.stderr)
