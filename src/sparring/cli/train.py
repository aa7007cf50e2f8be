"""The commands `sparring show` and `sparring train`."""

import inspect
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import UserError
from .common import argument, going_on, only, ourselves, print_json, say
from .structure import HELP, Structure, changed, own_recipe, recipe_of_config, taken

if TYPE_CHECKING:
    from ..records.run_folder import RunFolder
    from ..runs.recipe import Recipe


def show(args: list[str]) -> int:
    usage = (
        "usage: sparring show RECIPE [--json | --yaml]\n\nShows a recipe in full; --json prints it as a run saves it, "
        "--yaml as `sparring train --config FILE` reads it."
    )
    name, rest = argument(args, "RECIPE", usage)
    only(rest, usage, "--json", "--yaml")
    make, text = _function(name)
    recipe = _recipe_of(name, make)
    if "--json" in rest:
        print_json(recipe.plain())
    elif "--yaml" in rest:
        import yaml

        say(yaml.safe_dump(recipe.plain(), sort_keys=False, allow_unicode=True).rstrip())
    else:
        from rich import print as rich_print
        from rich.pretty import Pretty

        say(text + "\n")
        rich_print(Pretty(recipe, expand_all=True))
        from ..training.cost import cost

        found = cost(recipe.method, recipe.update, recipe.epochs, _USUAL)
        say(
            f"\ncost: {found.forward:.3g} forward and {found.backward:.3g} backward passes per example and step, "
            f"averaged over {recipe.epochs} epochs\nevery field: sparring train {name} --help"
        )
    return 0


_USUAL = 390
"""Number of steps in an epoch of CIFAR-10, assumed because `show` loads no data."""

_TRAIN = f"""\
usage: sparring train RECIPE [--model MODEL] [--data DATA] [--method METHOD] [--out DIR] [--field.path VALUE ...]
       sparring train --model MODEL --data DATA [--method METHOD] --eps EPS | --threat THREAT [...]

Trains a recipe. If the folder holds an unfinished run of it, training continues from the newest checkpoint. RECIPE is
one that `sparring list` shows, or a function of your own: file.py:function, or module:function.

{HELP}

`sparring train RECIPE --help` shows every other flag: each number of the recipe is one, such as --epochs, --batch-size,
--lr.peak and --method.attack.steps.

  sparring train fashion_pgd --method trades --epochs 4
  sparring train --model mymodels.py:build --data npz:mine.npz --method trades --eps 8/255"""


@dataclass(frozen=True, kw_only=True)
class _TrainOptions:
    out: str | None = None
    """Run folder; by default runs/RECIPE."""
    overwrite: bool = False
    """Delete the run in the folder and start anew."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    save_seconds: float = 300.0
    """Seconds between checkpoints, at most; there is also one after each epoch."""
    save_steps: int | None = None
    """Number of steps between checkpoints, at most."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Trackers that show the run too; each needs its extra, as in pip install 'sparring[wandb]'."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the attacks: auto is bf16 where the processor has it. The weights are updated in fp32."""
    compile: Literal["auto", "on", "off", "max-autotune"] = "auto"
    """Compile the attacked model: auto compiles for long runs."""
    update_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the updates: auto leaves torch as it is set (TF32 on a GPU); bf16 has not been shown as good."""
    capture: bool = False
    """On a GPU, record attacks as CUDA graphs: less time for small batches, more memory."""
    deterministic: bool = False
    """On a GPU, compute the same bits each time, as a CPU does; slower."""
    accumulate: int = 1
    """Number of micro-batches into which a step divides a batch, one after the other, to save memory."""
    recompute: bool = False
    """Compute activations of repeated blocks again in the backward pass: less memory, one forward pass more."""
    batch_norm: Literal["global", "local"] = "global"
    """On several processes (torchrun), batch norm in the updates takes mean and variance over the batch of all of them,
    or over the part of its own process, which communicates less and depends on the number of processes."""
    fit_batch: bool = False
    """On a GPU, find the largest batch that fits into its memory, in place of --batch-size. The rate stays as it is."""
    profile: bool = False
    """Write profile.json (for a Chrome tracing viewer) and profile.txt (time by stage and operation)."""
    record_history: bool = False
    """Record loss and correctness of every training example after each epoch, under the selection attack."""
    json: bool = False
    """Print one JSON object on standard output instead of sentences."""


def train(args: list[str]) -> int:
    alone = bool(args) and args[0].startswith("--") and args[0] != "--help"
    name, rest = ("", args) if alone else argument(args, "RECIPE", _TRAIN)
    options, recipe, name = _chosen(name, rest)
    from ..acceleration import tune_process
    from ..core import ranks
    from ..runs.fit import fit
    from ..runs.processes import together
    from ..runs.progress import training
    from ..training.hooks import Interrupted, Saving

    tune_process()
    out = options.out or f"runs/{name}"
    saving = Saving(options.save_seconds, options.save_steps)
    first = True
    try:
        with together(options.device) as device, training() as output:
            first = ranks.first()
            if options.fit_batch:
                recipe = _with_largest_batch(recipe, out, options, device)
                output.say(f"batches of {recipe.batch_size} images")
            run = fit(
                recipe,
                out,
                device=device,
                overwrite=options.overwrite,
                saving=saving,
                track=options.track,
                precision=options.precision,
                compile=options.compile,
                update_precision=options.update_precision,
                capture=options.capture,
                deterministic=options.deterministic,
                accumulate=options.accumulate,
                batch_norm=options.batch_norm,
                recompute=options.recompute,
                profile=options.profile,
                on_progress=output.show,
                log=output.say,
            )
    except Interrupted as stop:
        again = going_on("train", args)
        if first:
            say(f"sparring: {stop}; everything is saved. Go on with: {again}", sys.stderr)
        return 130
    if first:
        _report_training(run, options.json)
    return 0


