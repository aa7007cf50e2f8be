"""The files that an evaluation leaves in a folder, also in parts that become one."""

import errno
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from ..core import ranks
from ..core.errors import UserError
from ..core.reading import parse_json, reading
from ..core.serialization import differences
from ..core.types import LabelledData
from ..evaluation import MinimumNorm, threat_of
from ..records.merging import merge_evaluations
from ..records.results import EvaluationResult
from ..records.run_folder import RunFolder, sharded
from ..records.summary import Summary
from ..report.figures import plot_adversarial_examples, plot_robustness_curve
from .environment import session
from .recipe import Evaluation

_HOW = "how"  # the setting in the file of a shard that will be recorded with the results


def write_shard(out: RunFolder, which: str, found: EvaluationResult, how: Mapping[str, Any]) -> None:
    """Write the results on one part of the examples, and delete the state of their evaluation."""
    out.write_shard(which, replace(found, settings={**found.settings, _HOW: json.dumps(how)}))
    out.forget_state(sharded(which, found.shard))


def merge_shards(
    out: RunFolder, which: Sequence[str], subset: LabelledData, evaluation: Evaluation, how: Mapping[str, Any]
) -> dict[str, EvaluationResult]:
    """Merge the results of all shards in a folder, write them as those of one evaluation, and delete the shards."""
    found = {}
    for each in which:
        parts = out.read_shards(each, ranks.world() if ranks.world() > 1 else None)
        if not parts:
            raise UserError(
                f"{out.path} holds no results of shards of {each}: evaluate all shards before you merge them"
            )
        for part in parts:
            _check_how(out, part, how)
        try:
            merged = merge_evaluations(parts)
        except UserError as error:
            raise UserError(f"the shards of {each} in {out.path}: {error}") from error
        found[each] = replace(merged, settings={key: text for key, text in merged.settings.items() if key != _HOW})
    write_results(out, found, subset, evaluation, how)
    for each in which:
        out.forget_shards(each)
    return found


def _check_how(out: RunFolder, part: EvaluationResult, how: Mapping[str, Any]) -> None:
    """Check that a shard was evaluated with the settings that are to be recorded with the results."""
    with reading(out.path, "evaluate its shards again"):
        begun = parse_json(part.settings.get(_HOW, "{}"))
    changed = differences(begun, json.loads(json.dumps(how)))
    if changed:
        raise UserError(
            f"shard {part.shard} in {out.path} is of another evaluation ({'; '.join(changed)[:300]}): give --merge the "
            "flags that the shards had, or evaluate it again"
        )


def write_results(
    out: RunFolder,
    found: Mapping[str, EvaluationResult],
    test: LabelledData,
    evaluation: Evaluation,
    how: Mapping[str, Any],
) -> None:
    """Write the results by weights, the tables and `how` they were found, draw figures, and delete the states."""
    first = next(iter(found.values()))
    for which, evaluated in found.items():
        out.write_flags(which, evaluated)
    plain = {
        which: {**{name: a.plain() for name, a in each.table().items()}, "summary": Summary.of(each).plain()}
        for which, each in found.items()
    }
    notes = {which: list(each.notes) for which, each in found.items() if each.notes}
    search = {"search": first.settings["search"]}
    environment = {"environment": session(int(how.get("seed", 0)), test.y.device)}
    out.write_evaluation({**plain, **({"notes": notes} if notes else {}), "how": {**how, **search}, **environment})
    for path in (out.adversarial_examples, out.hardest_examples, out.robustness_curve):
        path.unlink(missing_ok=True)
    if first.examples is not None:
        plot_adversarial_examples(first.examples, test.classes, out.adversarial_examples)
    if first.hardest is not None:
        plot_adversarial_examples(first.hardest, test.classes, out.hardest_examples)
    nearest = next((each for each in evaluation.adversaries.values() if isinstance(each, MinimumNorm)), None)
    if nearest is not None:
        norm = type(nearest.threat)
        bounds = {name: threat_of(each) for name, each in evaluation.adversaries.items() if each is not nearest}
        points = {name: threat.eps for name, threat in bounds.items() if isinstance(threat, norm)}
        plot_robustness_curve(found, norm.__name__, points, out.robustness_curve)
    for which in found:
        out.forget_state(which)


def admit(out: RunFolder, test: LabelledData, evaluation: Evaluation, overwrite: bool) -> None:
    """Raise `UserError` for a folder that holds a result on more images, which is worth more than its replacement."""
    held, count = 0 if overwrite else out.evaluated_images(), min(len(test), evaluation.examples or len(test))
    if held > count:
        raise UserError(
            f"{out.path} holds an evaluation on {held} images, and this one is on {count}: evaluate as many, or "
            "replace it, by overwrite=True (--overwrite)"
        )


def writable(out: RunFolder, shard: tuple[int, int] | None) -> AbstractContextManager[None]:
    """Return the lock of a folder, after checking that it can be written: better before an evaluation than after.

    Shards take no lock: they write to files of their own.
    """
    try:
        out.path.mkdir(parents=True, exist_ok=True)
        if not os.access(out.path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        alone = out.weights("best")
        instead = f"evaluate {alone}, for which nothing is written" if alone.exists() else "name another with --out"
        raise UserError(f"{out.path} cannot be written ({error.strerror or error}): {instead}") from error
    return out.locked() if shard is None else nullcontext()
