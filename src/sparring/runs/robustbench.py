"""Loads models of RobustBench by name, from a folder of weights or a download."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from ..core.errors import UserError
from ..core.optional import first_line
from ..core.reading import reading
from ..data.files import cache_folder
from ..models import Preprocessing, PublishedModel, published
from ..training.checkpoint import read_nested, read_weights

FOLDER = "SPARRING_ROBUSTBENCH"
"""The environment variable that names the folder of weights."""

_LOOKS = {  # size, share of the shorter side, interpolation
    "Res256Crop224": (224, 224 / 256, "bilinear"),
    "BicubicRes256Crop224": (224, 224 / 256, "bicubic"),
    "XCiT": (224, 1.0, "bicubic"),
}


def robustbench_model(name: str, weights: Path | str | None = None) -> nn.Module:
    """Loads a model of RobustBench with its published weights.

    They are read from `weights`, or from the folder that the environment variable `SPARRING_ROBUSTBENCH` names, or
    from the cache; and downloaded, if they are nowhere and the authors name a public address.

    Args:
        name: The model, as for `sparring.models.published`.
        weights: A file of weights, or a folder as RobustBench keeps it: FOLDER/DATASET/NORM/NAME.pt, or FOLDER/NAME.pt.

    Returns:
        The model in eval mode, which takes pixels in [0, 1].

    Raises:
        UserError: If there is no such model, if its weights are nowhere, cannot be downloaded or hold other objects
            than tensors, or if they do not fit.
    """
    model = published(name)
    net = model.build()  # what cannot be built needs no weights
    states = [_state(model, i, path) for i, path in enumerate(weights_of(model, weights))]
    loaded = model.load(net, *states)
    if model.look is not None:
        size, share, interpolation = _LOOKS[model.look]
        mean, std = ((0.0,) * 3, (1.0,) * 3) if isinstance(model.normalize, str | None) else model.normalize
        loaded.preprocessing = Preprocessing(size, share, interpolation, tuple(mean), tuple(std))  # type: ignore
    return loaded


def _state(model: PublishedModel, i: int, path: Path) -> dict[str, Tensor]:
    if model.part is not None:
        held = read_nested(path)
        return {n.removeprefix(f"{model.part}."): t for n, t in held.items() if n.startswith(f"{model.part}.")}
    if model.architecture == "adaptive_smoothing" and i == 2:
        return read_nested(path)
    return read_weights(path)[0]


def weights_of(model: PublishedModel, given: Path | str | None = None) -> Sequence[Path]:
    """Finds the files of weights of a model, or downloads them.

    Args:
        model: The model.
        given: A file or folder, as for `robustbench_model`.

    Returns:
        The files, in RobustBench's order; mostly one.

    Raises:
        UserError: If they are nowhere; the message says where to get them.
    """
    given = given or os.environ.get(FOLDER)
    if given is not None and Path(given).is_file():
        return [Path(given)]
    folders = [Path(given)] if given is not None else []
    cache = cache_folder() / "robustbench"
    for folder in [*folders, cache]:
        for home in (folder / model.dataset / model.norm, folder):
            found = [_with_suffix(home / name) for name in _files(model)]
            if all(path is not None for path in found):
                return [path if folder != cache else _unchanged(path) for path in found if path is not None]
    if folders or model.url is None:
        raise UserError(_where(model, folders))
    return [_download(model.url, cache / model.dataset / model.norm / f"{model.name}.pt")]


def _files(model: PublishedModel) -> list[str]:
    """Return the names of the files as RobustBench gives them."""
    if len(model.drive) < 2:
        return [f"{model.name}.pt"]
    return [f"{model.name}.pt_m{i}.pt" for i in range(len(model.drive))]


def _with_suffix(path: Path) -> Path | None:
    """Return a file of this name, or with the suffix of another format; None if there is none."""
    others = (path, path.with_suffix(".safetensors"), path.with_suffix(".pth"), path.with_suffix(".pth.tar"))
    return next((each for each in others if each.is_file()), None)


def _where(model: PublishedModel, folders: Sequence[Path]) -> str:
    names = " and ".join(f"{model.dataset}/{model.norm}/{name}" for name in _files(model))
    here = f"there is no {names} in {folders[0]}" if folders else f"the weights of {model.key} are not on this machine"
    addresses = [f"https://drive.google.com/file/d/{each}" for each in model.drive]
    address = model.url or " and ".join(addresses) or "where their authors publish them"
    return f"{here}: get them from {address}, and name the folder with --weights FOLDER or ${FOLDER}"


def _download(url: str, path: Path) -> Path:
    """Download a file, and keep the SHA-256 sum of the first download beside it, since none is published."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    try:
        got = Path(pooch.retrieve(url, None, fname=path.name, path=path.parent))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        raise UserError(
            f"{path.name} could not be downloaded from {url} ({first_line(error)}): get it elsewhere, and name its "
            f"folder with --weights FOLDER or ${FOLDER}"
        ) from error
    _sum_beside(got).write_text(_sum(got) + "\n")
    return got


def _unchanged(path: Path) -> Path:
    """Refuse a downloaded file that is not what it was when it came."""
    known = _sum_beside(path)
    with reading(path, "delete it, and it is downloaded again"):
        if known.is_file() and _sum(path) != known.read_text().strip():
            raise ValueError(f"its SHA-256 sum is not the one in {known.name}")
    return path


def _sum_beside(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
