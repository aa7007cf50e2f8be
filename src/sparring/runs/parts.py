"""Parts of a recipe by their names in the field: the attack of its method, its optimiser, its learning rate.

Options follow a colon, as in `pgd:steps=20` or `adamw:weight_decay=0.05`. Methods are in `methods`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ..attacks import APGD, FGSM, PGD, Benign
from ..attacks.single_step import NFGSM, MultiGrad, ZeroGrad
from ..core import foreign
from ..core.errors import UserError, nearest
from ..core.schedules import Cosine, Cyclic, ExponentialDecay, MultiStep, Triangle, WarmUp
from ..core.types import Threat
from ..core.validation import check_attack
from ..training.optimizers import LAMB, LARS, SGD, Adam, AdamW, RMSProp
from .external_models import options_of
from .recipe import Recipe

Make = Callable[..., Any]

ATTACKS: Mapping[str, tuple[str, Make]] = {
    "none": ("no adversary", lambda threat: Benign()),
    "pgd": ("projected gradient descent, 10 steps of eps / 4", lambda threat: PGD(threat, 10, threat.eps / 4)),
    "fgsm": ("one step of eps along the sign of the gradient", FGSM),
    "apgd": ("Auto-PGD, 10 steps with a step size that adapts", lambda threat: APGD(threat, 10)),
    "n-fgsm": ("one step from a start with noise, without clipping", NFGSM),
    "zero-grad": ("FGSM from a random start, small gradients set to 0", ZeroGrad),
    "multi-grad": ("FGSM from a random start, where several gradients agree", MultiGrad),
}
"""Name of each attack: what it is, and how it is made for a set of perturbations."""

OPTIMIZERS: Mapping[str, tuple[str, Make]] = {
    "sgd": ("SGD with momentum 0.9 and weight decay 5e-4", SGD),
    "adam": ("Adam, with weight decay in the gradient", Adam),
    "adamw": ("Adam with decoupled weight decay 0.01", AdamW),
    "lars": ("SGD with a rate for each layer, for very large batches", LARS),
    "lamb": ("Adam with a rate for each layer, for very large batches", LAMB),
    "rmsprop": ("RMSProp as in TensorFlow, with the settings of EfficientNet", RMSProp),
}
"""Name of each optimiser: what it is, and its class."""

SCHEDULES: Mapping[str, tuple[str, Make]] = {
    "constant": ("the same rate for the whole training", lambda peak, epochs: peak),
    "cosine": ("falls along half a cosine", lambda peak, epochs: Cosine(peak)),
    "multi-step": (
        "a tenth after half and after three quarters of the epochs",
        lambda peak, epochs: MultiStep(peak, (epochs / 2, 3 * epochs / 4)),
    ),
    "exponential": ("times 0.97 every 2.4 epochs, as for EfficientNet", lambda peak, epochs: ExponentialDecay(peak)),
    "cyclic": ("rises from 0 for half of training and falls to 0", lambda peak, epochs: Cyclic(peak)),
    "triangle": ("rises and falls again and again, over 36 epochs", lambda peak, epochs: Triangle(peak)),
}
"""Name of each schedule of the learning rate: what it is, and how it is made from the largest rate and the epochs."""


def with_attack(recipe: Recipe, spec: str, threat: Threat) -> Recipe:
    """Returns the recipe with another attack in its method; that of selection and evaluation stay.

    Args:
        recipe: The recipe.
        spec: Name of the attack with its options, such as "pgd:steps=20", or one of your own: see `own_attack`.
        threat: The set of perturbations.

    Raises:
        UserError: If there is no such attack or option, or the method of the recipe has no attack to exchange.
    """
    if not (is_dataclass(recipe.method) and "attack" in {each.name for each in fields(recipe.method)}):
        raise UserError(f"the method of the recipe, {type(recipe.method).__name__}, has no attack to exchange")
    made = own_attack(spec, threat)[1] if foreign.split(spec, ATTACKS) else _made("attack", ATTACKS, spec, threat)
    return replace(recipe, method=replace(recipe.method, attack=made))


def own_attack(spec: str, threat: Threat) -> tuple[str, Any]:
    """Makes an attack or adversary by a class or function of the user's.

    Args:
        spec: Its file or module and its name, and options, as in "myattacks.py:Mine:steps=5".
        threat: The set of perturbations, the first argument.

    Returns:
        Its name in results, as "Mine:steps=5", and the attack.

    Raises:
        UserError: If there is no such file, module, name or option, or it does not make an attack.
    """
    name, options = foreign.split(spec) or (spec, "")
    make = foreign.member(name, "an attack, such as myattacks.py:MyAttack")
    try:
        made = make(threat, **options_of(options))
    except TypeError as error:
        raise UserError(
            f"{name} makes no attack of a set of perturbations ({error}): let it take that first, as "
            f"{make.__name__}({threat!r})"
        ) from error
    check_attack(made)
    return spec.removeprefix(name.rpartition(":")[0])[1:], made


def with_optimizer(recipe: Recipe, spec: str) -> Recipe:
    """Returns the recipe with another optimiser, named as in "adamw:weight_decay=0.05".

    Raises:
        UserError: If there is no such optimiser or option.
    """
    return replace(recipe, optimizer=_made("optimizer", OPTIMIZERS, spec))


def with_schedule(recipe: Recipe, spec: str) -> Recipe:
    """Returns the recipe with another schedule of its learning rate, named as in "cosine" or "cosine:peak=0.05".

    The largest rate is that of the recipe, unless `peak` names another. A warm-up of the recipe stays.

    Raises:
        UserError: If there is no such schedule or option, or the largest rate is not known.
    """
    name, _, text = spec.partition(":")
    given = options_of(text)
    lr = recipe.lr.then if isinstance(recipe.lr, WarmUp) else recipe.lr
    peak = given.pop("peak", lr if isinstance(lr, int | float) else getattr(lr, "peak", None))
    if not isinstance(peak, int | float):
        raise UserError(f"the largest learning rate is not known: name it, as {name}:peak=0.1")
    made = _made("schedule", SCHEDULES, spec, float(peak), recipe.epochs, without=("peak",))
    if isinstance(recipe.lr, WarmUp):
        made = replace(recipe.lr, then=MultiStep(made) if isinstance(made, float) else made)
    return replace(recipe, lr=made)


def _made(
    what: str, known: Mapping[str, tuple[str, Make]], spec: str, *parts: Any, without: tuple[str, ...] = ()
) -> Any:
    """Make the part that `spec` names, with its options in place of the defaults."""
    name, _, text = spec.partition(":")
    key = name.lower().replace("_", "-")
    if key not in known:
        raise UserError(f"no {what} {name!r}: {nearest(key, known)}")
    made = known[key][1](*parts)
    options = {option: value for option, value in options_of(text).items() if option not in without}
    if not options:
        return made
    names = [n for n in inspect.signature(type(made)).parameters if n != "threat"] if is_dataclass(made) else []
    for option, value in options.items():
        if option not in names:
            raise UserError(f"{name} has no option {option!r}: {nearest(option, names)}")
        if isinstance(value, str) and isinstance(getattr(made, option), int | float):
            raise UserError(f"{name}: {option} is a number, not {value!r}")
    return replace(made, **options)
