"""Loads the models of runs and evaluates them."""

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..acceleration import AcceleratedCopy
from ..core.errors import UserError
from ..core.reading import reading
from ..core.types import AttackBackend, Classifier, LabelledData, TensorData
from ..evaluation import EvaluationProgress, MinimumNorm, evaluate, threat_of
from ..models import load_robustbench
from ..records.results import EvaluationResult
from ..records.run_folder import RunFolder
from ..report.figures import plot_adversarial_examples, plot_robustness_curve
from ..training.checkpoint import fill, read_weights
from .environment import device_of
from .recipe import Evaluation, Recipe, recipe_from_plain
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
    model = recipe.build_model(_like(about, recipe))
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
    run: RunFolder,
    recipe: Recipe,
    *,
    device: str = "auto",
    which: Sequence[str] = ("best", "last"),
    overwrite: bool = False,
    keep_images: bool = False,
    backend: AttackBackend | None = None,
    track: Track = (),
    on_progress: OnProgress = lambda which, news: None,
) -> dict[str, EvaluationResult]:
    """Evaluates the best and the last weights of a run on its test set, and writes the results to its folder.

    Per-example results go to `evaluation-best.npz` and `evaluation-last.npz`, tables and the settings of the evaluation
    to `evaluation.json`, and figures are drawn. An evaluation that was killed is resumed.

    Args:
        run: The run folder.
        recipe: The recipe, whose data, evaluation and seed are used.
        device: Device to evaluate on: `auto` (the GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        which: The weights to evaluate: "best", "last" or both.
        overwrite: Replace a result on more images.
        keep_images: Keep all adversarial images with the per-example results.
        backend: Backend of the attacks; None for `AcceleratedCopy()`.
        track: Trackers that show the results, too, as for `fit`.
        on_progress: Called with the name of the weights and the state of their evaluation.

    Returns:
        The results for "best" and "last".

    Raises:
        UserError: If the run is not finished, if the folder cannot be written, or if it holds a result on more images
            and `overwrite` is off.
    """
    with _writable(run):
        if not run.finished():
            best = run.weights("best")
            raise UserError(
                f"{run.path} holds an unfinished run: train it to its end, or evaluate {best}, its best yet"
            )
        test = _test_images(recipe, device)
        loaders = {each: partial(_on, test, run.weights(each), recipe) for each in which}
        if len(loaders) > 1 and _step_of(run.weights("best")) == _step_of(run.weights("last")):
            loaders["last"] = loaders["best"]
        how = {key: recipe.plain()[key] for key in ("data", "evaluation", "seed")}
        _admit(run, test, recipe.evaluation, overwrite)
        how["selected"] = recipe.selected
        given: dict[str, Any] = {"keep_images": keep_images, "backend": backend, "on_progress": on_progress}
        with tracked(track, run, run.status()["step"]) as tracker:
            found = _evaluated(loaders, test, recipe.evaluation, run, seed=recipe.seed, how=how, **given)
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
        on_progress: Called with the name "weights" and the state of the evaluation.

    Returns:
        The result.

    Raises:
        UserError: If `out` cannot be written, or holds a result on more images and `overwrite` is off.
    """
    test = _test_images(recipe, device)
    how = {"weights": str(path), **{key: recipe.plain()[key] for key in ("data", "evaluation", "seed")}}
    loaders = {"weights": partial(_on, test, path, recipe)}
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
        on_progress: Called with the name of the model and the state of its evaluation.

    Returns:
        The results by name.

    Raises:
        UserError: If another process works in `out`, if it cannot be written, or if it holds a result on more images
            and `overwrite` is off.
    """
    with nullcontext() if out is None else _writable(out):
        if out is not None:
            _admit(out, test, evaluation, overwrite)
        given: dict[str, Any] = {"keep_images": keep_images, "backend": backend, "on_progress": on_progress}
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
    on_progress: OnProgress,
) -> dict[str, EvaluationResult]:
    subset, backend = test[: evaluation.examples], backend or AcceleratedCopy()
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
                keep_images=keep_images,
                backend=backend,
                state=None if out is None else out.state(which),
                on_progress=partial(on_progress, which),
            )
        found[which] = done[load]
    if out is not None:
        _write(out, found, subset.classes, evaluation, {**how, "search": backend.describe(subset.y.device)})
    return found


def _write(
    out: RunFolder,
    found: Mapping[str, EvaluationResult],
    classes: tuple[str, ...],
    evaluation: Evaluation,
    how: Mapping[str, Any],
) -> None:
    for which, evaluated in found.items():
        out.write_flags(which, evaluated)
    plain = {which: {name: a.plain() for name, a in each.table().items()} for which, each in found.items()}
    notes = {which: list(each.notes) for which, each in found.items() if each.notes}
    out.write_evaluation({**plain, **({"notes": notes} if notes else {}), "how": dict(how)})
    first = next(iter(found.values()))
    for path in (out.adversarial_examples, out.hardest_examples, out.robustness_curve):
        path.unlink(missing_ok=True)
    if first.examples is not None:
        plot_adversarial_examples(first.examples, classes, out.adversarial_examples)
    if first.hardest is not None:
        plot_adversarial_examples(first.hardest, classes, out.hardest_examples)
    nearest = next((each for each in evaluation.adversaries.values() if isinstance(each, MinimumNorm)), None)
    if nearest is not None:
        norm = type(nearest.threat)
        bounds = {name: threat_of(each) for name, each in evaluation.adversaries.items() if each is not nearest}
        points = {name: threat.eps for name, threat in bounds.items() if isinstance(threat, norm)}
        plot_robustness_curve(found, norm.__name__, points, out.robustness_curve)
    for which in found:
        out.forget_state(which)


def _admit(out: RunFolder, test: LabelledData, evaluation: Evaluation, overwrite: bool) -> None:
    """Raise `UserError` for a folder that holds a result on more images, which is worth more than its replacement."""
    held, count = 0 if overwrite else out.evaluated_images(), min(len(test), evaluation.examples or len(test))
    if held > count:
        raise UserError(
            f"{out.path} holds an evaluation on {held} images, and this one is on {count}: --overwrite it, or evaluate "
            "a file of weights, for which another folder can be named with --out, or none"
        )


def _writable(out: RunFolder) -> AbstractContextManager[None]:
    """Return the lock of a folder, after checking that it can be written: better before an evaluation than after."""
    try:
        out.path.mkdir(parents=True, exist_ok=True)
        if not os.access(out.path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        alone = out.weights("best")
        instead = f"evaluate {alone}, for which nothing is written" if alone.exists() else "name another with --out"
        raise UserError(f"{out.path} cannot be written ({error.strerror or error}): {instead}") from error
    return out.locked()


def _on(test: LabelledData, path: Path, recipe: Recipe) -> nn.Module:
    return load_model(path, recipe).to(test.y.device)


def _test_images(recipe: Recipe, device: str) -> LabelledData:
    where = device_of(device)  # report a missing device before anything is loaded
    test = recipe.data.load()[1]
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
