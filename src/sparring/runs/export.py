"""Exports the model of a run: as a class of RobustBench, for the Hugging Face Hub, as ONNX, or by torch.export.

What is written is read again, and its logits are compared with those of the model on test images.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from ..acceleration.fingerprint import without_new_global_hooks
from ..attacks import Benign
from ..core.errors import UserError, need_one_of
from ..core.optional import first_line, library
from ..core.serialization import Build, from_plain
from ..core.types import LabelledData, TensorData, Threat, pixels
from ..core.walk import walk
from ..core.writing import write_bytes, write_json
from ..data.given import GivenData
from ..evaluation import Adversary, AutoAttack, Cascade, threat_of
from ..models import merged
from ..models.robustbench_export import TheirModel, for_robustbench
from ..records.results import Accuracy
from ..records.run_folder import RunFolder
from ..training.checkpoint import read_weights, save_weights
from ..training.engine import Method
from .load import load_model, recipe_of
from .recipe import Evaluation, Recipe

Target = Literal["robustbench", "hub", "onnx", "torch-export"]
BOUND = 1e-4
"""Largest difference that an exported program may have, as a share of the largest logit (but at least of 1)."""


@dataclass(frozen=True, slots=True)
class Exported:
    """Files of an export.

    Args:
        files: The files.
        difference: Largest difference of a logit from the model's on test images; None if no program was run.
        images: Number of images on which logits were compared.
    """

    files: tuple[Path, ...]
    difference: float | None = None
    images: int = 0


@dataclass(frozen=True, slots=True)
class _Subject:
    """A trained model, its recipe, some images, and what was measured, under which attacks."""

    name: str
    model: nn.Module
    recipe: Recipe
    classes: tuple[str, ...]
    images: Tensor
    measured: Mapping[str, Accuracy]
    adversaries: Mapping[str, Adversary | Cascade]
    test_images: int


def export(run: Path | str, to: Target, out: Path | str, *, images: int = 16, bound: float = BOUND) -> Exported:
    """Exports the best weights of a run, or a file of weights.

    | to | files |
    |---|---|
    | "robustbench" | NAME.pt, a state dict for RobustBench's class; NAME.json, its model-info; README.md |
    | "hub" | model.safetensors, which holds the recipe; config.json; README.md with the Hub's front matter |
    | "onnx" | NAME.onnx, for any number of images |
    | "torch-export" | NAME.pt2, a program of torch.export, for any number of images |

    Adapters (`lora`) are merged with the weights, but for the Hub.

    Args:
        run: A run folder, or a file of weights that names its recipe.
        to: What it is exported to.
        out: Folder for the files.
        images: Number of test images on which a program is compared with the model.
        bound: Largest difference allowed, as a share of the largest logit, but at least of 1.

    Returns:
        The files, and the largest difference.

    Raises:
        UserError: If there are no weights, RobustBench has no class for the model, a library is missing, the model
            cannot be traced, or what was written differs by more than the bound; then it is deleted.
    """
    need_one_of("to", to, _EXPORTERS)
    subject, folder = _subject(Path(run), images), Path(out)
    if to != "hub":  # its file holds the recipe, and so the adapters
        subject = replace(subject, model=merged(subject.model))
    folder.mkdir(parents=True, exist_ok=True)
    return _EXPORTERS[to](subject, folder, bound)


def _subject(path: Path, images: int) -> _Subject:
    recipe, count = recipe_of(path), max(2, images)
    if path.is_dir() and not RunFolder(path).finished():
        best = RunFolder(path).weights("best")
        raise UserError(f"{path} holds an unfinished run: train it to its end, or export {best}, its best yet")
    model, test = load_model(path, recipe), _test_images(path, recipe)
    few = pixels(test[:count].x) if len(test) else _noise(test.shape, count)
    measured, adversaries = _measured(path)
    name = path.resolve().name if path.is_dir() else path.stem
    planned = adversaries if measured else recipe.evaluation.adversaries
    return _Subject(name, model, recipe, test.classes, few, measured, planned, len(test))


def _test_images(path: Path, recipe: Recipe) -> LabelledData:
    """Return the test images of a recipe: none if the data were objects, which no file holds."""
    if isinstance(recipe.data, GivenData) and recipe.data.train is None:
        about = read_weights(RunFolder(path).weights("best") if path.is_dir() else path)[1]
        return TensorData(torch.zeros(0, *about["shape"]), torch.zeros(0, dtype=torch.long), tuple(about["classes"]))
    return recipe.data.load()[1]


def _measured(path: Path) -> tuple[Mapping[str, Accuracy], Mapping[str, Adversary | Cascade]]:
    """Return the accuracies of the best weights of a run, and the attacks as far as a record tells them.

    Nothing if they were not evaluated, and no attacks if the record is that of a later evaluation of other weights.
    """
    run = RunFolder(path)
    if not path.is_dir() or not run.flags("best").exists():
        return {}, {}
    record = run.evaluation() if run.has_evaluation() else {}
    evaluation: Evaluation | None = from_plain(record["how"]["evaluation"]) if "best" in record else None
    return run.read_flags("best").table(), {} if evaluation is None else evaluation.adversaries


def _noise(shape: Sequence[int], images: int) -> Tensor:
    """Return images of random pixels, for a run without test images."""
    return torch.rand(images, *shape, generator=torch.Generator().manual_seed(0))


# -- RobustBench


def _robustbench(subject: _Subject, folder: Path, bound: float) -> Exported:
    del bound
    theirs = for_robustbench(subject.model, tuple(subject.images.shape[1:]))
    weights, info, card = (folder / name for name in (f"{subject.name}.pt", f"{subject.name}.json", "README.md"))
    held = io.BytesIO()
    torch.save({name: tensor.detach().cpu() for name, tensor in theirs.state.items()}, held)
    write_bytes(weights, held.getvalue())
    write_json(info, _model_info(subject, theirs))
    write_bytes(card, model_card(subject, theirs).encode())
    return Exported((weights, info, card))


def _model_info(subject: _Subject, theirs: TheirModel) -> dict[str, Any]:
    """Return the fields of RobustBench's model-info; null where nothing is known."""
    clean, robust = subject.measured.get("clean"), _autoattack(subject)
    return {
        "link": None,
        "name": None,
        "authors": None,
        "additional_data": _additional(subject),
        "number_forward_passes": 1,
        "dataset": _dataset(subject),
        "venue": None,
        "architecture": theirs.architecture,
        "eps": _eps(_threat(subject)),
        "clean_acc": _percent(clean),
        "reported": _percent(robust),
        "autoattack_acc": _percent(robust),
        "footnote": _footnote(subject),
        "unreliable": None,
    }