def _with_largest_batch(recipe: "Recipe", out: str, options: _TrainOptions, device: str) -> "Recipe":
    from ..runs.compute import ComputeSettings
    from ..runs.memory import with_largest_batch

    how = (options.precision, options.compile, options.update_precision, options.capture, options.deterministic)
    settings = ComputeSettings(*how, options.accumulate, options.batch_norm, options.recompute)
    return with_largest_batch(recipe, out, device, settings, options.overwrite)


def _chosen(name: str, args: list[str]) -> "tuple[_TrainOptions, Recipe, str]":
    """Return the options, the recipe that the flags ask for, and a name for its run.

    A parameter of the recipe's function, such as --eps, decides several fields; therefore the flags of the fields are
    applied again to the recipe that these parameters give.
    """
    parts, rest = taken(args, of_recipe=bool(name))
    if name and parts.config:
        raise UserError(f"both the recipe {name} and --config {parts.config} are given: give one of them")
    if parts.config and parts.eps:
        raise UserError(f"--eps belongs to recipes by name: with --config, write --threat linf:{parts.eps}")
    if name:
        make, text = _function(name)
    elif parts.config:
        path = Path(parts.config)
        make, text, name = partial(recipe_of_config, path), f"The recipe of {path}.", path.stem
    else:
        make, text, name = partial(own_recipe, parts), "A model and data of your own.", _short(parts)
    from ..recipes import PARAMETERS
    from .flags import parameters, parse

    def parsed(given: dict[str, Any]) -> "tuple[_TrainOptions, Recipe, dict[str, Any]]":
        recipe = _recipe_of(name, make, **given)
        if parts and not isinstance(make, partial):
            recipe = changed(recipe, parts)
        elif parts.config:
            recipe = changed(recipe, replace(parts, config=None))
        return parse(_TrainOptions, recipe, first, rest, f"sparring train {name}", text, about=PARAMETERS)

    first = {} if isinstance(make, partial) else parameters(make)
    options, recipe, wanted = parsed(first)
    if wanted != first:
        options, recipe, _ = parsed(wanted)
    if options.record_history and recipe.example_history is None:
        from ..training.example_history import remembering

        recipe = replace(recipe, example_history=remembering(recipe.selection))
    return options, recipe, _of_file(name)


def recipe_named(name: str) -> "Recipe":
    """Return the recipe of a name, with its defaults."""
    return _recipe_of(name, _function(name)[0])


def _recipe_of(name: str, make: "Callable[..., Recipe]", **given: Any) -> "Recipe":
    """Call the function of a recipe. Raises `UserError` if it needs more, or gives something else."""
    from ..runs.recipe import Recipe
    from .flags import parameters

    if not isinstance(make, partial):
        parameters(make)  # each must have a default
    recipe = make(**given)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{name} gives a {type(recipe).__name__}: wanted is a Recipe; a model is named by --model")
    return recipe


def _function(name: str) -> "tuple[Callable[..., Recipe], str]":
    """Return the function of a recipe and its description; an unknown name is reported before heavy imports."""
    from ..recipes import entries, find

    make = find(name)
    known = entries().get(name)
    return make, known.text if known else inspect.cleandoc(make.__doc__ or f"The recipe {name}.")


def _short(parts: Structure) -> str:
    """Return a name for the run of a model and data of the user's own."""
    model = (parts.model or "model").rpartition(":")[2]
    return f"{model}-{_of_file(parts.method or 'pgd')}"


def _of_file(name: str) -> str:
    """Return a name for a run: `half-recipe` for half.py:recipe."""
    place, _, member = name.rpartition(":")
    stem = Path(place).name.removesuffix(".py").rpartition(".")[2]
    return f"{stem}-{member}" if place else member


def _trust(run: "RunFolder") -> list[str]:
    """Return the flags that allow the files of a run to name code of other packages."""
    from ..core.foreign import modules_in

    return [word for module in modules_in(run.recipe()) for word in ("--trust", module.partition(".")[0])]


def _report_training(run: "RunFolder", as_json: bool) -> None:
    status = run.status()
    if as_json:
        print_json({"run": str(run.path), **status})
        return
    if events := run.guard():
        say(f"guard: {len(events)} {'event' if len(events) == 1 else 'events'} in {run.path / 'guard.json'}")
    again = shlex.join([ourselves(), "evaluate", str(run.path), *_trust(run)])
    say(f"{run}\nlearning curve: {run.learning_curve}\nnext: {again}")
