"""What a run came to: its models loaded and measured."""

import errno
import os
from collections.abc import Callable, Mapping
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

OnProgress = Callable[[str, EvaluationProgress], None]  # which weights, how far


def load_model(path: Path | str, recipe: Recipe | None = None) -> nn.Module:
    """A trained model in eval mode, on the CPU. Of a run folder, it is the best.

    Weights written by `fit` say themselves what they are. For others, RobustBench's for example, `recipe` says which
    model they belong to; its training set is loaded, for the model takes classes and shape from it.
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
    """The recipe of a run folder, or the one that a weights file names. Raises `UserError` if there is none."""
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
    overwrite: bool = False,
    keep_images: bool = False,
    backend: AttackBackend | None = None,
    on_progress: OnProgress = lambda which, news: None,
) -> dict[str, EvaluationResult]:
    """Evaluates the best and the last weights of a run on its test set, as `recipe` says, and writes what was found.

    Per-example results go to `evaluation-best.npz` and `evaluation-last.npz`, tables and how they came about to
    `evaluation.json`, beside figures. An evaluation that was killed goes on where it was. A result on more images is
    replaced only to `overwrite` it; without that, it is a `UserError`.
    """
    with _writable(run):
        if not run.finished():
            best = run.weights("best")
            raise UserError(
                f"{run.path} holds an unfinished run: train it to its end, or evaluate {best}, its best yet"
            )
        test = _test_images(recipe, device)
        loaders = {which: partial(_on, test, run.weights(which), recipe) for which in ("best", "last")}
        if _step_of(run.weights("best")) == _step_of(run.weights("last")):
            loaders["last"] = loaders["best"]
        how = {key: recipe.plain()[key] for key in ("data", "evaluation", "seed")}
        _admit(run, test, recipe.evaluation, overwrite)
        how["selected"] = recipe.selected
        given: dict[str, Any] = {"keep_images": keep_images, "backend": backend, "on_progress": on_progress}
        return _evaluated(loaders, test, recipe.evaluation, run, seed=recipe.seed, how=how, **given)


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
    """Evaluates a file of weights on the test set of `recipe`, as that says. Without `out`, nothing is written."""
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
    """Evaluates models, which are loaded by name one after the other, and writes what was found to `out`.

    While it runs, its state is kept there, and removed in the end. Raises `UserError` where another process works, and
    for a result there on more images, unless it is to `overwrite` it.
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
    """A result on more images is worth more than the one that would take its place."""
    held, count = 0 if overwrite else out.evaluated_images(), min(len(test), evaluation.examples or len(test))
    if held > count:
        raise UserError(
            f"{out.path} holds an evaluation on {held} images, and this one is on {count}: --overwrite it, or evaluate "
            "a file of weights, for which another folder can be named with --out, or none"
        )


def _writable(out: RunFolder) -> AbstractContextManager[None]:
    """The lock of a folder. What cannot be written is better known before than after."""
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
    where = device_of(device)  # a device that is not here is said before anything is loaded
    return recipe.data.load()[1].to(where)


def _like(about: dict[str, object], recipe: Recipe) -> LabelledData:
    """Data of the classes and the shape that a model was made for: what its weights say, or else its training set."""
    classes, shape = about.get("classes"), about.get("shape")
    if isinstance(classes, list) and isinstance(shape, list):
        return TensorData(torch.zeros(1, *shape), torch.zeros(1, dtype=torch.long), tuple(map(str, classes)))
    return recipe.data.load()[0]


def _step_of(path: Path) -> int | None:
    return read_weights(path)[1].get("step")
