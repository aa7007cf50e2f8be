"""Compares our networks, and what `models/robustbench.json` says of RobustBench's models, with a checkout of it.

    git clone https://github.com/RobustBench/robustbench
    python benchmarks/robustbench_reference.py robustbench            # the first 30 entries of both CIFAR-10 boards
    python benchmarks/robustbench_reference.py robustbench --board cifar100/Linf --first 100
    python benchmarks/robustbench_reference.py robustbench --facts    # only the numbers
    python benchmarks/robustbench_reference.py robustbench --exports  # our models as their classes

For each architecture, their class gets random weights, norms and statistics; our class loads its state dict by the
names of the published files, with nothing missing or left; and both see the same images. It needs what their model zoo
imports: timm, torchvision, geotorch, torchdiffeq and pyyaml.
"""

import argparse
import importlib
import json
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparring.core.errors import UserError
from sparring.models import (
    Normalize,
    PublishedModel,
    dm_preact_resnet18,
    dm_wide_resnet,
    preact_resnet18,
    published_models,
    resnet18,
    resnet50,
    robust_wide_resnet,
    wide_resnet,
)
from sparring.models.robustbench_export import for_robustbench

BOARDS = ("cifar10/Linf", "cifar10/L2")


def their_zoo(checkout: Path) -> Mapping[str, Any]:
    """Return their model zoo by full name. Only their model zoo is imported, not what downloads and evaluates."""
    package = types.ModuleType("robustbench")
    package.__path__ = [str(checkout / "robustbench")]
    sys.modules["robustbench"] = package
    zoo = importlib.import_module("robustbench.model_zoo").model_dicts
    return {
        f"{dataset.value}/{threat.value}/{name}": entry
        for dataset, threats in zoo.items()
        for threat, entries in threats.items()
        for name, entry in entries.items()
    }


def compared_facts(checkout: Path, zoo: Mapping[str, Any]) -> int:
    """Compare every number with their model-info files; return how many were compared."""
    compared = 0
    for key, ours in published_models().items():
        info = json.loads((checkout / "model_info" / f"{key}.json").read_text())
        drive = zoo[key].get("gdrive_id")
        theirs = {
            "clean": float(info["clean_acc"]),
            "autoattack": float(info["autoattack_acc"]),
            "external": float(info["external"]) if info.get("external") else None,
            "eps": info["eps"],
            "paper": info["name"],
            "link": info["link"],
            "drive": list(drive) if isinstance(drive, list) else [drive] if drive else [],
        }
        for name, value in theirs.items():
            got = getattr(ours, name)
            assert (list(got) if name == "drive" else got) == value, (key, name, got, value)
            compared += 1
    missing = {key for key in zoo if "/corruptions/" not in key} - set(published_models())
    assert not missing, missing
    return compared


