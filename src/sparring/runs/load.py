"""Loads the models of runs and evaluates them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.reading import reading
from ..core.types import AttackBackend, Classifier, LabelledData, TensorData
from ..data.sources import test_images
from ..evaluation import EvaluationProgress, evaluate
from ..evaluation.examples import shard_of
from ..models import load_robustbench
from ..records.results import EvaluationResult
from ..records.run_folder import RunFolder, sharded
from ..training.checkpoint import fill, read_weights
from .environment import device_of
from .recipe import Evaluation, Recipe, recipe_from_plain
from .result_files import admit, merge_shards, writable, write_results, write_shard
from .trackers import Track, tracked

OnProgress = Callable[[str, EvaluationProgress], None]  # name of the weights, state of their evaluation


def load_model(path: Path | str, recipe: Recipe | None = None) -> nn.Module:
    """Loads a trained model in eval mode, on the CPU.

    Weights written by `fit` contain their recipe. For others, such as RobustBench's, `recipe` describes the model they
    belong to; its training set is loaded, because the model takes classes and image shape from it.

    Args:
        path: A file of weights, or a run folder, whose best weights are loaded.
        recipe: The recipe of the model; None for the one that the weights name.

    Returns:
        The model, in eval mode.

    Raises:
        UserError: If the file cannot be read, names no recipe, or does not fit the model.
    """
    with reading(Path(path), "it is of another version, or damaged; or --recipe names another model"):
        return _loaded(RunFolder(path).weights("best") if Path(path).is_dir() else Path(path), recipe)


def _loaded(path: Path, recipe: Recipe | None) -> nn.Module:
    tensors, about = read_weights(path)
    recipe = recipe_of(path) if recipe is None else recipe
    model = recipe.unfilled().build_model(_like(about, recipe))
    ours = set(tensors) == set(model.state_dict())
    if not ours and "recipe" not in about and isinstance(model, Classifier):
        return load_robustbench(model, tensors).eval()
    return fill(model, tensors, f"{path} does not fit the model of its recipe").eval()


def recipe_of(path: Path) -> Recipe:
    """Reads the recipe of a run folder or of a file of weights.

    Args:
        path: The run folder or file.

    Returns:
        The recipe.

    Raises:
        UserError: If there is none, or it is of another format.
    """
    plain = RunFolder(path).recipe() if path.is_dir() else read_weights(path)[1].get("recipe")
    if plain is None:
        what = "is no run folder" if path.is_dir() else "does not say which model it belongs to: name one with --recipe"
        raise UserError(f"{path} {what}")
    return recipe_from_plain(plain)


def evaluate_run(
    run: RunFolder | Path | str,
    recipe: Recipe,
    *,
    device: str = "auto",
    which: Sequence[str] = ("best", "last"),
    overwrite: bool = False,
    keep_images: bool = False,
    backend: AttackBackend | None = None,
    shard: tuple[int, int] | None = None,
    merge: bool = False,
    track: Track = (),
    on_progress: OnProgress = lambda which, news: None,
) -> dict[str, EvaluationResult]:
    """Evaluates the best and the last weights of a run on its test set, and writes the results to its folder.

    Per-example results go to `evaluation-best.npz` and `evaluation-last.npz`, tables and the settings of the evaluation
    to `evaluation.json`, and figures are drawn. An evaluation that was killed is resumed. The results of a shard go to
    files such as `evaluation-best-shard-2-of-8.npz`, which are deleted when they have been merged.

    Args:
        run: The run folder, or its path.
        recipe: The recipe, whose data, evaluation and seed are used.
        device: Device to evaluate on: `auto` (the GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        which: The weights to evaluate: "best", "last" or both.
        overwrite: Replace a result on more images.
        keep_images: Keep all adversarial images with the per-example results.
        backend: Backend of the attacks; None for `AcceleratedCopy()`.
        shard: Part of the examples to evaluate, as (2, 8) for the second of eight. Its results go to a file of their
            own, and `merge` makes one result of all. Machines that share the folder may each evaluate a part.
        merge: Merge the results of all parts that were evaluated, with the same arguments, instead of evaluating.
        track: Trackers that show the results, too, as for `fit`.
        on_progress: Called with the name of the weights and the state of their evaluation.

    Returns:
        The results for "best" and "last".

    Raises:
        UserError: If the run is not finished, if the folder cannot be written, if it holds a result on more images
            and `overwrite` is off, or if the results to be merged are not those of all shards of this evaluation.
    """
    if shard is not None and track:
        raise UserError(
            "a tracker shows the results on all examples: leave out track with a shard, and give it to merge"
        )
    run = run if isinstance(run, RunFolder) else RunFolder(run)
    with writable(run, shard):
        if not run.finished():
            best = run.weights("best")
            raise UserError(
                f"{run.path} holds an unfinished run: train it to its end, or evaluate {best}, its best yet"
            )
        test = test_images_of(recipe, device)
        loaders = loaders_of(run, recipe, test, which)
        how = {key: recipe.plain()[key] for key in ("data", "evaluation", "seed")}
        admit(run, test, recipe.evaluation, overwrite)
        how["selected"] = recipe.selected
        given: dict[str, Any] = {"keep_images": keep_images, "backend": backend, "on_progress": on_progress}
        given |= {"shard": shard, "merge": merge}
        with tracked(track, run, run.status()["step"]) as tracker:
            found = _evaluated(loaders, test, recipe.evaluation, run, seed=recipe.seed, how=how, **given)
            if shard is not None:
                return found
            for picture in (run.adversarial_examples, run.robustness_curve, run.hardest_examples):
                tracker.picture(picture)
            tracker.verdict(_figures(found))
        return found


def _figures(found: Mapping[str, EvaluationResult]) -> dict[str, float | str]:
    """Return the accuracies by weights and attack, with the reason where they are no plain measurement."""
    tables = {which: each.table() for which, each in found.items()}
    values = {f"{which}/{name}": accuracy.value for which, table in tables.items() for name, accuracy in table.items()}
    notes = {f"{which}/notes": " ".join(each.notes) for which, each in found.items() if each.notes}
    return {**values, **notes}


def evaluate_weights(
    path: Path,
    recipe: Recipe,
    *,
    device: str = "auto",
    out: RunFolder | None = None,
    overwrite: bool = False,
    keep_images: bool = False,
    backend: AttackBackend | None = None,
    shard: tuple[int, int] | None = None,
    merge: bool = False,
    only: Sequence[int] = (),
    on_progress: OnProgress = lambda which, news: None,
) -> EvaluationResult:
    """Evaluates a file of weights on the test set of a recipe.

    Args:
        path: The file of weights.
        recipe: The recipe, whose data, evaluation and seed are used.
        device: Device to evaluate on: `auto` (the GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        out: Folder for the results; None to write nothing.
        overwrite: Replace a result on more images in `out`.
        keep_images: Keep all adversarial images with the per-example results.
        backend: Backend of the attacks; None for `AcceleratedCopy()`.
        shard: Part of the examples to evaluate, as (2, 8) for the second of eight. Its results go to a file of their
            own, and `merge` makes one result of all. Machines that share the folder may each evaluate a part.
        merge: Merge the results of all parts that were evaluated, with the same arguments, instead of evaluating.
        only: Numbers of the examples to evaluate, without `out`; none for all. Their random numbers are those that they
            have among all.
        on_progress: Called with the name "weights" and the state of the evaluation.

    Returns:
        The result.

    Raises:
        UserError: If `out` cannot be written, holds a result on more images and `overwrite` is off, or has no results
            of all shards of this evaluation to merge.
    """
    test = test_images_of(recipe, device)
    how = {"weights": str(path), **{key: recipe.plain()[key] for key in ("data", "evaluation", "seed")}}
    loaders = {"weights": partial(model_on, test, path, recipe)}
    return evaluate_models(
        loaders,
        test,
        recipe.evaluation,
        seed=recipe.seed,
        out=out,
        how=how,
        overwrite=overwrite,
        keep_images=keep_images,
        backend=backend,
        shard=shard,
        merge=merge,
        only=only,
        on_progress=on_progress,
    )["weights"]


def evaluate_models(
    loaders: Mapping[str, Callable[[], nn.Module]],
    test: LabelledData,
    evaluation: Evaluation,
    *,
    seed: int = 0,
    out: RunFolder | None = None,
    how: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    keep_images: bool = False,
    backend: AttackBackend | None = None,
    shard: tuple[int, int] | None = None,
    merge: bool = False,
    only: Sequence[int] = (),
    on_progress: OnProgress = lambda which, news: None,
) -> dict[str, EvaluationResult]:
    """Evaluates models, loading them one after the other, and writes the results to a folder.

    The state of the evaluation is kept in the folder while it runs, and removed at the end.

    Args:
        loaders: Functions that load the models, by name; one that occurs twice is evaluated once.
        test: Labelled test images.
        evaluation: The attacks, the number of images and the batch size.
        seed: Seed of all random numbers.
        out: Folder for the results; None to write nothing.
        how: Settings to be recorded with the results.
        overwrite: Replace a result on more images in `out`.
        keep_images: Keep all adversarial images with the per-example results.
        backend: Backend of the attacks; None for `AcceleratedCopy()`.
        shard: Part of the examples to evaluate, as (2, 8) for the second of eight. Its results go to a file of their
            own, and `merge` makes one result of all. Machines that share the folder may each evaluate a part.
        merge: Merge the results of all parts that were evaluated, with the same arguments, instead of evaluating.
        only: Numbers of the examples to evaluate, without `out`; none for all. Their random numbers are those that they
            have among all.
        on_progress: Called with the name of the model and the state of its evaluation.

    Returns:
        The results by name.

    Raises:
        UserError: If another process works in `out`, if it cannot be written, if it holds a result on more images
            and `overwrite` is off, or if it has no results of all shards of this evaluation to merge.
    """
    with nullcontext() if out is None else writable(out, shard):
        if out is not None:
            admit(out, test, evaluation, overwrite)
        given: dict[str, Any] = {"keep_images": keep_images, "backend": backend, "on_progress": on_progress}
        given |= {"shard": shard, "merge": merge, "only": only}
        return _evaluated(loaders, test, evaluation, out, seed=seed, how=how or {}, **given)


def _evaluated(
    loaders: Mapping[str, Callable[[], nn.Module]],
    test: LabelledData,
    evaluation: Evaluation,
    out: RunFolder | None,
    *,
    seed: int,
    how: Mapping[str, Any],
    keep_images: bool,
    backend: AttackBackend | None,
    shard: tuple[int, int] | None,
    merge: bool,
    on_progress: OnProgress,
    only: Sequence[int] = (),
) -> dict[str, EvaluationResult]:
    whole = first_examples(test, evaluation.examples)
    subset, index = _chosen(whole, only, out)
    if merge:
        if out is None or shard is not None:
            raise UserError("merge reads the results of all shards from a folder: give out, and no shard")
        return merge_shards(out, list(loaders), subset, evaluation, how)
    part = shard_of(shard, len(subset))
    corrupted = {} if evaluation.corruptions is None else evaluation.corruptions.load(whole)
    if index is not None:
        corrupted = {name: images.part(index) for name, images in corrupted.items()}
    found: dict[str, EvaluationResult] = {}
    done: dict[Callable[[], nn.Module], EvaluationResult] = {}  # the last weights may be the best
    for which, load in loaders.items():
        if load not in done:
            done[load] = evaluate(
                load(),
                subset,
                evaluation.adversaries,
                batch_size=evaluation.batch_size,
                seed=seed,
                index=index,
                shard=shard,
                keep_images=keep_images,
                corrupted=corrupted,
                backend=backend,
                state=None if out is None else out.state(sharded(which, part)),
                on_progress=partial(on_progress, which),
            )
        found[which] = done[load]
        if out is not None and part is not None:
            write_shard(out, which, found[which], how)
    if out is not None and part is None:
        write_results(out, found, subset, evaluation, how)
    return found


def first_examples(test: LabelledData, examples: int | None) -> LabelledData:
    """Selects the first test images.

    Args:
        test: The test images.
        examples: Number of images; None for all.

    Returns:
        The images; those in files stay there.
    """
    if examples is None or examples >= len(test):
        return test
    return test.part(torch.arange(examples, device=test.y.device))


def loaders_of(
    run: RunFolder, recipe: Recipe, test: LabelledData, which: Sequence[str]
) -> dict[str, Callable[[], nn.Module]]:
    """Gives the functions that load the weights of a run.

    Args:
        run: The run folder.
        recipe: Its recipe.
        test: The test images, on whose device the models are.
        which: The weights: "best", "last" or both.

    Returns:
        The functions by the name of the weights; the same one twice if the last weights are the best.
    """
    loaders: dict[str, Callable[[], nn.Module]] = {
        each: partial(model_on, test, run.weights(each), recipe) for each in which
    }
    if len(loaders) > 1 and _step_of(run.weights("best")) == _step_of(run.weights("last")):
        loaders["last"] = loaders["best"]
    return loaders


def model_on(test: LabelledData, path: Path, recipe: Recipe) -> nn.Module:
    """Loads a model on the device of the test images.

    Args:
        test: The test images.
        path: The file of weights.
        recipe: The recipe of the model.

    Returns:
        The model.
    """
    return load_model(path, recipe).to(test.y.device)


def _chosen(test: LabelledData, only: Sequence[int], out: RunFolder | None) -> tuple[LabelledData, Tensor | None]:
    """Return the examples of some numbers, with these; all examples for no numbers."""
    if not only:
        return test, None
    if out is not None:
        raise UserError("results on single examples are not written to a folder: leave out --out")
    strange = [number for number in only if not 0 <= number < len(test)]
    if strange or len(set(only)) < len(only):
        raise UserError(
            f"the examples {', '.join(map(str, only))} cannot be chosen: give each once, from 0 to {len(test) - 1}"
        )
    index = torch.tensor(sorted(only))
    return test.part(index.to(test.y.device)), index


def test_images_of(recipe: Recipe, device: str) -> LabelledData:
    """Loads the test images of a recipe.

    Args:
        recipe: The recipe.
        device: Name of the device.

    Returns:
        The images on the device; those in files stay there.

    Raises:
        UserError: If the device is missing, or if there are no images.
    """
    where = device_of(device)  # report a missing device before anything is loaded
    test = test_images(recipe.data)
    if not len(test):
        raise UserError(
            "no test data were given to sparring.fit: evaluate the model with sparring.evaluate(model, data, ..), or "
            "give fit a pair (training data, test data)"
        )
    return test.to(where)


def _like(about: dict[str, object], recipe: Recipe) -> LabelledData:
    """Return data of the classes and shape that a model was made for, from its weights or else its training set."""
    classes, shape = about.get("classes"), about.get("shape")
    if isinstance(classes, list) and isinstance(shape, list):
        return TensorData(torch.zeros(1, *shape), torch.zeros(1, dtype=torch.long), tuple(map(str, classes)))
    return recipe.data.load()[0]


def _step_of(path: Path) -> int | None:
    return read_weights(path)[1].get("step")
