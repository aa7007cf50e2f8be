"""The command `sparring analyze RUN memorization`."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ...core.errors import UserError
from ..common import say
from .common import Attacked, attacked, how, print_if_json, say_files

if TYPE_CHECKING:
    from ...analysis.memorization.on_run import Memorization


@dataclass(frozen=True, kw_only=True)
class Options(Attacked):
    examples: int = 300
    """Number of images, taken from the beginning of the training set and of the test set."""
    jacobian_examples: int = 100
    """Number of training images for stability and complexity, measured in one batch."""
    steps: int = 10
    """Number of steps of the attack."""


def run(target: str, options: Options) -> int:
    from ...analysis.memorization.on_run import agreement, analyze_memorization, difficulties, write_memorization

    if options.jacobian_examples < 1:
        raise UserError(f"an analysis needs at least one image, not {options.jacobian_examples} as --jacobian-examples")
    runs, threat = attacked(target, options)
    first, *others = runs.values()
    for other in others:
        first.check_alike(other)
    given = {key: getattr(options, key) for key in ("examples", "jacobian_examples", "steps", "batch_size", "seed")}
    found = {name: analyze_memorization(run, threat, **given) for name, run in runs.items()}
    write_memorization(first.run, list(found.items()), how(options))
    one, *rest = found.values()
    alike = {name: agreement(*difficulties(one, each)) for name, each in zip(list(found)[1:], rest, strict=True)}
    plain = [asdict(each) for each in alike.values()]
    if print_if_json(runs, found, options, {"agreement": plain[0] if len(plain) == 1 else plain or None}):
        return 0
    _show(found)
    for name, each in alike.items():
        say(
            f"agreement with {name} on hard examples: Kendall's tau of the adversarial losses of {each.examples} "
            f"training examples is {each.tau:.3f} [{each.low:.3f}, {each.high:.3f}]"
        )
    say_files(runs, "memorization")
    return 0


def _show(found: "dict[str, Memorization]") -> None:
    from rich import print as rich_print
    from rich.markup import escape
    from rich.table import Table

    table = Table("", *map(escape, found))
    rows: dict[str, list[str]] = {}
    for each in found.values():
        for name, cell in _cells(each).items():
            rows.setdefault(name, []).append(cell)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    rich_print(table)


def _cells(found: "Memorization") -> dict[str, str]:
    """Return the rows of the table for one run, in the same order for all runs."""
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
        **{f"changed labels, {name}": cell for name, cell in fitted.items()},
        **{
            f"gradient in the {phase} of training": "" if length is None else f"{length:.4g}"
            for phase, length in found.phases().items()
        },
        **steady,
        **{name: value if isinstance(value, str) else f"{value:.4g}" for name, value in found.measures.items()},
    }


_FITTED = ("given label, clean", "given label, robust", "true label, clean", "true label, robust")