def _additional(subject: _Subject) -> bool | None:
    """Return whether other images trained the model, too; None if that is not known."""
    recipe = subject.recipe
    if recipe.extra_data is not None:
        return True
    builds = [value for value in walk(recipe) if isinstance(value, Build)]
    begun = recipe.init_from or any(build.options.get("pretrained") for build in builds)
    return None if begun or _dataset(subject) is None else False


def _dataset(subject: _Subject) -> str | None:
    """Return RobustBench's name of the data set; None for one that it does not have."""
    return {"CIFAR10": "cifar10", "CIFAR100": "cifar100"}.get(type(subject.recipe.data).__name__)


def _eps(threat: Threat | None) -> str | None:
    eps = getattr(threat, "eps", None)
    if eps is None:
        return None
    steps = eps * 255
    return f"{round(steps)}/255" if type(threat).__name__ == "Linf" and abs(steps - round(steps)) < 1e-6 else f"{eps:g}"


def _autoattack(subject: _Subject) -> Accuracy | None:
    """Return the accuracy under the standard AutoAttack, if it was measured."""
    name = _standard(subject)
    return None if name is None else subject.measured.get(name)


def _standard(subject: _Subject) -> str | None:
    """Return the name of the standard AutoAttack among the attacks."""
    attacks = subject.adversaries.items()
    return next((n for n, each in attacks if isinstance(each, AutoAttack) and each.version == "standard"), None)


def _threat(subject: _Subject) -> Threat | None:
    """Return the threat of AutoAttack, or else of the first attack."""
    name = _standard(subject)
    return threat_of(dict(subject.adversaries) if name is None else {name: subject.adversaries[name]})


def _percent(accuracy: Accuracy | None) -> str | None:
    return None if accuracy is None else f"{100 * accuracy.value:.2f}"


def _footnote(subject: _Subject) -> str | None:
    clean = subject.measured.get("clean")
    if clean is None or clean.examples >= subject.test_images:
        return None
    return f"Measured on the first {clean.examples:,} of {subject.test_images:,} test images."


# -- Hugging Face Hub


def _hub(subject: _Subject, folder: Path, bound: float) -> Exported:
    del bound
    weights, config, card = (folder / name for name in ("model.safetensors", "config.json", "README.md"))
    shape = list(subject.images.shape[1:])
    about = {"recipe": subject.recipe.plain(), "classes": list(subject.classes), "shape": shape}
    save_weights(weights, subject.model, about)
    write_json(config, {"library_name": "sparring", "num_classes": len(subject.classes), **about})
    write_bytes(card, model_card(subject, None).encode())
    again = load_model(weights)
    return Exported((weights, config, card), _difference(again, subject), len(subject.images))


def model_card(subject: _Subject, theirs: TheirModel | None) -> str:
    """Return the model card, with the front matter of the Hugging Face Hub, and how the model is loaded."""
    matter = yaml.safe_dump(_front_matter(subject), sort_keys=False)
    lines = [f"---\n{matter}---\n", f"# {subject.name}\n", _sentence(subject) + "\n", "## Accuracy\n", *_table(subject)]
    lines += ["\n## Use\n", "The model takes images in [0, 1] and normalises them itself.\n", _usage(subject, theirs)]
    return "\n".join(lines) + "\n"