def disturbed(model: nn.Module, seed: int) -> nn.Module:
    """Give norms, statistics and thresholds values in which every mistake shows, and return the model in eval mode."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=draw).to(like.dtype) * (high - low) + low

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            last = name.rpartition(".")[2]
            if last == "running_mean":
                tensor.copy_(uniform(tensor, -0.2, 0.2))
            elif last == "running_var":
                tensor.copy_(uniform(tensor, 0.5, 1.5))
            elif last == "threshold":
                tensor.fill_(0.2)
            elif tensor.ndim == 1 and tensor.is_floating_point() and tensor.numel() > 3:
                tensor.copy_(uniform(tensor, 0.5, 1.0) if last == "weight" else uniform(tensor, -0.1, 0.1))
            elif last == "alpha":
                tensor.fill_(1.3)
            elif last == "beta":
                tensor.fill_(-0.1)
    return model.eval()


def made(zoo: Mapping[str, Any], ours: PublishedModel) -> nn.Module:
    """Build their model with random weights; those of timm are registered under a name of their own."""
    if ours.architecture != "xcit":
        model: nn.Module = zoo[ours.key]["model"]()
        return model
    size = f"{ours.options['size']}12_{ours.dataset}_linf"
    timm = importlib.import_module("timm")
    classes = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}[ours.dataset]
    return timm.create_model(f"debenedetti2022light_xcit_{size}", pretrained=False, num_classes=classes)


def states(theirs: Any) -> tuple[Mapping[str, Tensor], ...]:
    """Return the state dicts that their files of this model hold."""
    kind = type(theirs).__name__
    if kind == "CompositeModelWrapper":
        parts = theirs.comp_model
        mixing = {f"model.{name}": tensor for name, tensor in parts.policy_net.state_dict().items()}
        mixing |= {f"bn.{name}": tensor for name, tensor in parts.bn.state_dict().items()}
        return *(each.state_dict() for each in parts.models), mixing
    if kind == "NonLinMixedClassifier":
        return theirs.std_model.state_dict(), theirs.rob_model.state_dict()
    return (theirs.state_dict(),)


@torch.no_grad()
def difference(ours: PublishedModel, theirs: nn.Module, images: int) -> tuple[float, float]:
    """Return the largest difference of logits, and the largest logit."""
    model = ours.load(ours.build(), *states(theirs))
    side = 224 if ours.dataset == "imagenet" else 32
    x = torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(1))
    want = theirs(x)
    return float((model(x) - want).abs().max()), float(want.abs().max())


EXPORTED = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "preact_resnet18": preact_resnet18,
    "preact_resnet18, final norm": lambda **o: preact_resnet18(final_norm=True, shortcut="activated", **o),
    "wide_resnet 16-2": lambda **o: wide_resnet(16, 2, **o),
    "wide_resnet 16-2, SiLU": lambda **o: wide_resnet(16, 2, activation="silu", **o),
    "robust_wide_resnet": lambda **o: robust_wide_resnet((1, 2, 3), (2, 1, 1), **o),
    "dm_wide_resnet 16-2": lambda **o: dm_wide_resnet(16, 2, **o),
    "dm_preact_resnet18": dm_preact_resnet18,
}
"""Models of ours that RobustBench has classes for."""


@torch.no_grad()
def exported(name: str, normalize: nn.Module | None) -> tuple[str, float]:
    """Build a model of ours as RobustBench's class, load our state dict, and return the largest difference."""
    torch.manual_seed(0)
    ours = disturbed(EXPORTED[name](normalize=normalize), seed=3)
    described = for_robustbench(ours)
    names: dict[str, Any] = {}
    exec(f"{described.imports}\nmodel = {described.call}", names)  # noqa: S102 - the text of a model card
    theirs = names["model"]
    theirs.load_state_dict(described.state)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return described.architecture, float((theirs.eval()(x) - ours(x)).abs().max())


def architectures(board: str, first: int) -> Iterator[tuple[PublishedModel, int]]:
    """Yield one model of each architecture of the first entries of a board, and how many entries have it."""
    known = [model for key, model in published_models().items() if key.startswith(board + "/")][:first]
    groups: dict[str, list[PublishedModel]] = {}
    for model in known:
        groups.setdefault(repr((model.architecture, dict(model.options), model.normalize, model.kind)), []).append(
            model
        )
    for group in groups.values():
        yield group[0], len(group)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--board", action="append", help=f"DATASET/NORM; by default {' and '.join(BOARDS)}")
    parser.add_argument("--first", type=int, default=30, help="entries of each board")
    parser.add_argument("--only", default="", help="architectures whose name contains this")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--facts", action="store_true", help="compare the facts alone")
    parser.add_argument("--exports", action="store_true", help="our models as classes of RobustBench")
    parser.add_argument("--double", action="store_true", help="compute in float64")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *args, **options: self  # one of their constructors asks for a GPU
    zoo = their_zoo(given.checkout)
    print(f"{compared_facts(given.checkout, zoo)} facts of {len(published_models())} models are those of RobustBench\n")
    if given.facts:
        return
    torch.set_default_dtype(torch.float64 if given.double else torch.float32)
    if given.exports:
        print("| ours | theirs | largest difference | with normalisation |")
        print("|---|---|---|---|")
        for name in EXPORTED:
            architecture, bare = exported(name, None)
            _, normalized = exported(name, Normalize([0.49, 0.48, 0.45], [0.25, 0.24, 0.26]))
            print(f"| {name} | {architecture} | {bare:.1e} | {normalized:.1e} |", flush=True)
        return
    print("| board | architecture | options | entries | largest difference | largest logit |")
    print("|---|---|---|---|---|---|")
    for board in given.board or BOARDS:
        for ours, count in architectures(board, given.first):
            if given.only not in (ours.architecture or ""):
                continue
            torch.manual_seed(0)
            options = " ".join(f"{name}={value}" for name, value in ours.options.items())
            try:
                theirs = disturbed(made(zoo, ours), seed=2)
                found = " | ".join(f"{value:.1e}" for value in difference(ours, theirs, given.images))
            except UserError as error:
                found = f"{error} |"
            print(f"| {board} | {ours.architecture or ours.kind} | {options} | {count} | {found} |", flush=True)


if __name__ == "__main__":
    main()
