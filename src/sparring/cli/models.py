"""Models that were not trained here, on the command line: their options, and how they are found."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UserError
from .common import say, value_of

if TYPE_CHECKING:
    from torch import nn

    from ..core.types import LabelledData
    from ..data.looks import CentralSquare


ROBUSTBENCH = "robustbench:"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    model: str | None = None
    """The architecture of a file of weights: preact_resnet18, or wide_resnet:depth=34,width=10."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, for a model that expects normalised images; the normalisation is added to the model."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel."""


@dataclass(frozen=True, kw_only=True)
class ForeignOptions(ModelOptions):
    data: str
    """The test images: npz:FILE with x_test and y_test, folder:DIR, or cifar10, cifar100:DIR, fashion_mnist, ..."""
    examples: int | None = None
    """Number of images, taken from the beginning of the test set; by default all."""
    weights: str | None = None
    """Folder that holds weights of RobustBench as its own code keeps them, FOLDER/cifar10/Linf/NAME.pt; by default
    $SPARRING_ROBUSTBENCH."""
    batch_size: int | None = None
    """Number of images in a batch; by default 256, and 1,024 on a GPU if they are small."""
    seed: int = 0
    """Seed of all random numbers."""


def is_foreign(target: str, args: list[str]) -> bool:
    """Return True for a model of the user, or for weights described by --data and --model.

    Raises `UserError` for a file of Python code.
    """
    path = Path(target)
    if path.suffix == ".py":
        raise UserError(
            f"{target} is a file of Python code, not of weights: name the function in it that returns the model, as "
            f"{path.stem}:build, from the folder of the file, with --data DATA"
        )
    return (not path.exists() and ":" in target) or (path.is_file() and value_of("--model", args) is not None)


def filled_in(target: str, args: list[str]) -> list[str]:
    """Return arguments with the data and the threat of a model of RobustBench, if they are left out."""
    if not target.startswith(ROBUSTBENCH):
        return args
    from ..models import published

    model = published(target.partition(",")[0])
    rest = list(args)
    if value_of("--data", args) is None and model.dataset != "imagenet":
        rest += ["--data", model.dataset]
    if all(value_of(flag, args) is None for flag in ("--threat", "--eps", "--certify")):
        rest += ["--threat", model.threat]
    return rest


def foreign(target: str, options: ForeignOptions) -> "tuple[nn.Module, LabelledData]":
    """Return the model that a target names, and its test images, cut as the model wants them."""
    from ..data import load_test
    from ..runs.external_models import fitting

    like = load_test(options.data) if options.model else None
    model = foreign_model(target, options, like, options.seed, options.weights)
    test = like if like is not None else load_test(options.data, cut_for(model))
    found = fitting(model, test)
    if len(found.classes) > len(test.classes):
        say(
            f"note: the model gives {len(found.classes)} classes and the data have {len(test.classes)}: label k is "
            "compared with output k",
            sys.stderr,
        )
    return model, found


def foreign_model(
    target: str,
    options: ModelOptions,
    like: "LabelledData | None" = None,
    seed: int = 0,
    weights: str | None = None,
) -> "nn.Module":
    """Return the model that a target names; weights of an architecture need images `like` those that it takes.

    `weights` is the folder of RobustBench's weights.

    What is not loaded is initialised from the seed.
    """
    import torch

    if weights is not None and not target.startswith(ROBUSTBENCH):
        raise UserError(f"--weights names the folder of RobustBench's weights: leave it out for {target}")
    from ..models.classifier import normalized
    from ..runs.external_models import imported_model, named_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if options.model is not None:
            assert like is not None
            model = named_model(options.model, Path(target), like)
        else:
            model = imported_model(target, **({} if weights is None else {"weights": weights}))
    if (options.mean is None) != (options.std is None):
        raise UserError("only one of --mean and --std is given: give both or neither")
    if options.mean is not None and options.std is not None:
        model = normalized(model, options.mean, options.std)
    return model


def cut_for(model: "nn.Module") -> "CentralSquare | None":
    """Return how pictures are cut for a pretrained model of a library, and say it; None for another model."""
    from ..data.looks import CentralSquare
    from ..models import Preprocessing

    wanted = getattr(model, "preprocessing", None)
    if not isinstance(wanted, Preprocessing):
        return None
    say(f"the model wants {wanted}", sys.stderr)
    return CentralSquare(wanted.size, wanted.share, wanted.interpolation)
