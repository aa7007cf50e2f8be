"""What a run came to: its models loaded and measured."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from . import report
from .checkpoint import read_weights
from .core import Classifier, Data
from .environment import device_of
from .errors import UserError
from .evaluate import evaluate
from .models import load_robustbench
from .recipe import Recipe, recipe_from_plain
from .results import Accuracy, Evaluated, RunFolder

Show = Callable[[str, int, int], None]  # which weights, images done, images in all


def load_model(path: Path | str, recipe: Recipe | None = None) -> nn.Module:
    """A trained model in eval mode, on the CPU. Of a run folder, it is the best.

    Weights written by `fit` say themselves what they are. For others, RobustBench's for example, `recipe` says which
    model they belong to; its training set is loaded, for the model takes classes and shape from it.
    """
    path = RunFolder(path).weights("best") if Path(path).is_dir() else Path(path)
    tensors, about = read_weights(path)
    recipe = recipe_of(path) if recipe is None else recipe
    model = recipe.build_model(_like(about, recipe))
    ours = set(tensors) == set(model.state_dict())
    if not ours and "recipe" not in about and isinstance(model, Classifier):
        return load_robustbench(model, tensors).eval()
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise UserError(f"{path} does not fit the model of its recipe: {detail}") from error
    return model.eval()


def recipe_of(path: Path) -> Recipe:
    """The recipe of a run folder, or the one that a weights file names. Raises `UserError` if there is none."""
    plain = RunFolder(path).recipe() if path.is_dir() else read_weights(path)[1].get("recipe")
    if plain is None:
        what = "is no run folder" if path.is_dir() else "does not say which model it belongs to: name one with --recipe"
        raise UserError(f"{path} {what}")
    return recipe_from_plain(plain)


def evaluate_run(
    run: RunFolder, recipe: Recipe, *, device: str = "auto", show: Show = lambda which, done, total: None
) -> dict[str, dict[str, Accuracy]]:
    """Evaluates the best and the last weights of a run on its test set, as `recipe` says, and writes what was found.

    Per-example flags go to `evaluation-best.npz` and `evaluation-last.npz`, the tables and how they came about to
    `evaluation.json`, pictures of what the last adversary broke to `adversarial-examples.png`.
    """
    if not run.finished():
        raise UserError(
            f"{run.path} holds an unfinished run: train it to its end, or evaluate {run.weights('best')}, its best yet"
        )
    with _writable(run):
        return _evaluate_run(run, recipe, device, show)


@contextmanager
def _writable(run: RunFolder) -> Iterator[None]:
    """What cannot be written is better known before than after."""
    try:
        if not os.access(run.path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        yield
    except OSError as error:
        raise UserError(
            f"{run.path} cannot be written ({error.strerror or error}): evaluate {run.weights('best')} instead, which "
            "writes nothing"
        ) from error


def _evaluate_run(run: RunFolder, recipe: Recipe, device: str, show: Show) -> dict[str, dict[str, Accuracy]]:
    test = _test_images(recipe, device)
    found = {"best": _evaluate(run.weights("best"), recipe, test, partial(show, "best"))}
    same = _step_of(run.weights("best")) == _step_of(run.weights("last"))
    found["last"] = found["best"] if same else _evaluate(run.weights("last"), recipe, test, partial(show, "last"))
    for which, evaluated in found.items():
        run.write_flags(which, evaluated)
    run.adversarial_examples.unlink(missing_ok=True)
    if found["best"].examples is not None:
        report.adversarial_examples(found["best"].examples, test.classes, run.adversarial_examples)
    tables = {which: evaluated.table() for which, evaluated in found.items()}
    how = {key: recipe.plain()[key] for key in ("data", "evaluation", "seed")}
    plain = {w: {name: a.plain() for name, a in table.items()} for w, table in tables.items()}
    run.write_evaluation({**plain, "how": how})
    return tables


def evaluate_weights(
    path: Path, recipe: Recipe, *, device: str = "auto", show: Show = lambda which, done, total: None
) -> dict[str, Accuracy]:
    """Evaluates a file of weights on the test set of `recipe`, as that says."""
    return _evaluate(path, recipe, _test_images(recipe, device), partial(show, "weights")).table()


def _evaluate(path: Path, recipe: Recipe, test: Data, show: Callable[[int, int], None]) -> Evaluated:
    """One set of weights on the test images that the recipe asks for."""
    how = recipe.evaluation
    subset = test if how.examples is None else test[: how.examples]
    return evaluate(
        load_model(path, recipe).to(subset.x.device),
        subset,
        how.adversaries,
        batch_size=how.batch_size,
        seed=recipe.seed,
        on_batch=lambda done: show(done, len(subset)),
    )


def _test_images(recipe: Recipe, device: str) -> Data:
    where = device_of(device)  # a device that is not here is said before anything is loaded
    return recipe.data.load()[1].to(where)


def _like(about: dict[str, object], recipe: Recipe) -> Data:
    """Data of the classes and the shape that a model was made for: what its weights say, or else its training set."""
    classes, shape = about.get("classes"), about.get("shape")
    if isinstance(classes, list) and isinstance(shape, list):
        return Data(torch.zeros(1, *shape), torch.zeros(1, dtype=torch.long), tuple(map(str, classes)))
    return recipe.data.load()[0]


def _step_of(path: Path) -> int | None:
    return read_weights(path)[1].get("step")
