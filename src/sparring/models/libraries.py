"""Models of timm, torchvision and the Hugging Face Hub by their names, with the preprocessing that belongs to them.

Each becomes a `Classifier` that takes pixels in [0, 1]: its normalisation is a part of it, and its last linear layer is
the head. What else its pictures need, their size and how they are cut, is in its attribute `preprocessing`.
"""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from ..core.errors import UserError, nearest
from ..core.optional import first_line, library
from ..core.types import Classifier
from .classifier import Normalize

Shape = tuple[int, int, int]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The size, cut and normalisation of the pictures that a model was trained with.

    Args:
        size: Height and width in pixels.
        share: Side of the central square that is cut out, as a share of the shorter side of the picture.
        interpolation: "bilinear" or "bicubic".
        mean: Mean of each channel, which the model subtracts itself.
        std: Standard deviation of each channel, by which the model divides itself.
    """

    size: int
    share: float
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        def numbers(values: tuple[float, ...]) -> str:
            return ", ".join(f"{each:.4g}" for each in values)

        return (
            f"pictures of {self.size} x {self.size} pixels, {self.interpolation}, from the central "
            f"{100 * self.share:.4g} % of the shorter side; the model subtracts ({numbers(self.mean)}) and divides by "
            f"({numbers(self.std)})"
        )


def timm_model(
    name: str,
    num_classes: int | None = None,
    shape: Shape | None = None,
    normalize: nn.Module | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Makes a model of timm.

    Args:
        name: Its name, as in `timm.list_models()`, such as "vit_tiny_patch16_224".
        num_classes: Number of classes; None for as many as its weights have.
        shape: Shape of an image; None for the one that its weights were trained with.
        normalize: Normalisation of a model with random weights; None for that of its weights.
        pretrained: Load its weights, which timm downloads.

    Returns:
        A `Classifier`; or, where the last linear layer does not give the logits, the model behind its normalisation.

    Raises:
        UserError: If timm cannot be imported, has no such model, cannot load its weights, or cannot build it for these
            images.
    """
    timm = library("timm", "imagenet", "this model")
    if not timm.is_model(name.partition(".")[0]):
        raise UserError(f"timm has no model {name!r}: {nearest(name, timm.list_models())}")
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if shape is not None:
        options["in_chans"] = shape[0]

    def make() -> nn.Module:
        if shape is not None and _takes_size(timm, name):
            options["img_size"] = shape[1:]
        made: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
        return made

    model = _made(make, f"timm:{name}")
    config = importlib.import_module("timm.data").resolve_model_data_config(model)
    return _classifier(model, _of_timm(config), shape or tuple(config["input_size"]), None if pretrained else normalize)


