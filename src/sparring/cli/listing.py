"""The command `sparring list`: recipes, and the parts that a recipe can be made of."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..core.errors import UserError, nearest
from .common import only, print_json, say

if TYPE_CHECKING:
    from ..models import PublishedModel

_USAGE = """\
usage: sparring list [WHAT] [--json]

Lists what there is, one to a line. WHAT is recipes (the default), methods, attacks, optimizers, schedules, models or
data, as `sparring train` takes them; or robustbench, models by name for `sparring evaluate`."""

_DATA = {
    "cifar10": "CIFAR-10; cifar10:DIR reads its files from a folder (so do the following)",
    "cifar100": "CIFAR-100",
    "digits": "8x8 digits of scikit-learn, which need no download",
    "fashion_mnist": "Fashion-MNIST",
    "folder": "folder:DIR, pictures in DIR/train/CLASS/ and DIR/test/CLASS/ (or val)",
    "generated": "generated:FILE, images of a generative model with their classes, mostly for --extra-data",
    "kmnist": "KMNIST",
    "mapped": "mapped:PATH, the same arrays of bytes as .npy, .npz or .safetensors, which stay there: for large data",
    "mnist": "MNIST",
    "npz": "npz:FILE, arrays x_train, y_train, x_test, y_test",
    "stl10": "STL-10",
    "svhn": "SVHN",
    "torchvision": "torchvision:NAME, a data set of torchvision with a training and a test part",
    "hf": "hf:ORGANISATION/NAME, a data set of images of the Hugging Face Hub",
}


def list_known(args: list[str]) -> int:
    rest = [arg for arg in args if arg != "--json"]
    only([arg for arg in rest if arg.startswith("-")], _USAGE)
    what = rest[0] if rest else "recipes"
    if len(rest) > 1 or what not in _KINDS:
        raise UserError(f"no list of {' '.join(rest)!r}: {nearest(what, _KINDS)}\n{_USAGE}")
    if "--json" in args:
        print_json(_KINDS[what]())
    elif what == "recipes":
        _say_recipes()
    else:
        _say(_KINDS[what]())
    return 0


def _say(found: Mapping[str, str]) -> None:
    width = max(map(len, found))
    say("\n".join(f"{name:{width}}  {text}" for name, text in found.items()))


def _say_recipes() -> None:
    from ..recipes import entries

    found = entries()
    ours = [entry for entry in found.values() if entry.origin == "sparring"]
    width = max(map(len, found))
    groups = {
        "on small data, for two cores:": [entry for entry in ours if entry.tested],
        "after their papers, at full size; we have not trained these to their end:": [
            entry for entry in ours if not entry.tested
        ],
        "of other packages:": [entry for entry in found.values() if entry.origin != "sparring"],
    }
    parts = [
        "\n".join([title, *(f"  {entry.name:{width}}  {entry.summary}" for entry in group)])
        for title, group in groups.items()
        if group
    ]
    say("\n\n".join(parts))


def _recipes() -> dict[str, str]:
    from ..recipes import entries

    return {name: entry.summary for name, entry in entries().items()}


def _methods() -> dict[str, str]:
    from ..runs.methods import METHODS

    return {**{name: what for name, (what, _) in METHODS.items()}, **_registered("methods")}


def _attacks() -> dict[str, str]:
    from ..evaluation.named import ADVERSARIES
    from ..runs.parts import ATTACKS

    of_evaluation = {name: "of evaluations: sparring evaluate --attack" for name in ADVERSARIES if name not in ATTACKS}
    return {name: what for name, (what, _) in ATTACKS.items()} | of_evaluation


def _optimizers() -> dict[str, str]:
    from ..runs.parts import OPTIMIZERS

    return {name: what for name, (what, _) in OPTIMIZERS.items()}


def _schedules() -> dict[str, str]:
    from ..runs.parts import SCHEDULES

    return {name: what for name, (what, _) in SCHEDULES.items()}


def _models() -> dict[str, str]:
    import inspect

    from .. import models
    from ..core.public_names import CALLS

    own = [name for module, names in CALLS.items() if module != "models.libraries" for name in names]
    summaries = {name: (inspect.getdoc(getattr(models, name)) or "").partition("\n")[0] for name in own}
    return {
        **summaries,
        "timm:NAME": "any classifier of timm",
        "torchvision:NAME": "any classifier of torchvision",
        "hub:ORGANISATION/NAME": "a model of the Hugging Face Hub that timm can build, for evaluation",
        "robustbench:NAME": "a model of RobustBench, for evaluation; sparring list robustbench names all",
        "file.py:function": "a function of yours that returns a model; also module:function",
        **_registered("models"),
    }


def _robustbench() -> dict[str, str]:
    from ..models import published_models

    def facts(model: "PublishedModel") -> str:
        robust = model.autoattack if model.external is None else model.external
        kind = model.architecture or f"{model.kind}, which is not built here"
        return f"{model.clean:.2f} % clean, {robust:.2f} % at {model.threat}; {kind}"

    return {f"robustbench:{key}": facts(model) for key, model in published_models().items()}


def _data() -> dict[str, str]:
    return {**_DATA, **_registered("data")}


def _registered(group: str) -> dict[str, str]:
    from ..core import foreign

    return {
        name: f"{point.value}, of the package {point.dist.name if point.dist is not None else point.module}"
        for name, point in foreign.plugins(group).items()
    }


_KINDS = {
    "recipes": _recipes,
    "methods": _methods,
    "attacks": _attacks,
    "optimizers": _optimizers,
    "schedules": _schedules,
    "models": _models,
    "data": _data,
    "robustbench": _robustbench,
}
