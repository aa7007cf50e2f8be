"""Flags that replace whole parts of a recipe: --config, --model, --data, --extra-data, --method, --attack, ...

They are read before the flags of its fields.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError

if TYPE_CHECKING:
    from ..core.serialization import Build
    from ..runs.recipe import Recipe

METHODS = (
    "standard, pgd, trades, mart, ikl, score, mail-at, mail-trades, fat-trades, fare, mlcat, alp, awp, sam, asam, rwp, "
    "trades-awp, fgsm-rs, n-fgsm, fgsm-mep, atta, elle, elle-a, gat, nuat, tdat, zero-grad, multi-grad, "
    "grad-align, free"
)
_METHODS = fill(METHODS, 98, subsequent_indent=" " * 22)
MODELS = "small_cnn, resnet18, preact_resnet18, wide_resnet:depth=28,width=10, ..., timm:NAME, torchvision:NAME"
ATTACKS = "none, pgd, fgsm, apgd, n-fgsm, zero-grad, multi-grad"
OPTIMIZERS = "sgd, adam, adamw, lars, lamb, rmsprop"
SCHEDULES = "constant, cosine, multi-step, exponential, cyclic, triangle"

HELP = f"""\
  --config FILE       a recipe in a file, as `sparring show RECIPE --yaml` writes it, instead of RECIPE
  --model MODEL       another model: file.py:function, module:function, one of this package, or of a library:
                      {MODELS}
                      (timm:NAME,pretrained=True begins with its weights)
  --data DATA         other data: npz:FILE, folder:DIR, cifar10, cifar10:DIR, ...
  --extra-data DATA   extra training images, 0.7 of each batch: generated:FILE, or as --data; --extra-data.share 0.5
  --method METHOD     another method: file.py:Objective, or one of
                      {_METHODS}
  --threat THREAT     another set of perturbations in training, selection and evaluation: linf:8/255, l2:0.5 or l1:12
  --attack ATTACK     another attack in the method: one of
                      {ATTACKS},
                      or your own, file.py:Attack; options follow, as in pgd:steps=20
  --optimizer NAME    another optimiser: {OPTIMIZERS}; options follow, as in adamw:weight_decay=0.05
  --schedule NAME     another schedule of the learning rate: one of
                      {SCHEDULES}; options follow, as in cosine:peak=0.05
  --trust MODULE      import this module if a file names it; a file that you name yourself is trusted"""


@dataclass(frozen=True, slots=True)
class Structure:
    """Parts of a recipe, by their names on the command line; None for those that stay."""

    config: str | None = None
    model: str | None = None
    data: str | None = None
    extra_data: str | None = None
    method: str | None = None
    threat: str | None = None
    attack: str | None = None
    optimizer: str | None = None
    schedule: str | None = None
    eps: str | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) is not None for each in fields(self))


def taken(args: list[str], *, of_recipe: bool) -> tuple[Structure, list[str]]:
    """Return the parts that the arguments name, and the other arguments. A recipe has an --eps of its own."""
    names = [each.name for each in fields(Structure) if each.name != "eps" or not of_recipe]
    found: dict[str, str] = {}
    rest: list[str] = []
    at = iter(args)
    for arg in at:
        flag, joined, value = arg.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in names:
            rest.append(arg)
            continue
        given = value if joined else next(at, None)
        if given is None or (not joined and given.startswith("--")):
            raise UserError(f"{flag} needs a value: write {flag} VALUE")
        found[name] = given
    return Structure(**found), rest


def recipe_of_config(path: Path) -> "Recipe":
    """Return the recipe of a YAML file. Raises `UserError` if it cannot be read, or is none."""
    import yaml

    from ..runs.recipe import recipe_from_plain

    remedy = "write it as `sparring show RECIPE --yaml` does"
    try:
        plain: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a file with a recipe") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no plain YAML ({' '.join(str(error).split()):.200}): {remedy}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{path} holds no recipe, but a {type(plain).__name__}: {remedy}")
    return recipe_from_plain(plain)


def own_recipe(parts: Structure) -> "Recipe":
    """Return the recipe for a model and data that are named, without a recipe to change."""
    from ..runs.own import recipe_for

    if parts.model is None or parts.data is None:
        missing = "--model" if parts.model is None else "--data"
        raise UserError(f"{missing} is missing: name a RECIPE to change, or both --model and --data")
    own = parts.method is not None and ":" in parts.method
    method = "pgd" if own or parts.method is None else parts.method
    recipe = recipe_for(model_named(parts.model), parts.data, method=method, eps=parts.eps, threat=parts.threat)
    if own and parts.method is not None:
        recipe = _with_method(recipe, parts.method, None)
    return _with_parts(recipe, parts)


def changed(recipe: "Recipe", parts: Structure) -> "Recipe":
    """Return the recipe with the parts that are named in place of its own."""
    from ..data import source_of

    if parts.model is not None:
        recipe = replace(recipe, model=model_named(parts.model))
    if parts.data is not None:
        recipe = replace(recipe, data=source_of(parts.data))
    if parts.method is not None:
        recipe = _with_method(recipe, parts.method, parts.threat)
    elif parts.threat is not None:
        recipe = _with_threat(recipe, parts.threat)
    return _with_parts(recipe, parts)


def _with_parts(recipe: "Recipe", parts: Structure) -> "Recipe":
    """Return the recipe with the extra data, the attack, the optimiser and the schedule that are named."""
    from ..data import ExtraData, source_of
    from ..runs.parts import with_attack, with_optimizer, with_schedule

    if parts.extra_data is not None:
        recipe = replace(recipe, extra_data=ExtraData(source_of(parts.extra_data)))
    if parts.attack is not None:
        recipe = with_attack(recipe, parts.attack, _threat_of(recipe, parts.threat))
    if parts.optimizer is not None:
        recipe = with_optimizer(recipe, parts.optimizer)
    return recipe if parts.schedule is None else with_schedule(recipe, parts.schedule)


def _threat_of(recipe: "Recipe", given: str | None) -> Any:
    """Return the set of perturbations that is given, or else that of the recipe's evaluation."""
    from ..attacks.threats import threat
    from ..evaluation import threat_of

    within = threat(given) if given else threat_of(dict(recipe.evaluation.adversaries))
    if within is None:
        raise UserError("the recipe has no set of perturbations: name one, as --threat linf:8/255")
    return within


