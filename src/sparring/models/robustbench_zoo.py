"""The models of RobustBench by name: what they are built of, what was measured, and where their weights are.

The facts are in `robustbench.json`, an object for each model, by DATASET/NORM/NAME and in the order of the leaderboard.
They were read from RobustBench's model-info files and model zoo, and `benchmarks/robustbench_reference.py` compares
them with a checkout of it: `clean` and `autoattack` in percent, `external` where a stronger attack than AutoAttack is
known, `normalize` where RobustBench's code and not the file of weights holds mean and deviation ("image": of each
image), `drive` the files on Google Drive, `url` a public address that the authors name for the same weights.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ..core.errors import UserError, nearest
from ..core.types import Classifier
from .classifier import Normalize, StandardizeImage
from .deepmind import dm_preact_resnet18, dm_wide_resnet, ra_wide_resnet
from .mixtures import AdaptiveSmoothing, MixedNUTS, adaptive_smoothing, mixed_nuts
from .resnet import preact_resnet18, resnet18, resnet50
from .robustbench import fill_published
from .sodef import fill_sodef, sodef
from .timm_small import conv_stem, plain_timm, plain_torchvision, resnest152, xcit
from .wide_resnet import robust_wide_resnet, wide_resnet

PREFIX = "robustbench:"
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_SHAPES = {"cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "imagenet": (3, 224, 224)}
_ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "adaptive_smoothing": adaptive_smoothing,
    "conv_stem": conv_stem,
    "dm_preact_resnet18": dm_preact_resnet18,
    "dm_wide_resnet": dm_wide_resnet,
    "mixed_nuts": mixed_nuts,
    "preact_resnet18": preact_resnet18,
    "ra_wide_resnet": ra_wide_resnet,
    "resnest152": resnest152,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "robust_wide_resnet": robust_wide_resnet,
    "sodef": sodef,
    "timm": plain_timm,
    "torchvision": plain_torchvision,
    "wide_resnet": wide_resnet,
    "xcit": xcit,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedModel:
    """A model of RobustBench.

    Args:
        dataset: "cifar10", "cifar100" or "imagenet".
        norm: "Linf" or "L2".
        name: Its name in RobustBench's model zoo.
        eps: Radius of the attacks, as a text such as "8/255".
        clean: Accuracy on clean test images, in percent.
        autoattack: Accuracy under AutoAttack, in percent.
        external: Accuracy under the strongest attack known, in percent, if that is not AutoAttack.
        architecture: Name of the function that builds it; None if it is not built here.
        options: Options of that function.
        normalize: Mean and standard deviation of each channel, if the file of weights does not hold them, or "image".
        part: Entry of the file that holds the weights, if it holds several.
        look: How RobustBench cuts pictures, for ImageNet.
        kind: The architecture in RobustBench's words, if it is not built here.
        paper: Title of its paper.
        link: Address of the paper.
        drive: The files of weights on Google Drive.
        url: Public address of the same weights, where the authors name one.
    """

    dataset: str
    norm: str
    name: str
    eps: str
    clean: float
    autoattack: float
    external: float | None = None
    architecture: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    normalize: Sequence[Sequence[float]] | Literal["image"] | None = None
    part: str | None = None
    look: str | None = None
    kind: str | None = None
    paper: str | None = None
    link: str | None = None
    drive: Sequence[str] = ()
    url: str | None = None

    @property
    def key(self) -> str:
        """Its full name, DATASET/NORM/NAME, which is also where RobustBench keeps its weights in a folder."""
        return f"{self.dataset}/{self.norm}/{self.name}"

    @property
    def threat(self) -> str:
        """Its threat as on the command line, such as `linf:8/255`."""
        return f"{self.norm.lower()}:{self.eps}"

    def build(self) -> nn.Module:
        """Build the network, with random weights.

        Returns:
            A model that takes pixels in [0, 1].

        Raises:
            UserError: If its architecture is not built here, or needs a library that cannot be imported.
        """
        if self.architecture is None:
            raise UserError(f"{PREFIX}{self.key} is a {self.kind}, an architecture that is not built here")
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in self.options.items()}
        shared = {"num_classes": CLASSES[self.dataset], "shape": _SHAPES[self.dataset]}
        return _ARCHITECTURES[self.architecture](**shared, normalize=self._normalize(), **options)

    def _normalize(self) -> nn.Module | None:
        if self.normalize is None:
            return None
        if isinstance(self.normalize, str):
            return StandardizeImage()
        return Normalize(*self.normalize)

    def load(self, model: nn.Module, *states: Mapping[str, Tensor]) -> nn.Module:
        """Load weights with the names of RobustBench into a model that `build` made, in place.

        Args:
            model: The model.
            *states: The state dicts, in the order of RobustBench's files; mostly one.

        Returns:
            The model in eval mode.

        Raises:
            UserError: If a tensor is missing, left over or of another shape.
        """
        if isinstance(model, AdaptiveSmoothing | MixedNUTS):
            model.load(*states)
        elif self.architecture == "sodef" and isinstance(model, Classifier):
            fill_sodef(model, *states)
        else:
            fill_published(model, *states)
        return model.eval()


@cache
def published_models() -> Mapping[str, PublishedModel]:
    """Read the facts of all models.

    Returns:
        The models by full name, those of a leaderboard in its order.
    """
    facts = json.loads(Path(__file__).with_name("robustbench.json").read_text(encoding="utf-8"))
    return {key: _model(key, fact) for key, fact in facts.items()}


def _model(key: str, fact: Mapping[str, Any]) -> PublishedModel:
    dataset, norm, name = key.split("/")
    return PublishedModel(dataset=dataset, norm=norm, name=name, **fact)


def published(name: str) -> PublishedModel:
    """Find a model of RobustBench.

    Args:
        name: DATASET/NORM/NAME, as in "cifar10/Linf/Wang2023Better_WRN-28-10"; DATASET/ and NORM/ may be left out if
            the rest names one model. "robustbench:" may stand before it.

    Returns:
        The model.

    Raises:
        UserError: If there is no such model, or several; the message names the nearest, or all.
    """
    given = name.removeprefix(PREFIX)
    *places, last = given.split("/")
    models = published_models()
    found = [key for key, model in models.items() if model.name == last and set(places) <= {model.dataset, model.norm}]
    if len(found) > 1:
        raise UserError(
            f"{PREFIX}{given} names {len(found)} models: write {' or '.join(PREFIX + key for key in found)}"
        )
    if not found:
        known = models if places else {model.name for model in models.values()}
        raise UserError(f"RobustBench has no model {given!r}: {nearest(given, known)}")
    return models[found[0]]
