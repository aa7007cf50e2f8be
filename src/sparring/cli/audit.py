"""The command `sparring audit`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UserError
from .common import argument, check_options, note_unfinished, print_json, say, threat_for, value_of
from .models import ForeignOptions, filled_in, foreign, is_foreign
from .report import rewrite

if TYPE_CHECKING:
    from torch import nn

    from ..core.types import LabelledData, TensorData, Threat

_AUDIT = """\
usage: sparring audit TARGET [--threat THREAT] [--examples N] [--surrogate RUN_OR_WEIGHTS] [--device NAME] [--json] ...

Checks for signs that robustness comes from masked gradients. Each check reports its figure, threshold and source, a
verdict, and what to do next. TARGET is as for `sparring evaluate`: a run folder (its best weights), a file of weights,
module:function with --data, or robustbench:NAME. The findings on a run are written to its audit.json and report.html.
Exit status: 0 if no check fails, 1 if one does, 2 for a mistake in the command.

  sparring audit runs/quickstart
  sparring audit mymodels:build --data npz:test.npz --threat linf:8/255"""


@dataclass(frozen=True, kw_only=True)
class _Options:
    threat: str | None = None
    """Threat against which the model claims to be robust: linf:8/255, l2:0.5 or l1:12. By default the threat of the
    recipe."""
    examples: int | None = 200
    """Number of images, taken from the beginning of the test set."""
    surrogate: str | None = None
    """A run or weights whose adversarial examples are transferred; by default a small network that is trained on the
    outputs of the model."""
    recipe: str | None = None
    """The recipe of a file of weights, if the file does not contain it."""
    steps: int = 50
    """Number of steps of the attacks that are compared."""
    queries: int = 1000
    """Number of queries of the attack without gradients."""
    seed: int = 0
    """Seed of all random numbers."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print one JSON object on standard output instead of a table."""


@dataclass(frozen=True, kw_only=True)
class _ForeignOptions(ForeignOptions, _Options):
    examples: int | None = 200
    seed: int = 0


def audit(args: list[str]) -> int:
    target, rest = argument(args, "TARGET", _AUDIT)
    from ..acceleration import tune_process
    from ..records.results import passed
    from ..records.run_folder import RunFolder
    from ..runs.environment import device_of
    from .flags import parse

    tune_process()
    rest = filled_in(target, rest)
    kind = _ForeignOptions if is_foreign(target, rest) else _Options
    options, _, _ = parse(kind, None, {}, rest, f"sparring audit {target}", _AUDIT)
    check_options(options)
    device = device_of(options.device)
    model, test, threat = _subject(target, options, rest)
    from ..evaluation import AuditBudget
    from ..evaluation import audit as run_audit

    data = test[: options.examples].to(device)
    surrogate = None if options.surrogate is None else _surrogate(options.surrogate, data)
    found = run_audit(
        model.to(device),
        data,
        threat,
        surrogate=surrogate,
        budget=AuditBudget(options.steps, options.queries),
        seed=options.seed,
        on_check=lambda name: None if options.json else say(f"checking {name}", sys.stderr),
    )
    plain = {"target": target, "passed": passed(found), "checks": [finding.plain() for finding in found]}
    if Path(target).is_dir():
        RunFolder(target).write_audit({**plain, "threat": repr(threat), "examples": len(data), "seed": options.seed})
        rewrite(Path(target))
    if options.json:
        print_json(plain)
    else:
        from rich import print as rich_print

        from .console import findings_table

        rich_print(findings_table(found))
        say("\n".join(f"{each.verdict}: {each.name}: {each.advice}" for each in found if each.advice))
        say(f"{target}, {len(data)} images, {threat}: " + ("no check failed" if passed(found) else "FAILED"))
    return 0 if passed(found) else 1


def _surrogate(path: str, data: "TensorData") -> "nn.Module":
    """Load the model of another run or file, and check that it gives logits for these images."""
    import torch

    from ..core.types import pixels
    from ..core.validation import check_logits
    from ..runs.load import load_model

    model, few = load_model(path).to(data.y.device), pixels(data.x[:2])
    try:
        with torch.no_grad():
            out = model(few)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--surrogate {path} cannot take images of shape {data.shape} ({error})") from error
    check_logits(out, len(few), len(data.classes))
    return model


def _subject(target: str, options: _Options, args: list[str]) -> "tuple[nn.Module, LabelledData, Threat]":
    from ..attacks.threats import threat
    from .train import recipe_named

    named = value_of("--recipe", args)
    given: Threat | None = threat(options.threat) if options.threat else None
    if isinstance(options, _ForeignOptions):
        if given is None and named:
            given = threat_for(recipe_named(named), None)
        if given is None:
            raise UserError("nothing says where the model is robust: name its threat, as --threat linf:8/255")
        return *foreign(target, options), given
    from ..runs.load import load_model, recipe_of

    note_unfinished(target)
    recipe = recipe_named(named) if named else recipe_of(Path(target))
    return load_model(target, recipe), recipe.data.load()[1], threat_for(recipe, options.threat)