def _front_matter(subject: _Subject) -> dict[str, Any]:
    name = _dataset(subject) or type(subject.recipe.data).__name__
    results = [
        {"type": "accuracy", "name": f"accuracy, {attack}", "value": round(100 * accuracy.value, 2)}
        for attack, accuracy in subject.measured.items()
        if "/" not in attack
    ]
    task = {"type": "image-classification", "name": "Image classification"}
    index = [
        {"name": subject.name, "results": [{"task": task, "dataset": {"type": name, "name": name}, "metrics": results}]}
    ]
    front = {
        "library_name": "sparring",
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", "adversarial-training", "pytorch"],
    }
    return {**front, **({"model-index": index} if results else {})}


def _sentence(subject: _Subject) -> str:
    threat = _threat(subject)
    radius = _eps(threat)
    known = radius is not None and subject.measured
    against = f", evaluated against {type(threat).__name__} perturbations up to {radius}" if known else ""
    method = subject.recipe.method
    standard = isinstance(method, Method) and isinstance(method.attack, Benign)
    how = "without an adversary" if standard else "by adversarial training"
    return f"An image classifier of {len(subject.classes)} classes, trained {how}{against}."


def _table(subject: _Subject) -> list[str]:
    if not subject.measured:
        return ["It has not been evaluated yet."]
    rows = [f"| {name} | {accuracy} | {accuracy.examples:,} |" for name, accuracy in subject.measured.items()]
    return ["| attack | accuracy, % with its 95 % interval | test images |", "|---|---|---|", *rows]


def _usage(subject: _Subject, theirs: TheirModel | None) -> str:
    if theirs is None:
        return '```python\nimport sparring\n\nmodel = sparring.load("model.safetensors")\n```'
    weights = f'torch.load("{subject.name}.pt", weights_only=True)'
    load = f"model.load_state_dict({weights})\nmodel.eval()"
    return f"```python\nimport torch\n{theirs.imports}\n\nmodel = {theirs.call}\n{load}\n```"


# -- programs


def _onnx(subject: _Subject, folder: Path, bound: float) -> Exported:
    runtime = library("onnxruntime", "onnx", "checking an ONNX program")
    library("onnxscript", "onnx", "exporting to ONNX")
    path = folder / f"{subject.name}.onnx"
    batch = {0: torch.export.Dim("batch")}
    program = _traced(
        lambda: torch.onnx.export(
            subject.model,
            (subject.images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=(batch,),
            dynamo=True,
            verbose=False,
        ),
        "ONNX",
    )
    program.save(str(path), external_data=False)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])

    return _checked(run, subject, path, bound)


def _torch_export(subject: _Subject, folder: Path, bound: float) -> Exported:
    path = folder / f"{subject.name}.pt2"
    batch = {0: torch.export.Dim("batch")}
    program = _traced(
        lambda: torch.export.export(subject.model, (subject.images,), dynamic_shapes=(batch,)), "torch.export"
    )
    torch.export.save(program, path)
    with _quiet():
        read = torch.export.load(path).module()
    return _checked(read, subject, path, bound)


def _traced(trace: Callable[[], Any], what: str) -> Any:
    """Carry out a trace; raise `UserError` if it fails."""
    try:
        # torch 2.11 leaves a hook behind if it fails, and no attack would run on an accelerated copy any more
        with _quiet(), without_new_global_hooks():
            return trace()
    except Exception as error:  # the tracer raises errors of many types
        raise UserError(f"{what} cannot trace this model ({first_line(error)}): export it as --to hub") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch's exporters say of themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _checked(run: Callable[[Tensor], Tensor], subject: _Subject, path: Path, bound: float) -> Exported:
    """Compare a program with the model on other numbers of images than it was traced with; delete one that differs."""
    found, scale = _difference(run, subject), float(_logits(subject.model, subject.images).abs().max())
    if not found <= bound * max(1.0, scale):
        path.unlink()
        raise UserError(
            f"the logits of {path.name} differ by {found:.2g} from those of the model, more than {bound:g} of the "
            f"largest, {scale:.3g}: it was deleted; export it in another format"
        )
    return Exported((path,), found, len(subject.images))


def _difference(run: Callable[[Tensor], Tensor], subject: _Subject) -> float:
    """Return the largest difference of logits, on all images together and on the first alone."""
    gaps = [(_logits(run, x) - _logits(subject.model, x)).abs().max() for x in (subject.images, subject.images[:1])]
    return float(max(gaps))


@torch.no_grad()
def _logits(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return run(x)


_EXPORTERS: Mapping[str, Callable[[_Subject, Path, float], Exported]] = {
    "robustbench": _robustbench,
    "hub": _hub,
    "onnx": _onnx,
    "torch-export": _torch_export,
}
