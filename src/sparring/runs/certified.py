"""Certifies the models of runs by randomized smoothing, and writes what is certified to a folder."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from ..core.errors import UserError
from ..core.types import LabelledData
from ..evaluation.examples import shard_of
from ..evaluation.smoothing import certify
from ..records.certification import Certification, merge_certifications
from ..records.certification_files import CertificationFiles
from ..records.run_folder import RunFolder
from ..report.figures import plot_certified_accuracy
from .load import first_examples, loaders_of, model_on, test_images_of
from .recipe import Recipe
from .result_files import writable

OnProgress = Callable[[str, int, int], None]  # name of the weights, number of examples done, and of all


@dataclass(frozen=True, slots=True, kw_only=True)
class Certifying:
    """Options of a certification.

    Args:
        sigma: Standard deviation of the noise, in pixel units.
        samples: Number of noisy copies of an example that bound the share of its class.
        examples: Number of test images, taken from the beginning; None for all.
        batch_size: Number of copies that pass through a model at once; None for the default of `certify`.
        seed: Seed of the noise.
        shard: Part of the examples to certify, as (2, 8); its results go to a file of their own.
        merge: Merge the results of all parts instead of certifying.
        overwrite: Replace a certification of more images.
    """

    sigma: float
    samples: int = 100_000
    examples: int | None = None
    batch_size: int | None = None
    seed: int = 0
    shard: tuple[int, int] | None = None
    merge: bool = False
    overwrite: bool = False


def certify_run(
    run: RunFolder,
    recipe: Recipe,
    how: Certifying,
    *,
    device: str = "auto",
    which: Sequence[str] = ("best", "last"),
    on_progress: OnProgress = lambda which, done, todo: None,
) -> dict[str, Certification]:
    """Certifies the best and the last weights of a run on its test set, and writes the results to its folder.

    Votes go to `certification-best.npz` and `certification-last.npz`, tables to `certification.json`, the curve to
    `certified-accuracy.png`. A certification that was killed is resumed.

    Args:
        run: The run folder.
        recipe: The recipe, whose data are used.
        how: The noise, the numbers of samples and of images, and the part of the images.
        device: Device to certify on: `auto`, `cpu`, `cuda` or `cuda:N`.
        which: The weights to certify: "best", "last" or both.
        on_progress: Called with the name of the weights, the number of examples that are done, and of all.

    Returns:
        The certifications for "best" and "last".

    Raises:
        UserError: If the run is not finished, or for folders and shards as in `evaluate_run`.
    """
    if not run.finished():
        best = run.weights("best")
        raise UserError(f"{run.path} holds an unfinished run: train it to its end, or certify {best}, its best yet")
    test = test_images_of(recipe, device)
    return certify_models(loaders_of(run, recipe, test, which), test, how, out=run, on_progress=on_progress)


def certify_weights(
    path: Path,
    recipe: Recipe,
    how: Certifying,
    *,
    device: str = "auto",
    out: RunFolder | None = None,
    on_progress: OnProgress = lambda which, done, todo: None,
) -> dict[str, Certification]:
    """Certifies a file of weights on the test set of a recipe.

    Args:
        path: The file of weights.
        recipe: The recipe, whose data are used.
        how: The noise, the numbers of samples and of images, and the part of the images.
        device: Device to certify on.
        out: Folder for the results; None to write nothing.
        on_progress: As in `certify_run`.

    Returns:
        The certification, by the name "weights".

    Raises:
        UserError: As in `certify_run`.
    """
    test = test_images_of(recipe, device)
    loaders = {"weights": partial(model_on, test, path, recipe)}
    return certify_models(loaders, test, how, out=out, on_progress=on_progress)


def certify_models(
    loaders: Mapping[str, Callable[[], nn.Module]],
    test: LabelledData,
    how: Certifying,
    *,
    out: RunFolder | None = None,
    on_progress: OnProgress = lambda which, done, todo: None,
) -> dict[str, Certification]:
    """Certifies models, loading them one after the other, and writes the results to a folder.

    Args:
        loaders: Functions that load the models, by name; one that occurs twice is certified once.
        test: Labelled test images.
        how: The noise, the numbers of samples and of images, and the part of the images.
        out: Folder for the results; None to write nothing.
        on_progress: As in `certify_run`.

    Returns:
        The certifications by name.

    Raises:
        UserError: As in `certify_run`.
    """
    subset = first_examples(test, how.examples)
    with nullcontext() if out is None else writable(out, how.shard):
        files = None if out is None else CertificationFiles(out)
        if files is not None:
            _admit(files, len(subset), how.overwrite)
        found = _merged(files, list(loaders)) if how.merge else _certified(loaders, subset, how, files, on_progress)
        if files is not None and how.shard is None:
            files.write_tables({which: each.plain() for which, each in found.items()})
            plot_certified_accuracy(found, files.curve)
    return found


def _certified(
    loaders: Mapping[str, Callable[[], nn.Module]],
    subset: LabelledData,
    how: Certifying,
    files: CertificationFiles | None,
    on_progress: OnProgress,
) -> dict[str, Certification]:
    part, done = shard_of(how.shard, len(subset)), dict[Callable[[], nn.Module], Certification]()
    for which, load in loaders.items():
        if load not in done:
            done[load] = certify(
                load(),
                subset,
                how.sigma,
                samples=how.samples,
                batch_size=how.batch_size,
                seed=how.seed,
                shard=how.shard,
                state=None if files is None else files.state(which, part),
                on_progress=partial(on_progress, which),
            )
        if files is not None:
            files.write(which, done[load])
    return {which: done[load] for which, load in loaders.items()}


def _merged(files: CertificationFiles | None, which: Sequence[str]) -> dict[str, Certification]:
    if files is None:
        raise UserError("merge reads the results of all shards from a folder: give out, and no shard")
    found = {}
    for each in which:
        parts = files.shards(each)
        if not parts:
            raise UserError(
                f"{files.path} holds no certified shards of {each}: certify all shards before you merge them"
            )
        try:
            found[each] = merge_certifications(parts)
        except UserError as error:
            raise UserError(f"the shards of {each} in {files.path}: {error}") from error
    for each in which:
        files.write(each, found[each])
        files.forget_shards(each)
    return found


def _admit(files: CertificationFiles, count: int, overwrite: bool) -> None:
    held = 0 if overwrite else files.images()
    if held > count:
        raise UserError(
            f"{files.path} holds a certification of {held} images, and this one is of {count}: --overwrite it, or "
            "certify a file of weights, for which another folder can be named with --out, or none"
        )