def _method_of(spec: str, within: Any, steps: int) -> Any:
    """Return the method of a name: one of ours, or an objective's class or a function of the user's.

    A function is called with the set of perturbations and the number of steps. Options may follow, as in
    `mymethod.py:MyObjective:weight=0.9`.
    """
    if ":" not in spec:
        return spec
    from ..core import foreign
    from ..runs.external_models import options_of
    from ..runs.methods import METHODS

    if spec.partition(":")[0] in METHODS:
        raise UserError(
            f"{spec}: options of a method are fields of the recipe, as --method trades --method.objective.beta 3"
        )
    name, options = foreign.split(spec) or (spec, "")
    found = foreign.member(name, "a method, such as mymethod.py:MyObjective")
    given = () if isinstance(found, type) else (within, steps)
    try:
        return found(*given, **options_of(options))
    except TypeError as error:
        wanted = "its options" if isinstance(found, type) else "the set of perturbations and the number of steps"
        raise UserError(f"{name} makes no method ({error}): let it take {wanted}") from error


def _with_threat(recipe: "Recipe", given: str) -> "Recipe":
    """Return the recipe with another set of perturbations in training, selection and evaluation.

    The step size keeps its ratio to eps. Raises `UserError` where the set is decided elsewhere in the method, too.
    """
    from ..runs.own import selection_and_evaluation

    within, attack = _threat_of(recipe, given), getattr(recipe.method, "attack", None)
    old = getattr(attack, "threat", None)
    if attack is None or old is None or repr(old) in repr(getattr(recipe.method, "objective", None)):
        raise UserError(
            "--threat cannot exchange the set of perturbations of this method, which is decided in several places: "
            "name a method with it, as --method trades --threat l2:0.5"
        )
    size = getattr(attack, "step_size", None)
    more = {} if size is None else {"step_size": size * within.eps / old.eps}
    method: Any = replace(recipe.method, attack=replace(attack, threat=within, **more))
    return replace(recipe, method=method, **selection_and_evaluation(within, getattr(attack, "steps", 10)))


def _with_method(recipe: "Recipe", method: str, given: str | None) -> "Recipe":
    """Return the recipe with another method, and with another set of perturbations if one is given."""
    from ..runs.own import method_fields, selection_and_evaluation
    from ..training.updates import OptimizerStep

    within = _threat_of(recipe, given)
    steps = getattr(getattr(recipe.method, "attack", None), "steps", 10)
    plain = OptimizerStep(max_norm=getattr(recipe.update, "max_norm", None))
    fields = method_fields(_method_of(method, within, steps), within, steps)
    found = replace(recipe, **{"update": plain, **fields})
    return replace(found, **selection_and_evaluation(within, steps)) if given else found


def model_named(spec: str) -> "Build[Any]":
    """Return the call that builds the model of a name: a function of the user's, or one of this package."""
    from ..core import foreign
    from ..core.public_names import CALLS
    from ..core.serialization import Build
    from ..runs.external_models import LIBRARIES, options_of

    name, _, options = spec.partition(":")
    ours = {each: module for module, names in CALLS.items() for each in names}
    if name in ours:
        import importlib

        return Build(getattr(importlib.import_module(f"sparring.{ours[name]}"), name), **options_of(options))
    if name in LIBRARIES:
        named, _, options = options.partition(",")
        return Build(LIBRARIES[name], name=named, **options_of(options))
    registered = foreign.plugins("models")
    if name in registered:
        return Build(foreign.plugin(registered[name]), **options_of(options))
    return Build(foreign.member(spec, f"a model, such as mymodels.py:build, or {', '.join(sorted(ours))}"))
