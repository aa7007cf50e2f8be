"""The commands `sparring list`, `show` and `train`."""

import shlex
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from .common import argument, only, ourselves, print_json, say

if TYPE_CHECKING:
    from ..records.run_folder import RunFolder
    from ..runs.recipe import Recipe


def list_recipes(args: list[str]) -> int:
    only(args, "usage: sparring list [--json]\n\nLists the recipes, one per line.", "--json")
    from ..recipes import entries

    found = entries()
    if "--json" in args:
        print_json({name: entry.summary for name, entry in found.items()})
    else:
        width = max(map(len, found))
        say("\n".join(f"{name:{width}}  {entry.summary}" for name, entry in found.items()))
    return 0


def show(args: list[str]) -> int:
    usage = "usage: sparring show RECIPE [--json]\n\nShows a recipe in full; --json prints it as a run saves it."
    name, rest = argument(args, "RECIPE", usage)
    only(rest, usage, "--json")
    from ..recipes import entries, find

    recipe = find(name)()
    if "--json" in rest:
        print_json(recipe.plain())
    else:
        from rich import print as rich_print
        from rich.pretty import Pretty

        say(entries()[name].text + "\n")
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

_TRAIN = """\
usage: sparring train RECIPE [--out DIR] [--overwrite] [--device NAME] [--json] [--field.path VALUE ...]

Trains a recipe. If the folder holds an unfinished run of it, training continues from the newest checkpoint.
`sparring train RECIPE --help` shows every field of the recipe; `sparring list` shows the recipes."""


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
    tensorboard: bool = False
    """Write TensorBoard events too (needs sparring[tensorboard])."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the attacks: auto is bf16 where the processor has it. The weights are updated in fp32."""
    compile: Literal["auto", "on", "off", "max-autotune"] = "auto"
    """Compile the attacked model: auto compiles on a GPU, and for long runs of normalised networks on a CPU."""
    profile: bool = False
    """Write profile.json (for a Chrome tracing viewer) and profile.txt (time by stage and operation)."""
    record_history: bool = False
    """Record loss and correctness of every training example after each epoch, under the selection attack."""
    json: bool = False
    """Print one JSON object on standard output instead of sentences."""


def train(args: list[str]) -> int:
    name, rest = argument(args, "RECIPE", _TRAIN)
    options, recipe = _chosen(name, rest)
    from ..acceleration import tune_process
    from ..runs.fit import fit
    from ..runs.progress import training
    from ..training.hooks import Interrupted, Saving

    tune_process()
    out = options.out or f"runs/{name}"
    saving = Saving(options.save_seconds, options.save_steps)
    try:
        with training() as output:
            run = fit(
                recipe,
                out,
                device=options.device,
                overwrite=options.overwrite,
                saving=saving,
                tensorboard=options.tensorboard,
                precision=options.precision,
                compile=options.compile,
                profile=options.profile,
                on_progress=output.show,
                log=output.say,
            )
    except Interrupted as stop:
        again = shlex.join([ourselves(), "train", *(a for a in args if a != "--overwrite")])
        say(f"sparring: {stop}; everything is saved. Go on with: {again}", sys.stderr)
        return 130
    _report_training(run, options.json)
    return 0


def _chosen(name: str, args: list[str]) -> "tuple[_TrainOptions, Recipe]":
    """Return the recipe that the flags ask for.

    A parameter of the recipe's function, such as --eps, decides several fields; therefore the flags of the fields are
    applied again to the recipe that these parameters give.
    """
    from ..recipes import entries, find

    make, text = find(name), entries()[name].text  # report an unknown name before anything heavy is imported
    from .flags import parameters, parse

    given = parameters(make)
    options, recipe, wanted = parse(_TrainOptions, make(**given), given, args, f"sparring train {name}", text)
    if wanted != given:
        options, recipe, _ = parse(_TrainOptions, make(**wanted), given, args, f"sparring train {name}", text)
    if options.record_history and recipe.example_history is None:
        from ..training.example_history import remembering

        recipe = replace(recipe, example_history=remembering(recipe.selection))
    return options, recipe


def _report_training(run: "RunFolder", as_json: bool) -> None:
    status = run.status()
    if as_json:
        print_json({"run": str(run.path), **status})
        return
    if events := run.guard():
        say(f"guard: {len(events)} {'event' if len(events) == 1 else 'events'} in {run.path / 'guard.json'}")
    say(f"{run}\nlearning curve: {run.learning_curve}\nnext: {shlex.join([ourselves(), 'evaluate', str(run.path)])}")