def torchvision_model(
    name: str,
    num_classes: int | None = None,
    shape: Shape | None = None,
    normalize: nn.Module | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Makes a classifier of torchvision.

    Args:
        name: Its name, as in `torchvision.models.list_models()`, such as "resnet18".
        num_classes: Number of classes; None for as many as its weights have. Another number gives it a new head.
        shape: Shape of an image; None for the one that its weights were trained with.
        normalize: Normalisation of a model with random weights; None for that of its weights.
        pretrained: Load its weights, the newest ones, which torchvision downloads.

    Returns:
        A `Classifier`; or, where the last linear layer does not give the logits, the model behind its normalisation.

    Raises:
        UserError: If torchvision cannot be imported, has no such classifier, cannot load its weights, or cannot build
            it for these images.
    """
    vision = library("torchvision.models", "imagenet", "this model")
    known = vision.list_models(module=vision)
    if name not in known:
        raise UserError(f"torchvision has no classifier {name!r}: {nearest(name, known)}")
    weights = vision.get_model_weights(name).DEFAULT
    look = weights.transforms()
    size, resized = look.crop_size[0], look.resize_size[0]
    smooth: Interpolation = "bicubic" if look.interpolation.value == "bicubic" else "bilinear"
    wanted = Preprocessing(size, size / resized, smooth, tuple(look.mean), tuple(look.std))
    model = _made(lambda: vision.get_model(name, weights=weights if pretrained else None), f"torchvision:{name}")
    found = _classifier(model, wanted, shape or (3, size, size), None if pretrained else normalize)
    if num_classes is not None and _classes(found) != num_classes:
        if not isinstance(found, Classifier) or not isinstance(found.head, nn.Linear):
            raise UserError(f"torchvision:{name} has no last linear layer to replace by one of {num_classes} classes")
        found.head = nn.Linear(found.head.in_features, num_classes)
    return found


def hub_model(name: str) -> nn.Module:
    """Loads a model from the Hugging Face Hub: from its config.json and model.safetensors alone, and no other file.

    The configuration is that of timm's models there, with an `architecture`.

    Args:
        name: Repository and revision, as in "org/name@COMMIT"; without a revision, the newest, which a message names.

    Returns:
        The model in eval mode.

    Raises:
        UserError: If huggingface_hub is not installed, there is no such model, or its files are of another kind.
    """
    weights = hub_file(name, "model.safetensors")
    pinned = f"{name.partition('@')[0]}@{weights.parent.name}"
    config = json.loads(hub_file(pinned, "config.json").read_text(encoding="utf-8"))
    if "architecture" not in config:
        raise UserError(f"the config.json of hub:{name} has no architecture: wanted is a model that timm can build")
    return _from_config(config, weights, f"hub:{pinned}")


def hub_file(name: str, file: str) -> Path:
    """Download a file of a model of the Hub, or find it in the cache; the name of its folder is the commit."""
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1:
        raise UserError(f"{name!r} names no model of the Hub: write hub:ORGANISATION/NAME, or with @COMMIT behind it")
    hub = library("huggingface_hub", "hub", "this model")
    try:
        return Path(hub.hf_hub_download(repository, file, revision=revision or None))
    except Exception as error:  # it raises errors of many kinds, of its own and of its transport
        raise UserError(f"{file} of hub:{repository} cannot be had ({first_line(error)})") from error


def _from_config(config: Mapping[str, Any], weights: Path, what: str) -> nn.Module:
    import safetensors.torch

    timm = library("timm", "imagenet", "this model")
    architecture, given = config["architecture"], config.get("pretrained_cfg", {})
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise UserError(f"{what} is a {architecture}, which timm does not know: update timm")
    options = {**config.get("model_args", {}), "num_classes": config.get("num_classes", 1000)}
    model = _made(lambda: timm.create_model(architecture, pretrained_cfg=given, **options), what)
    try:
        model.load_state_dict(safetensors.torch.load_file(weights))
    except RuntimeError as error:
        raise UserError(f"the weights of {what} do not fit a {architecture}: {first_line(error)}") from error
    found = importlib.import_module("timm.data").resolve_model_data_config(model)
    return _classifier(model, _of_timm(found), tuple(found["input_size"]), None).eval()


def _of_timm(config: Mapping[str, Any]) -> Preprocessing:
    smooth: Interpolation = "bicubic" if config["interpolation"] == "bicubic" else "bilinear"
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return Preprocessing(config["input_size"][-1], config["crop_pct"], smooth, mean, std)


def _classifier(model: nn.Module, wanted: Preprocessing, shape: Shape, normalize: nn.Module | None) -> nn.Module:
    """Return the model as a `Classifier`, if its last linear layer gives the logits."""
    mean, std = (_for_channels(values, shape[0]) for values in (wanted.mean, wanted.std))
    scaled = Normalize(mean, std) if normalize is None else normalize
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        found: nn.Module = Classifier.split(model, images)
    except UserError:
        found = nn.Sequential(scaled, model)
    except (RuntimeError, ValueError, AssertionError) as error:
        sizes = "x".join(map(str, shape))
        raise UserError(f"{type(model).__name__} does not take images of {sizes} ({first_line(error)})") from error
    else:
        assert isinstance(found, Classifier)
        found.normalize = scaled
    found.preprocessing = wanted  # type: ignore[assignment]
    return found


def _for_channels(values: tuple[float, ...], channels: int) -> list[float]:
    return list(values) if len(values) == channels else [sum(values) / len(values)] * channels


def _classes(model: nn.Module) -> int | None:
    head = model.head if isinstance(model, Classifier) else None
    return head.out_features if isinstance(head, nn.Linear) else None


def _takes_size(timm: ModuleType, name: str) -> bool:
    """Return True if a model is built for one size of images, as vision transformers are."""
    config = timm.models.get_pretrained_cfg(name.partition(".")[0], allow_unregistered=True)
    return bool(config is not None and config.fixed_input_size)


def _made(make: Callable[[], nn.Module], what: str) -> nn.Module:
    try:
        return make()
    except UserError:
        raise
    except Exception as error:  # libraries and their transports raise errors of many kinds
        raise UserError(f"{what} cannot be made ({first_line(error)})") from error
