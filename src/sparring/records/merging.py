"""Results on parts of the examples become the result on all of them. Needs no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

import numpy as np

from ..core.errors import UserError
from ..core.serialization import differences
from .gallery import Gallery, chosen, gallery_size
from .notes import counted_notes
from .results import PICTURES, Array, EvaluationResult, Examples, Shard

_GROUPS = ("robust", "margin", "norm", "adversarial", "calibration", "corrupted")
_NAMED = 5  # examples and shards that a message names


class ShardResult(Protocol):
    """A result on a part of the examples."""

    @property
    def index(self) -> Array | None: ...
    @property
    def shard(self) -> Shard | None: ...


def merge_evaluations(parts: Iterable[EvaluationResult]) -> EvaluationResult:
    """Merge results on parts of the examples into the result on all of them.

    Verdicts, margins, norms and distances are those of the parts, and the examples are in the order of their indices.
    Notes that count examples count all of them; another note that only some parts have says on how many examples.

    Args:
        parts: Results of all shards, of `evaluate(.., shard=(1, 8))` to `(8, 8)`, in any order; or of
            `evaluate(data.part(rows), .., index=rows)`, where the rows of all parts are 0, 1, 2, ... together.

    Returns:
        The result, as one evaluation of all examples gives it.

    Raises:
        UserError: If there are no parts, if they differ in model, adversaries or settings, or if an example is missing
            or in two parts.
    """
    parts = list(parts)
    if not parts:
        raise UserError("no results were given to be merged: give those of all parts of the examples")
    first = parts[0]
    for other in parts[1:]:
        _check_alike(first, other)
    check_shards([part.shard for part in parts])
    index = checked_index(parts)
    order = np.argsort(index, kind="stable")

    def joined(arrays: Sequence[Array | None]) -> Any:
        there = [each for each in arrays if each is not None]
        return np.concatenate(there)[order] if len(there) == len(parts) else None

    def group(name: str) -> dict[str, Any]:
        return {key: joined([getattr(part, name)[key] for part in parts]) for key in getattr(first, name)}

    whole = EvaluationResult(
        group("robust"),
        joined([part.label for part in parts]),
        first.classes,
        group("margin"),
        group("norm"),
        index[order],
        joined([part.distance for part in parts]),
        group("adversarial"),
        about=first.about,
        examples=_shown([part.examples for part in parts], "index"),
        hardest=_shown([part.hardest for part in parts], "index", "norm"),
        predicted=group("predicted"),
        passes=first.passes,
        seconds=_sums([part.seconds for part in parts]),
        image_hash=joined([part.image_hash for part in parts]),
        settings=first.settings,
        calibration=group("calibration"),
        corrupted=group("corrupted"),
    )
    return replace(whole, notes=(*counted_notes(whole), *_notes(parts)), gallery=_gallery(parts, whole))


def _sums(seconds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the duration of each stage over all parts, where all parts have it."""
    known = [name for name in seconds[0] if all(name in each for each in seconds)]
    return {name: sum(each[name] for each in seconds) for name in known}


def _gallery(parts: Sequence[EvaluationResult], whole: EvaluationResult) -> Gallery | None:
    """Return a gallery of the images in those of the parts."""
    galleries = [(part.index, part.gallery) for part in parts if part.gallery is not None and part.index is not None]
    if len(galleries) < len(parts) or whole.index is None:
        return None
    held = [replace(each, row=np.searchsorted(whole.index, index[each.row])) for index, each in galleries]
    joined = {each.name: np.concatenate([getattr(one, each.name) for one in held]) for each in fields(Gallery)[1:]}
    name, row = galleries[0][1].adversary, joined["row"]
    kept = chosen(row, whole.broken_by(name), whole.margin[name], gallery_size(joined["clean"].shape[1:]))
    places = {each: place for place, each in enumerate(row.tolist())}
    order = [places[each] for each in kept.tolist()]
    return Gallery(name, **{key: values[order] for key, values in joined.items()})


