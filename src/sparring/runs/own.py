"""Trains a model of the user's own on data of their own: the same run as that of a recipe."""

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from torch import nn

from ..acceleration import Compile, Precision
from ..attacks import PGD
from ..attacks.threats import threat
from ..core.errors import UserError
from ..core.schedules import Cyclic
from ..core.serialization import Build
from ..core.types import Objective, Threat
from ..data import Augment
from ..data.given import as_source
from ..evaluation.named import ADVERSARIES, within_of
from ..models.classifier import for_channels
from ..records.run_folder import RunFolder
from ..training.engine import Method
from ..training.free import Free
from ..training.hooks import Saving, TrainingProgress
from .compute import BatchNorm, UpdatePrecision
from .fit import fit as fit_recipe
from .given import GivenModel, as_model
from .load import load_model
from .methods import method_named
from .progress import training
from .recipe import Evaluation, Recipe
from .trackers import Track

Model = nn.Module | Callable[..., nn.Module] | Build[nn.Module]


class FitOptions(TypedDict, total=False):
    """Options of `sparring.runs.fit.fit`, which describes them."""

    device: str
    overwrite: bool
    saving: Saving
    track: Track
    precision: Precision
    compile: Compile
    update_precision: UpdatePrecision
    capture: bool
    deterministic: bool
    accumulate: int
    batch_norm: BatchNorm
    recompute: bool
    profile: bool
    on_progress: Callable[[TrainingProgress], None]
    log: Callable[[str], None]


def fit(
    subject: Recipe | Model,
    source: Any,
    /,
    *,
    method: str | Method | Free | Objective | None = None,
    eps: float | str | None = None,
    threat: str | Threat | None = None,
    steps: int = 10,
    epochs: int = 30,
    lr: Any = None,
    batch_size: int = 128,
    held_out: float = 0.1,
    augment: Sequence[Augment] = (),
    normalize: tuple[float | Sequence[float], float | Sequence[float]] | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
    progress: bool = True,
    **options: Unpack[FitOptions],
) -> RunFolder:
    """Trains a model on data: `fit(model, (x, y), method="trades", eps="8/255")`; or a recipe: `fit(recipe, folder)`.

    Both make a run, which is resumed by the same call after an interruption, and ends with the same bits. The best
    epoch is the one of the highest accuracy under PGD on images that are held out from the training data. A model that
    was given as an object has the weights of the best epoch afterwards.

    Args:
        subject: A model; or a function or class that makes one, which may take `num_classes` and `shape`; or a recipe.
        source: Training data, or a pair (training data, test data): `(images, labels)` as arrays or tensors, a
            `Dataset`, a `DataLoader`, a source such as `sparring.data.CIFAR10()`, or a name such as `npz:FILE`. For a
            recipe, the run folder.
        method: A training method by its name in the field (`pgd`, `trades`, `mart`, ...), an objective whose attack is
            PGD, or a `Method`.
        eps: Radius of the perturbations in Linf, for pixels in [0, 1], as 0.03 or "8/255".
        threat: The set of perturbations if it is not Linf: `L2(0.5)` or "l2:0.5". It takes the place of `eps`.
        steps: Number of steps of the attack.
        epochs: Number of epochs.
        lr: Learning rate or schedule; None rises to 0.1 and falls to 0.
        batch_size: Number of images in a batch.
        held_out: Share of the training data by which the best epoch is selected.
        augment: Augmentations of the training images, besides those of a data set of the user's.
        normalize: Mean and standard deviation of each channel, if the model expects normalised images.
        classes: Names of the classes; None for those of the data set, or else their numbers.
        seed: Seed of all random numbers.
        folder: The run folder; None for `runs/MODEL-METHOD`.
        progress: Show progress on standard error, unless `on_progress` or `log` are given.
        **options: Options of `sparring.runs.fit.fit`: device, overwrite, saving, track, precision, compile,
            update_precision, capture, deterministic, accumulate, batch_norm, recompute, profile, on_progress and log.

    Returns:
        The run folder, which holds the finished run, and prints what came out.

    Raises:
        UserError: If the model, the data or the method are of a form that cannot be trained, or do not fit together;
            and as in `sparring.runs.fit.fit`.
        Interrupted: If SIGINT or SIGTERM asks the training to stop; everything is saved then.
    """
    given = {
        "method": method,
        "eps": eps,
        "threat": threat,
        "steps": steps,
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "held_out": held_out,
        "augment": augment,
        "normalize": normalize,
        "classes": classes,
        "seed": seed,
    }
    if isinstance(subject, Recipe):
        _refuse_beside_a_recipe({**given, "folder": folder})
        return _fit_showing_progress(subject, source, progress, options)
    recipe = recipe_for(subject, source, **given)
    run = _fit_showing_progress(recipe, folder or f"runs/{_slug(recipe, method)}", progress, options)
    if isinstance(subject, nn.Module):
        subject.load_state_dict(_inner(load_model(run.path, recipe), recipe).state_dict())
    return run


