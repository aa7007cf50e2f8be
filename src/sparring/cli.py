"""The shell: `sparring list | show | train | evaluate`. Nothing heavy is imported before a command needs it."""

import json
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .errors import UserError, nearest

if TYPE_CHECKING:
    from .recipe import Recipe
    from .results import RunFolder

_USAGE = """\
usage: sparring COMMAND ...

Train image classifiers against an adversary, and measure how robust they are.

commands:
  list                           the recipes, a line each
  show RECIPE                    what a recipe is, in full
  train RECIPE [--out DIR]       train it; on an unfinished run, go on
  evaluate RUN_OR_WEIGHTS        clean and robust accuracy, per attack, with intervals

Each takes --help; those that report figures take --json and then print one object on standard output.

  sparring train quickstart
  sparring evaluate runs/quickstart
  sparring train fashion_pgd --eps 0.2 --method.attack.steps 10 --seed 1 --out runs/wide"""


def main() -> None:
    """The entry point of the command. Exit codes: 0 done, 2 a mistake that the message explains, 130 interrupted."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Carries out a command line and returns the exit code."""
    commands: dict[str, Callable[[list[str]], int]] = {
        "list": _list,
        "show": _show,
        "train": _train,
        "evaluate": _evaluate,
    }
    warnings.showwarning = lambda message, *_: _say(f"sparring: warning: {message}", sys.stderr)
    try:
        if not argv or argv[0] in ("-h", "--help"):
            _say(_USAGE)
            return 0 if argv else 2
        if argv[0] == "--version":
            from importlib.metadata import version

            _say(version("sparring"))
            return 0
        if argv[0] not in commands:
            raise UserError(f"no command {argv[0]!r}: {nearest(argv[0], commands)}")
        return commands[argv[0]](argv[1:])
    except UserError as error:
        _say(f"sparring: {error}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        _say("sparring: interrupted", sys.stderr)
        return 130
    except BrokenPipeError:  # `sparring list | head`
        sys.stderr.close()
        return 0


# -- commands


def _list(args: list[str]) -> int:
    _only(args, "usage: sparring list [--json]\n\nThe recipes, a line each.", "--json")
    from .recipes import entries

    found = entries()
    if "--json" in args:
        _print_json({name: entry.summary for name, entry in found.items()})
    else:
        width = max(map(len, found))
        _say("\n".join(f"{name:{width}}  {entry.summary}" for name, entry in found.items()))
    return 0


def _show(args: list[str]) -> int:
    usage = "usage: sparring show RECIPE [--json]\n\nWhat a recipe is, in full. --json prints what a run writes down."
    name, rest = _argument(args, "RECIPE", usage)
    _only(rest, usage, "--json")
    from .recipes import entries, find

    recipe = find(name)()
    if "--json" in rest:
        _print_json(recipe.plain())
    else:
        from rich import print as rich_print
        from rich.pretty import Pretty

        _say(entries()[name].text + "\n")
        rich_print(Pretty(recipe, expand_all=True))
        _say(f"\nevery field: sparring train {name} --help")
    return 0


_TRAIN = """\
usage: sparring train RECIPE [--out DIR] [--overwrite] [--device NAME] [--json] [--field.path VALUE ...]

Trains a recipe. On a folder that holds an unfinished run of it, goes on from the newest checkpoint.
`sparring train RECIPE --help` shows every field of the recipe; `sparring list` shows the recipes."""


@dataclass(frozen=True, kw_only=True)
class _TrainOptions:
    out: str | None = None
    """The run folder; runs/RECIPE if left out."""
    overwrite: bool = False
    """Delete the run that the folder holds and start anew."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    save_seconds: float = 300.0
    """A checkpoint at least this often, besides one after each epoch."""
    save_steps: int | None = None
    """A checkpoint after every so many steps."""
    tensorboard: bool = False
    """Write TensorBoard events too (needs sparring[tensorboard])."""
    json: bool = False
    """Print one JSON object on standard output instead of sentences."""


def _train(args: list[str]) -> int:
    name, rest = _argument(args, "RECIPE", _TRAIN)
    options, recipe = _chosen(name, rest)
    from . import console
    from .hooks import Interrupted, Saving
    from .run import fit

    out = options.out or f"runs/{name}"
    saving = Saving(options.save_seconds, options.save_steps)
    try:
        with console.training() as show:
            run = fit(
                recipe,
                out,
                device=options.device,
                overwrite=options.overwrite,
                saving=saving,
                tensorboard=options.tensorboard,
                show=show,
            )
    except Interrupted as stop:
        again = shlex.join([_ourselves(), "train", *(a for a in args if a != "--overwrite")])
        _say(f"sparring: {stop}; everything is saved. Go on with: {again}", sys.stderr)
        return 130
    _report_training(run, options.json)
    return 0


def _chosen(name: str, args: list[str]) -> "tuple[_TrainOptions, Recipe]":
    """The recipe that the flags ask for.

    A parameter of the recipe's function, such as --eps, decides several fields; so the flags of the fields are read
    again over what the parameters give.
    """
    from .recipes import entries, find

    make, text = find(name), entries()[name].text  # an unknown name is said before anything heavy is imported
    from .flags import parameters, parse

    given = parameters(make)
    options, recipe, wanted = parse(_TrainOptions, make(**given), given, args, f"sparring train {name}", text)
    if wanted != given:
        options, recipe, _ = parse(_TrainOptions, make(**wanted), wanted, args, f"sparring train {name}", text)
    return options, recipe


def _report_training(run: "RunFolder", as_json: bool) -> None:
    status = run.status()
    if as_json:
        _print_json({"run": str(run.path), **status})
        return
    best = status["best"]
    _say(
        f"{run.path}: trained {status['step']} steps; best after step {best['step']}, held-out accuracy "
        f"{100 * best['clean']:.1f} % clean, {100 * best['robust']:.1f} % robust\n"
        f"learning curve: {run.learning_curve}\n"
        f"next: {shlex.join([_ourselves(), 'evaluate', str(run.path)])}"
    )


_EVALUATE = """\
usage: sparring evaluate RUN_OR_WEIGHTS [--recipe RECIPE] [--device NAME] [--json] [--field.path VALUE ...]

Accuracy on the test set, clean and under each attack of the recipe, with 95 % Wilson intervals. For a run folder: of
the best and of the last weights, and what was found is written there. For a file of weights: of these; weights that
were not written by sparring (RobustBench's, for example) need --recipe to say which model they belong to.
`sparring evaluate RUN --help` shows the fields of the evaluation, --evaluation.examples among them."""


@dataclass(frozen=True, kw_only=True)
class _EvaluateOptions:
    recipe: str | None = None
    """The recipe whose model, data and attacks to use, for weights that do not say."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print one JSON object on standard output instead of a table."""


def _evaluate(args: list[str]) -> int:
    target, rest = _argument(args, "RUN_OR_WEIGHTS", _EVALUATE)
    from . import console
    from .results import RunFolder
    from .trained import evaluate_run, evaluate_weights

    path = Path(target)
    options, recipe = _chosen_evaluation(path, rest)
    with console.evaluating() as show:
        if path.is_dir():
            tables = evaluate_run(RunFolder(path), recipe, device=options.device, show=show)
        else:
            tables = {"weights": evaluate_weights(path, recipe, device=options.device, show=show)}
    if options.json:
        _print_json({which: {name: a.plain() for name, a in table.items()} for which, table in tables.items()})
        return 0
    from rich import print as rich_print

    rich_print(console.accuracy_table(tables))
    for attack, adversary in recipe.evaluation.adversaries.items():
        _say(f"{attack}: {adversary}")
    if path.is_dir():
        picture = RunFolder(path).adversarial_examples
        _say(f"run folder: {path}\n" + (f"picture: {picture}" if picture.exists() else "no example was broken"))
    return 0


def _chosen_evaluation(path: Path, args: list[str]) -> "tuple[_EvaluateOptions, Recipe]":
    """The recipe that the run, the weights or --recipe name, with what the flags change of data and evaluation."""
    from .flags import parse
    from .recipes import find
    from .trained import recipe_of

    named = _value_of("--recipe", args)
    recipe = find(named)() if named else recipe_of(path)
    what = "Accuracy on the test set, clean and under each attack. The flags change what the recipe says."
    fields = ("data", "evaluation", "seed")
    options, recipe, _ = parse(_EvaluateOptions, recipe, {}, args, f"sparring evaluate {path}", what, fields)
    return options, recipe


# -- helpers


def _argument(args: list[str], what: str, usage: str) -> tuple[str, list[str]]:
    """The one positional argument, which comes first, and the rest."""
    if args and args[0] in ("-h", "--help"):
        _say(usage)
        raise SystemExit(0)
    if not args or args[0].startswith("-"):
        raise UserError(f"{what} is missing, and it comes first\n{usage}")
    return args[0], args[1:]


def _ourselves() -> str:
    """How this program was called, so that a printed command can be given as it is."""
    called = Path(sys.argv[0])
    found = shutil.which("sparring")
    elsewhere = called.name == "sparring" and not (found and called.resolve() == Path(found).resolve())
    return str(called) if elsewhere else "sparring"


def _value_of(flag: str, args: list[str]) -> str | None:
    """What follows a flag, as `--flag value` or `--flag=value`; needed before the flags can be parsed."""
    after = [b for a, b in pairwise(args) if a == flag]
    joined = [a.removeprefix(flag + "=") for a in args if a.startswith(flag + "=")]
    return next(iter(after + joined), None)


def _only(args: list[str], usage: str, *known: str) -> None:
    """Help if it is asked for; an error for a flag that is not known."""
    if "-h" in args or "--help" in args:
        _say(usage)
        raise SystemExit(0)
    for arg in args:
        if arg not in known:
            raise UserError(f"unknown argument {arg!r}\n{usage}")


def _print_json(value: Mapping[str, Any]) -> None:
    _say(json.dumps(value, indent=2))


def _say(text: str, file: TextIO | None = None) -> None:
    print(text, file=file or sys.stdout)