def _check_alike(first: EvaluationResult, other: EvaluationResult) -> None:
    """Check that two results are of the same model, adversaries and settings."""
    check_same(_identity(first), _identity(other))


def check_same(first: dict[str, Any], other: dict[str, Any]) -> None:
    """Raise `UserError` if what all parts of one evaluation have in common differs between two of them."""
    found = differences(first, other)
    if found:
        raise UserError(
            f"the results are of different evaluations ({'; '.join(found)[:300]}): evaluate all parts with the same "
            "model, attacks and settings"
        )


def _identity(part: EvaluationResult) -> dict[str, Any]:
    """Everything that all parts of one evaluation have in common."""
    groups = {name: sorted(getattr(part, name)) for name in _GROUPS}
    return {
        **part.settings,
        "classes": list(part.classes),
        "threats": dict(part.about),
        **groups,
        "distances": part.distance is not None,
    }


def check_shards(shards: Sequence[Shard | None]) -> None:
    """Check that the results are of all shards of one number of examples, or of no shards."""
    known = [shard for shard in shards if shard is not None]
    if not known:
        return
    if len(known) < len(shards) or len({(shard.of, shard.examples) for shard in known}) > 1:
        kinds = dict.fromkeys("no shard" if s is None else f"a shard {s} of {s.examples:,} examples" for s in shards)
        raise UserError(
            f"the results are of {_listed(list(kinds))}: merge those of all shards of the same number of examples"
        )
    numbers = [shard.number for shard in known]
    missing = [f"{number}/{known[0].of}" for number in range(1, 1 + known[0].of) if number not in numbers]
    if missing:
        raise UserError(f"results of the shards {_listed(missing)} are missing: evaluate these, and merge again")
    if len(set(numbers)) < len(numbers):
        twice = [f"{number}/{known[0].of}" for number in sorted(set(numbers)) if numbers.count(number) > 1]
        raise UserError(f"results of the shards {_listed(twice)} are there twice: give each once")


def checked_index(parts: Sequence[ShardResult]) -> Array:
    """Return the indices of all examples, after checking that none is missing or there twice."""
    if any(part.index is None for part in parts):
        raise UserError("a result has no index of its examples, and cannot be merged: evaluate its examples again")
    index: Array = np.concatenate([part.index for part in parts if part.index is not None])
    values, counts = np.unique(index, return_counts=True)
    if (counts > 1).any():
        raise UserError(
            f"the examples {_listed(values[counts > 1].tolist())} are in more than one result: give each part of the "
            "examples once"
        )
    if parts[0].shard is None:
        missing = np.setdiff1d(np.arange(max(len(values), 1 + values.max(initial=-1))), values)
        if len(missing):
            raise UserError(
                f"the examples {_listed(missing.tolist())} are in no result: evaluate all parts of the examples, each "
                "with the places of its examples as index"
            )
    return index


def _listed(names: Sequence[object]) -> str:
    some = ", ".join(str(name) for name in names[:_NAMED])
    return some if len(names) <= _NAMED else f"{some} and {len(names) - _NAMED:,} more"


def _shown(parts: Sequence[Examples | None], *keys: str) -> Examples | None:
    """Return the first few images of all parts, sorted by the last key and then by those before it."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    columns = {each.name: [getattr(part, each.name) for part in there] for each in fields(Examples)}
    held = {name: np.concatenate(column) for name, column in columns.items()}
    first = np.lexsort([held[key] for key in keys])[:PICTURES]
    return Examples(**{name: values[first] for name, values in held.items()})


def _notes(parts: Sequence[EvaluationResult]) -> list[str]:
    """Return the notes that do not count examples: one that only some parts have says on how many examples."""
    found: dict[str, int] = {}
    for part in parts:
        for note in dict.fromkeys(part.notes):
            if note not in counted_notes(part):
                found[note] = found.get(note, 0) + len(part.label)
    total = sum(len(part.label) for part in parts)
    return [note if count == total else f"on {count:,} of {total:,} examples: {note}" for note, count in found.items()]