def _refuse_beside_a_recipe(given: dict[str, Any]) -> None:
    defaults = inspect.signature(fit).parameters
    other = [name for name, value in given.items() if value is not defaults[name].default]
    if other:
        raise UserError(
            f"{' and '.join(other)} beside a recipe: what a recipe trains is said in the recipe, as in "
            "fit(replace(recipe, seed=1), 'runs/mine'); its eps is an argument of the function that makes it"
        )


def recipe_for(
    model: Model,
    data: Any,
    *,
    method: str | Method | Free | Objective | None = None,
    eps: float | str | None = None,
    threat: str | Threat | None = None,
    steps: int = 10,
    epochs: int = 30,
    lr: Any = None,
    batch_size: int = 128,
    held_out: float = 0.1,
    augment: Sequence[Augment] = (),
    normalize: tuple[float | Sequence[float], float | Sequence[float]] | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Recipe:
    """Makes the recipe with which `sparring.fit` trains a model on data; change it with `dataclasses.replace`.

    Args:
        model: As `subject` in `fit`.
        data: As `source` in `fit`.
        method: As in `fit`.
        eps: As in `fit`.
        threat: As in `fit`.
        steps: As in `fit`.
        epochs: As in `fit`.
        lr: As in `fit`.
        batch_size: As in `fit`.
        held_out: As in `fit`.
        augment: As in `fit`.
        normalize: As in `fit`.
        classes: As in `fit`.
        seed: As in `fit`.

    Returns:
        The recipe. It is evaluated by FGSM and by PGD-50 with 10 restarts.

    Raises:
        UserError: As in `fit`.
    """
    within, source = _threat(eps, threat, method), as_source(data, classes)
    own = getattr(getattr(method, "attack", method), "threat", None) if isinstance(method, Method | Free) else None
    if own is not None and own != within:
        raise UserError(f"the attack of the method stays in {own}, and {within} is asked for: say it in one place")
    return Recipe(
        data=source,
        model=as_model(model, source, seed),
        epochs=epochs,
        lr=Cyclic(0.1, top=0.3) if lr is None else lr,
        batch_size=batch_size,
        held_out=held_out,
        augment=tuple(augment),
        normalize=True if normalize is None else (for_channels(normalize[0]), for_channels(normalize[1])),
        seed=seed,
        **{**selection_and_evaluation(within, steps), **method_fields(method, within, steps)},
    )


def selection_and_evaluation(within: Any, steps: int) -> dict[str, Any]:
    """Return the fields of a recipe that say how models are selected, by PGD, and evaluated, by FGSM and PGD-50-10."""
    return {
        "selection": PGD(within, steps, within.eps / 4, patience=0),
        "evaluation": Evaluation({name: ADVERSARIES[name](within) for name in ("fgsm", "pgd-50-10")}),
    }


def _threat(eps: float | str | None, given: str | Threat | None, method: object) -> Any:
    within = within_of(eps, given)
    if within is None:
        within = getattr(getattr(method, "attack", method), "threat", None)
    if within is None:
        raise UserError("eps is missing, the radius of the perturbations: give it, as eps='8/255', or threat='l2:0.5'")
    return threat(within) if isinstance(within, str) else within


def method_fields(method: object, within: Threat, steps: int) -> dict[str, Any]:
    """Return the fields of a recipe that a method decides: a name, an objective, whose attack is PGD, or a method."""
    if isinstance(method, Method | Free):
        return {"method": method}
    if isinstance(method, Objective):
        return {"method": Method(PGD(within, steps, within.eps / 4), method)}
    if method is None or isinstance(method, str):
        return dict(method_named(method or "pgd", within, steps))
    raise UserError(
        f"method = {method!r:.60}: give the name of a method, such as 'trades', an objective or a sparring.Method"
    )


def _fit_showing_progress(recipe: Recipe, folder: Path | str, progress: bool, options: FitOptions) -> RunFolder:
    if not progress or "on_progress" in options or "log" in options:
        return fit_recipe(recipe, folder, **options)
    with training() as output:
        shown: FitOptions = {**options, "on_progress": output.show, "log": output.say}
        return fit_recipe(recipe, folder, **shown)


def _slug(recipe: Recipe, method: object) -> str:
    given = recipe.model
    model = given.kind.partition(" ")[0] if isinstance(given, GivenModel) else given.function.__name__
    objective = getattr(recipe.method, "objective", recipe.method)
    words = f"{model}-{method if isinstance(method, str) else type(objective).__name__}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _inner(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Return the user's own module in a model that `build_model` has made."""
    return model[1] if recipe.wraps_model else model  # type: ignore[index]
